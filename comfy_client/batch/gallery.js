for (const box of document.querySelectorAll("nav input")) box.onchange = () => {
  for (const section of document.querySelectorAll("section[data-type]")) if (section.dataset.type === box.value) section.hidden = !box.checked;
};
