// The dialog of viewer.html: the images of a page at full size, with the keys ← → and Esc.
//
// `images` returns the page's images in their order, `keyOf` returns what identifies an image, and `show` fills in the
// dialog for one. `show` returns the seed of the image, or undefined if it is unknown.
function prepareViewer({ images, keyOf, show }) {
  const dialog = document.getElementById("viewer"), find = (name) => dialog.querySelector("." + name);
  let current = null, seed;

  const neighbour = (by) => {
    const list = images(), at = list.findIndex((image) => keyOf(image) === keyOf(current));
    return at < 0 ? undefined : list[at + by];
  };
  const open = (image) => {
    current = image;
    dialog.classList.remove("actual");
    find("actual").setAttribute("aria-pressed", "false");
    find("previous").disabled = !neighbour(-1);
    find("next").disabled = !neighbour(1);
    seed = show(image, find);
    find("copy-seed").hidden = seed === undefined;
    if (!dialog.open) dialog.showModal();
  };
  const step = (by) => { if (neighbour(by)) open(neighbour(by)); };

  find("previous").onclick = () => step(-1);
  find("next").onclick = () => step(1);
  find("close").onclick = () => dialog.close();
  find("actual").onclick = () => find("actual").setAttribute("aria-pressed", dialog.classList.toggle("actual"));
  find("copy-seed").onclick = (event) => copy(seed, event.currentTarget);
  // A button that becomes disabled loses the focus to the document, and the dialog receives no keys then.
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const isInViewer = dialog.open && [null, dialog].includes(event.target.closest("dialog"));
    if (by && isInViewer && !dialog.classList.contains("actual")) step(by);
  });
  return { dialog, find, open, neighbour, current: () => current };
}
