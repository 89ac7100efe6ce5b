"use strict";
// The page is complete without this script. The script sorts, searches and filters the rows of tables.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.firstElementChild.childNodes);
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const isText = header.classList.contains("name");
      const before = header.getAttribute("aria-sort");
      const down = before ? before === "ascending" : !isText;
      const order = new Intl.Collator(undefined, { numeric: true });
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...body.rows].map((row) => [isText ? key(row) : Number(key(row)), row]);
      rows.sort(([a], [b]) => (isText ? order.compare(a, b) : a - b) * (down ? -1 : 1));
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...rows.map(([, row]) => row));
    });
  });
}

function connect(control, event, shows) {
  const rows = [...document.getElementById(control.dataset.rows).tBodies[0].rows];
  const output = document.querySelector(`output[for="${control.id}"]`);
  const update = () => {
    let count = 0;
    for (const row of rows) {
      row.hidden = !shows(row, control.value);
      count += row.hidden ? 0 : 1;
    }
    output.textContent = `${count.toLocaleString("en")} of ${rows.length.toLocaleString("en")} ${output.dataset.noun}`;
  };
  control.addEventListener(event, update);
  update(); // A browser may restore the value after a reload.
}

for (const input of document.querySelectorAll("input[data-rows]")) {
  connect(input, "input", (row, text) => row.cells[0].textContent.toLowerCase().includes(text.trim().toLowerCase()));
}
for (const select of document.querySelectorAll("select[data-rows]")) {
  connect(select, "change", (row, name) => !name || row.dataset.label === name || row.dataset.prediction === name);
}
