// The viewer of a static page, and its buttons that copy a text.
//
// An image is a link `a.open` to its file. Its data attributes are what the viewer shows and copies: data-prompt (or the
// image's alternative text), data-facts, and data-seed. A button with data-copy copies that text.
const viewer = prepareViewer({
  images: () => [...document.querySelectorAll("a.open")].filter((link) => !link.closest("[hidden]")),
  keyOf: (link) => link,
  show(link, find) {
    const { prompt, facts, seed } = link.dataset, image = document.querySelector("#viewer img");
    image.onerror = () => { image.onerror = null; image.src = link.querySelector("img").src; }; // a page without its files
    image.src = find("download").href = link.getAttribute("href");
    image.alt = find("prompt").textContent = prompt ?? link.querySelector("img").alt;
    find("fact").textContent = facts ?? "";
    find("copy-prompt").hidden = !prompt;
    return seed || undefined;
  },
});
viewer.find("copy-prompt").onclick = (event) => copy(viewer.current().dataset.prompt, event.currentTarget);
viewer.dialog.addEventListener("close", () => viewer.current().focus());

document.addEventListener("click", (event) => {
  const link = event.target.closest("a.open"), button = event.target.closest("button[data-copy]");
  if (button) copy(button.dataset.copy, button);
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  viewer.open(link);
});
