"use strict";
// Tables sort by their header buttons; missing values stay at the end in both directions.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => {
    if (head.hasAttribute("data-unsorted")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = head.classList.contains("n") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const key = (row) => {
        const cell = row.cells[column];
        return cell ? cell.dataset.value ?? cell.textContent.trim() : "";
      };
      const rows = [...table.tBodies[0].rows].map((row) => ({ row, key: key(row) }));
      rows.sort((a, b) => {
        if (a.key === "" || b.key === "") return (a.key === "") - (b.key === "");
        const x = Number(a.key), y = Number(b.key);
        if (!Number.isNaN(x) && !Number.isNaN(y)) return sign * (x - y);
        return sign * a.key.localeCompare(b.key, "en", { numeric: true });
      });
      table.tBodies[0].append(...rows.map((entry) => entry.row));
    });
  });
}
// A filter bar offers one choice per key. Choices combine; one that leaves nothing beside the others cannot be taken.
function filterBar(bar, keys, items, apply) {
  const shown = document.createElement("output");
  const reset = document.createElement("button");
  reset.type = "button";
  reset.className = "reset";
  reset.textContent = "Show all";
  const selects = keys.map((key) => {
    const values = [...new Set(items.flatMap((item) => item[key]))].filter(Boolean);
    const select = document.createElement("select");
    select.name = key;
    select.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
    const preset = bar.dataset["preset" + key[0].toUpperCase() + key.slice(1)];
    if (preset && values.includes(preset)) select.value = preset;
    const label = document.createElement("label");
    label.append(key.replace("_", " "), select);
    label.hidden = values.length < 2;
    bar.append(label);
    select.addEventListener("change", update);
    return select;
  });
  bar.append(reset, shown);
  bar.setAttribute("role", "group");
  bar.setAttribute("aria-label", bar.dataset.label ?? "Filters");
  reset.addEventListener("click", () => {
    selects.forEach((select) => { select.value = ""; });
    update();
    selects.find((select) => !select.parentElement.hidden)?.focus();
  });
  const fits = (item, select) => !select.value || item[select.name].includes(select.value);
  function update() {
    const matches = items.map((item) => selects.every((select) => fits(item, select)));
    for (const select of selects) {
      const others = selects.filter((other) => other !== select);
      const left = new Set(items.filter((item) => others.every((other) => fits(item, other))).flatMap((item) => item[select.name]));
      for (const option of select.options) option.disabled = option.value !== "" && !left.has(option.value) && !option.selected;
    }
    reset.hidden = selects.every((select) => !select.value);
    shown.textContent = apply(matches, selects);
  }
  update();
}
// Rows carry data-<key> where a heading has a key: what stands in that column, the name alone where there is one.
for (const head of document.querySelectorAll("th[data-key]")) {
  for (const row of head.closest("table").tBodies[0].rows) {
    const cell = row.cells[head.cellIndex];
    const said = cell ? (cell.querySelector(".name") ?? cell).textContent : "", before = row.dataset[head.dataset.key];
    row.dataset[head.dataset.key] = before === undefined ? said : before + "|" + said;
  }
}
// A bar of a table takes its choices from what the rows carry as data-<key>, several values divided by a bar.
for (const bar of document.querySelectorAll("[data-filter-of]")) {
  const target = document.getElementById(bar.dataset.filterOf);
  const rows = [...(target.tBodies ? target.tBodies[0].rows : target.children)];
  const keys = bar.dataset.keys.split(",");
  const items = rows.map((row) => Object.fromEntries(keys.map((key) => [key, (row.dataset[key] ?? "").split("|")])));
  filterBar(bar, keys, items, (matches) => {
    rows.forEach((row, i) => { row.hidden = !matches[i]; });
    return matches.filter(Boolean).length + " of " + rows.length;
  });
}
// A link to a record opens it in a panel; without this script it leads to the record at the end of the page.
const panel = document.getElementById("panel");
for (const link of document.querySelectorAll("a[data-panel]")) {
  link.addEventListener("click", (event) => {
    const record = document.getElementById(link.hash.slice(1));
    if (!record || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const copy = record.cloneNode(true);
    copy.removeAttribute("id");
    copy.querySelectorAll("[id]").forEach((each) => each.removeAttribute("id"));
    panel.querySelector("h2").textContent = record.dataset.title;
    panel.querySelector(".panel-body").replaceChildren(copy);
    panel.dispatchEvent(new CustomEvent("fill", { detail: { id: record.id, copy } }));
    panel.showModal();
    panel.scrollTop = 0;
    panel.querySelector("h2").focus();
  });
}
panel.querySelector("button.close").addEventListener("click", () => panel.close());
panel.addEventListener("click", (event) => { if (event.target === panel) panel.close(); });
// Before printing, what is folded away is opened.
addEventListener("beforeprint", () => document.querySelectorAll("main details:not(.record)").forEach((each) => { each.open = true; }));
