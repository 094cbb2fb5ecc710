"use strict";
// Sorting: a heading sorts its column, and turns it round when it is pressed again. What has no figure comes last.
const key = (cell, numeric) => (numeric ? ("n" in cell.dataset ? Number(cell.dataset.n) : null) : cell.textContent.trim());
const before = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th"), body = heading.closest("table").tBodies[0];
    const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const numeric = heading.classList.contains("number");
    const rows = Array.from(body.rows, (row) => [key(row.cells[heading.cellIndex], numeric), row]);
    rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * before(a, b)));
    body.append(...rows.map(([, row]) => row));
  });
}
// The list of runs shows those that hold every word typed.
const filter = document.getElementById("filter");
if (filter) {
  const rows = document.querySelectorAll("#index tbody tr"), shown = document.getElementById("shown");
  const apply = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      count += !row.hidden;
    }
    shown.textContent = `${count} of ${rows.length}`;
  };
  filter.addEventListener("input", apply);
  apply();
}
// A link to a run opens its section.
const open = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  const section = target && target.closest("details");
  if (section) {
    section.open = true;
    target.scrollIntoView();
  }
};
addEventListener("hashchange", open);
open();
