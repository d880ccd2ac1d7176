// The view of one image in full size, with the keys ← → and Esc.

const view = { entry: null, asset: null };

function openViewer(entry, asset) {
  Object.assign(view, { entry, asset });
  byId("viewer").classList.remove("actual");
  renderViewer();
  if (!byId("viewer").open) byId("viewer").showModal();
}

// The images of all shown jobs, in the order of the list.
function allImages() {
  const rows = [...byId("jobs").children].map((row) => entries.get(row.dataset.job));
  return rows.flatMap((entry) => entry.data.assets.map((asset) => ({ entry, asset })));
}

const indexOfView = (images) => images.findIndex(({ asset }) => asset.id === view.asset.id);

function renderViewer() {
  const dialog = byId("viewer"), { entry, asset } = view, images = allImages(), at = indexOfView(images);
  const find = (name) => dialog.querySelector(name), image = find("img"), seed = seedOf(entry.data, asset);
  image.src = imageUrl(asset);
  image.alt = entry.data.prompt;
  find(".prompt").textContent = entry.data.prompt;
  const { width, height } = asset.properties, size = width ? width + " × " + height : "";
  find(".fact").textContent = [size, "seed " + (seed ?? "?"), asset.id, sideText(entry.data.side)].filter(Boolean).join(" · ");
  find(".actual").setAttribute("aria-pressed", dialog.classList.contains("actual"));
  find(".previous").disabled = at <= 0;
  find(".next").disabled = at < 0 || at >= images.length - 1;
  find(".copy-seed").hidden = seed === undefined;
  setDownload(find(".download"), asset);
  showText(find(".message"), "");
}

function moveView(step) {
  const images = allImages(), at = indexOfView(images) + step;
  if (images[at]) openViewer(images[at].entry, images[at].asset);
}

async function deleteView() {
  const images = allImages(), at = indexOfView(images);
  if (!(await deleteImage(view.entry, view.asset))) return;
  const next = images[at + 1] || images[at - 1];
  if (next) openViewer(next.entry, next.asset); else byId("viewer").close();
}

function prepareViewer() {
  const dialog = byId("viewer"), on = (name, action) => { dialog.querySelector("." + name).onclick = action; };
  on("previous", () => moveView(-1));
  on("next", () => moveView(1));
  on("close", () => dialog.close());
  on("actual", () => { dialog.classList.toggle("actual"); renderViewer(); });
  on("copy-seed", (event) => copy(seedOf(view.entry.data, view.asset), event.currentTarget));
  on("copy-id", (event) => copy(view.asset.id, event.currentTarget));
  on("input", () => { dialog.close(); useAsInput(view.entry, view.asset); });
  on("delete", (event) => attempt(event.currentTarget, dialog.querySelector(".message"), deleteView));
  // A button that becomes disabled loses the focus to the document, and the dialog receives no keys then.
  document.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const isInViewer = dialog.open && [null, dialog].includes(event.target.closest("dialog"));
    if (step && isInViewer && !dialog.classList.contains("actual")) moveView(step);
  });
}
