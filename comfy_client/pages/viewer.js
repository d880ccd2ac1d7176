// The images of a static page at full size, with the keys ← → and Esc, and the copying of texts.
//
// An image is a link `a.open` to its file. Its data attributes are what the viewer shows and copies: data-prompt (or the
// image's alternative text), data-facts, and data-seed if there is one. A button with data-copy copies that text.

const dialog = document.getElementById("viewer");
const inViewer = (name) => dialog.querySelector("." + name);
let shown = null;

const openLinks = () => [...document.querySelectorAll("a.open")].filter((link) => !link.closest("[hidden]"));

function show(link) {
  const links = openLinks(), at = links.indexOf(link), { prompt, facts, seed } = link.dataset;
  const image = dialog.querySelector("img"), text = prompt ?? link.querySelector("img").alt;
  shown = link;
  dialog.classList.remove("actual");
  inViewer("actual").setAttribute("aria-pressed", "false");
  image.src = inViewer("download").href = link.getAttribute("href");
  image.alt = inViewer("prompt").textContent = text;
  inViewer("fact").textContent = facts ?? "";
  inViewer("previous").disabled = at <= 0;
  inViewer("next").disabled = at >= links.length - 1;
  inViewer("copy-prompt").hidden = !prompt;
  inViewer("copy-seed").hidden = !seed;
  if (!dialog.open) dialog.showModal();
}

function step(by) {
  const links = openLinks(), next = links[links.indexOf(shown) + by];
  if (next) show(next);
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a.open"), button = event.target.closest("button[data-copy]");
  if (button) copy(button.dataset.copy, button);
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  show(link);
});
// A button that becomes disabled loses the focus to the document, and the dialog receives no keys then.
document.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by && dialog.open && !dialog.classList.contains("actual")) step(by);
});
dialog.addEventListener("close", () => shown.focus());
inViewer("previous").onclick = () => step(-1);
inViewer("next").onclick = () => step(1);
inViewer("close").onclick = () => dialog.close();
inViewer("actual").onclick = () => inViewer("actual").setAttribute("aria-pressed", dialog.classList.toggle("actual"));
inViewer("copy-prompt").onclick = (event) => copy(shown.dataset.prompt, event.currentTarget);
inViewer("copy-seed").onclick = (event) => copy(shown.dataset.seed, event.currentTarget);
