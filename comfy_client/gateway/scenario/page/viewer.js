// The view of one image at full size. An image is { entry, asset }: its job's entry in the list, and the asset.

const imageViewer = prepareViewer({ images: allImages, keyOf: ({ asset }) => asset.id, show: showInViewer });

const openViewer = (entry, asset) => imageViewer.open({ entry, asset });

// The images of all shown jobs, in the order of the list.
function allImages() {
  const rows = [...byId("jobs").children].map((row) => entries.get(row.dataset.job));
  return rows.flatMap((entry) => entry.data.assets.map((asset) => ({ entry, asset })));
}

function showInViewer({ entry, asset }, find) {
  const image = byId("viewer").querySelector("img"), seed = seedOf(entry.data, asset);
  image.src = imageUrl(asset);
  image.alt = entry.data.prompt;
  find("prompt").textContent = entry.data.prompt;
  const { width, height } = asset.properties, size = width ? width + " × " + height : "";
  find("fact").textContent = [size, "seed " + (seed ?? "?"), asset.id, sideText(entry.data.side)].filter(Boolean).join(" · ");
  setDownload(find("download"), asset);
  showText(find("message"), "");
  return seed;
}

async function deleteView() {
  const { entry, asset } = imageViewer.current(), next = imageViewer.neighbour(1) || imageViewer.neighbour(-1);
  if (!(await deleteImage(entry, asset))) return;
  if (next) imageViewer.open(next); else imageViewer.dialog.close();
}

function prepareViewerActions() {
  const on = (name, action) => { imageViewer.find(name).onclick = action; };
  on("copy-id", (event) => copy(imageViewer.current().asset.id, event.currentTarget));
  on("input", () => {
    imageViewer.dialog.close();
    useAsInput(imageViewer.current().entry, imageViewer.current().asset);
  });
  on("delete", (event) => attempt(event.currentTarget, imageViewer.find("message"), deleteView));
}
