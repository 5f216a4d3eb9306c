"use strict";
(() => {
  const rowsOf = (table) => Array.from(table.tBodies[0].rows);

  const valueOf = (row, column, kind) => {
    const cell = row.cells[column];
    return kind === "number" ? Number(cell.dataset.value) : cell.textContent;
  };

  const sort = (table, column, kind, descending) => {
    const rows = rowsOf(table).sort((first, second) => {
      const left = valueOf(first, column, kind), right = valueOf(second, column, kind);
      const order = kind === "number" ? left - right : left.localeCompare(right, "en", { numeric: true });
      return descending ? -order : order;
    });
    table.tBodies[0].append(...rows);
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    for (const heading of table.querySelectorAll("th[data-sort]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      heading.replaceChildren(button);
      button.addEventListener("click", () => {
        const numeric = heading.dataset.sort === "number";
        const before = heading.getAttribute("aria-sort");
        const descending = before ? before === "ascending" : numeric;
        for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sort(table, heading.cellIndex, heading.dataset.sort, descending);
      });
    }
  }

  for (const field of document.querySelectorAll("input[data-filter]")) {
    const table = document.getElementById(field.dataset.filter);
    const shown = document.querySelector(`output[data-count="${field.dataset.filter}"]`);
    const update = () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const row of rowsOf(table)) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        count += row.hidden ? 0 : 1;
      }
      shown.textContent = `${count} of ${rowsOf(table).length}`;
    };
    field.addEventListener("input", update);
    update();
  }

  const save = document.getElementById("save");
  save.hidden = false;
  save.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([document.getElementById("data").textContent], { type: "application/json" }));
    link.download = "audit.json";
    link.click();
  });
})();
