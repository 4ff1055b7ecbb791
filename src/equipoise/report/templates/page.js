"use strict";
{
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const wantsDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (wantsDark.matches ? "dark" : "light")) === "dark";
  const tell = () => button.setAttribute("aria-pressed", String(isDark()));
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    tell();
  });
  wantsDark.addEventListener("change", tell);
  tell();

  // Maps of one page have equal rows and columns: pointing at a cell marks it in all of them.
  const maps = [...document.querySelectorAll("table.heat")];
  const readout = document.getElementById("readout");
  let at = { row: 0, column: 0 };
  const cellOf = (map) => map.tBodies[0].rows[at.row].cells[at.column + 1];
  const show = (row, column) => {
    for (const map of maps) cellOf(map).classList.remove("on");
    at = { row, column };
    const values = maps.map((map) => {
      const cell = cellOf(map);
      cell.classList.add("on");
      const value = cell.title.split(": ")[1];
      return maps.length > 1 ? `${value} ${map.dataset.name.toLowerCase()}` : value;
    });
    const place = cellOf(maps[0]).title.split(": ")[0];
    readout.textContent = `${place}: ${values.join(", ")}`;
    readout.classList.add("live");
  };
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  for (const map of maps) {
    const rows = map.tBodies[0].rows;
    map.addEventListener("pointerover", (event) => {
      const cell = event.target.closest("tbody td");
      if (cell) show(cell.parentNode.sectionRowIndex, cell.cellIndex - 1);
    });
    map.addEventListener("focus", () => show(at.row, at.column));
    map.addEventListener("keydown", (event) => {
      const step = steps[event.key];
      if (!step) return;
      event.preventDefault();
      const clamp = (value, size) => Math.max(0, Math.min(size - 1, value));
      show(clamp(at.row + step[0], rows.length), clamp(at.column + step[1], rows[0].cells.length - 1));
    });
  }
}
