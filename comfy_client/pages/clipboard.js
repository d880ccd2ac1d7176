// Copy a text, and show on the button that was pressed whether the browser allowed that.
async function copy(text, button) {
  button.dataset.label ||= button.textContent;
  button.textContent = await writeToClipboard(String(text)).then(() => "Copied", () => "Not copied");
  setTimeout(() => { button.textContent = button.dataset.label; }, 1500);
}

// Browsers have navigator.clipboard only on https, localhost and local files.
async function writeToClipboard(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  (document.querySelector("dialog[open]") || document.body).append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
