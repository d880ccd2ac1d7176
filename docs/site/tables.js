// Give each cell of a table the name of its column, which site.css shows in a narrow window.
for (const table of document.querySelectorAll(".md-typeset table")) {
  const names = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
  if (!names.length) continue;
  table.dataset.labelled = ""; // not a class: the theme styles only tables without one
  for (const row of table.tBodies[0]?.rows ?? []) [...row.cells].forEach((cell, at) => { cell.dataset.label = names[at] && names[at] + ":"; });
}
