// The leaderboard: tasks and data sets are cards, metrics are tables, protocols and amounts of labels are columns.
const boards = [...document.querySelectorAll("#boards .card[data-task]")].flatMap((card) =>
  [...card.querySelectorAll("details.metric")].flatMap((part) =>
    [...part.querySelectorAll("thead tr:last-child th[data-labels]")].map((head) => ({ card, part, head, column: head.cellIndex }))));
let chosen = "";
const boardBar = document.getElementById("board-filters");
filterBar(boardBar, ["task", "data_set", "protocol", "labels", "metric"], boards.map((one) => ({
  task: [one.card.dataset.task], data_set: [one.card.dataset.dataset], protocol: [one.head.dataset.protocol],
  labels: [one.head.dataset.labels], metric: [one.part.dataset.metric],
})), (matches, selects) => {
  const metric = selects.find((select) => select.name === "metric").value;
  const shown = new Set(boards.filter((_, i) => matches[i]).flatMap((one) => [one.card, one.part]));
  for (const card of new Set(boards.map((one) => one.card))) card.hidden = !shown.has(card);
  for (const part of new Set(boards.map((one) => one.part))) {
    if (metric !== chosen) part.open = metric ? true : part.hasAttribute("data-first");
    part.hidden = !shown.has(part);
    const columns = boards.map((one, i) => [one, matches[i]]).filter(([one]) => one.part === part);
    for (const group of part.querySelectorAll("thead tr.groups th")) {
      const left = columns.filter(([one, match]) => match && one.head.dataset.protocol === group.dataset.protocol).length;
      group.hidden = !left;
      group.colSpan = Math.max(left, 1);
    }
    for (const [one, match] of columns) one.head.hidden = !match;
    for (const row of part.querySelector("tbody").rows) {
      for (const [one, match] of columns) row.cells[one.column].hidden = !match;
      row.hidden = columns.every(([one, match]) => !match || row.cells[one.column].classList.contains("none"));
    }
  }
  chosen = metric;
  const parts = [...new Set(boards.map((one) => one.part))];
  return parts.filter((part) => !part.hidden).length + " of " + parts.length + " tables";
});

// What stands behind a cell is kept compressed, and drawn when it is opened.
let unpacked;
function behind() {
  unpacked ??= (async () => {
    const bytes = Uint8Array.from(atob(document.getElementById("behind").textContent), (c) => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  })();
  return unpacked;
}
function make(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "circle", "title"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const [left, right, top_, bottom] = [44, 292, 8, 238];
const atX = (share) => (left + share * (right - left)).toFixed(1), atY = (share) => (bottom - share * (bottom - top_)).toFixed(1);
function plot(title, said, x, y, reference, marks) {
  const label = title + ": " + y.toLowerCase() + " over " + x.toLowerCase() + (said ? "; " + said : "");
  const svg = make("svg", { class: "chart", viewBox: "0 0 300 284", role: "img", "aria-label": label });
  for (const tick of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
    svg.append(make("line", { class: "grid", x1: left, x2: right, y1: atY(tick), y2: atY(tick) }),
      make("text", { x: left - 6, y: +atY(tick) + 4, "text-anchor": "end" }, tick.toFixed(1)),
      make("text", { x: atX(tick), y: bottom + 16, "text-anchor": "middle" }, tick.toFixed(1)));
  }
  svg.append(make("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
    make("text", { class: "title", x: (left + right) / 2, y: bottom + 36, "text-anchor": "middle" }, x),
    make("text", { class: "title", x: 11, y: (top_ + bottom) / 2, "text-anchor": "middle", transform: "rotate(-90 11 " + (top_ + bottom) / 2 + ")" }, y),
    make("line", { class: "reference", x1: left, y1: atY(reference[0]), x2: right, y2: atY(reference[1]) }), ...marks);
  return make("figure", {}, make("h4", {}, title), svg, make("figcaption", { class: "small" }, said ?? ""));
}
const tone = "var(--series-1)";
function line(added) {
  let value = 0;
  const steps = added.map((step, i) => atX(i / (added.length - 1)) + " " + atY((value += step) / 1000));
  return [make("path", { class: "line", style: "stroke:" + tone, d: "M" + steps.join("L") })];
}
function bins(found) {
  const path = found.map(([score, share]) => atX(score) + " " + atY(share)).join("L");
  const most = Math.max(...found.map((bin) => bin[2]));
  return [make("path", { class: "line", style: "stroke:" + tone + ";stroke-width:1", d: "M" + path }), ...found.map(([score, share, n]) =>
    make("circle", { class: "mark", style: "fill:" + tone, cx: atX(score), cy: atY(share), r: (3 + 4 * Math.sqrt(n / most)).toFixed(1) },
      make("title", {}, "predicted " + score.toFixed(3) + ", observed " + share.toFixed(3) + ", n = " + n)))];
}
function matrix({ cell, threshold, counts: [hit, missed, alarm, clear] }) {
  const entry = (count, all, good) => make("td", { class: "n " + (good ? "right" : "wrong"), style: "--part:" + Math.round(all ? 100 * count / all : 0) + "%" },
    make("strong", {}, String(count)), make("span", { class: "int under" }, all ? Math.round(100 * count / all) + " %" : ""));
  const row = (name, ...cells) => make("tr", {}, make("th", { scope: "row" }, name), ...cells);
  return make("table", { class: "matrix" }, make("caption", {}, "Threshold " + threshold + (cell ? " · " + cell : "")),
    make("thead", {}, make("tr", {}, make("td"), ...["called present", "called absent"].map((name) => make("th", { scope: "col", class: "n" }, name)))),
    make("tbody", {}, row("present", entry(hit, hit + missed, true), entry(missed, hit + missed, false)),
      row("absent", entry(alarm, alarm + clear, false), entry(clear, alarm + clear, true))));
}
function charts(one) {
  const nodes = [];
  if (one.roc) nodes.push(plot("ROC", one.said.roc, "False-positive rate", "True-positive rate", [0, 1], line(one.roc)));
  if (one.pr) nodes.push(plot("Precision and recall", one.said.pr, "Recall", "Precision", [one.share, one.share], line(one.pr)));
  if (one.bins.length) nodes.push(plot("Reliability", one.said.bins, "Predicted probability", "Observed share", [0, 1], bins(one.bins)));
  const confusion = one.confusion.length ? make("div", { class: "matrices" }, make("h4", {}, "Confusion at the validation threshold"), ...one.confusion.map(matrix)) : "";
  return [make("div", { class: "cards plots" }, ...nodes), confusion];
}
// Pictures and texts of a setting are those of the sections above, without what other settings answer.
function pictures(id) {
  const found = [];
  for (const shown of document.querySelectorAll("main [data-shows]")) {
    if (![...shown.querySelectorAll("[data-of]")].some((part) => part.dataset.of === id)) continue;
    const copy = shown.cloneNode(true);
    copy.removeAttribute("aria-labelledby");
    copy.querySelectorAll("[data-of]").forEach((part) => { if (part.dataset.of !== id) part.remove(); });
    copy.querySelectorAll("[id]").forEach((part) => part.removeAttribute("id"));
    copy.querySelectorAll("details").forEach((part) => part.replaceWith(...[...part.children].slice(1)));
    found.push(copy);
  }
  return found;
}
// A map is laid over the example that it was made of: smooth, in the colours of the other heat maps, clear where there is no evidence.
function heat(one) {
  const image = document.querySelector("#examples img[data-sample=" + CSS.escape(one.sample) + "]");
  if (!image) return [];
  const { colours, opacity } = JSON.parse(document.getElementById("heat").textContent);
  const [rows, columns] = one.grid, bytes = Uint8Array.from(atob(one.map), (c) => c.charCodeAt(0));
  const canvas = make("canvas", { width: columns, height: rows, role: "img", "aria-label": "Heat map of " + one.label + ", " + one.outcome });
  const context = canvas.getContext("2d"), pixels = context.createImageData(columns, rows);
  bytes.forEach((value, i) => {
    const at = (value / 255) * (colours.length - 1), low = Math.floor(at), high = Math.min(low + 1, colours.length - 1);
    colours[low].forEach((channel, k) => { pixels.data[4 * i + k] = channel + (at - low) * (colours[high][k] - channel); });
    pixels.data[4 * i + 3] = value * opacity;
  });
  context.putImageData(pixels, 0, 0);
  const base = image.cloneNode();
  base.removeAttribute("data-sample");
  return [make("figure", {}, make("div", { class: "frame heated" }, base, canvas),
    make("figcaption", {}, make("strong", {}, one.label + ": " + one.outcome), make("br", {}), "score " + one.score))];
}
// Scores are those of the table of all results: a row for each label, from the label on.
function scores(id) {
  const rows = [...document.querySelectorAll('#all a.cell[href="#' + id + '"]')].map((link) => link.closest("tr"));
  if (!rows.length) return "";
  const heads = [...rows[0].closest("table").tHead.rows[0].cells], names = heads.map((head) => head.textContent);
  const columns = [names.indexOf("n"), ...names.keys()].filter((i, k) => k === 0 || i > names.indexOf("Version"));
  const table = make("table", {}, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Label"), ...columns.map((i) => make("th", { scope: "col", class: "n" }, names[i])))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, make("th", { scope: "row" }, row.dataset.label), ...columns.map((i) => {
      const cell = row.cells[i].cloneNode(true);
      cell.className = "n";
      cell.querySelectorAll("a").forEach((link) => link.replaceWith(...link.childNodes));
      return cell;
    })))));
  return make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Scores" }, table);
}
async function fill(id, copy) {
  const place = copy.querySelector(".drawn"), data = await behind(), labels = data.settings[id] ?? [];
  if (labels.length) {
    const select = make("select", {}, ...labels.map((one) => make("option", {}, one.label)));
    const drawing = make("div", { "aria-live": "polite" });
    const draw = () => drawing.replaceChildren(...charts(labels[select.selectedIndex]));
    select.addEventListener("change", draw);
    draw();
    if (labels.length > 1) place.append(make("div", { class: "filters" }, make("label", {}, "label", select)));
    place.append(drawing);
  }
  place.append(scores(id));
  const heated = (data.maps[id] ?? []).flatMap(heat);
  if (heated.length) place.append(make("h4", {}, "Heat maps"), make("p", { class: "small" }, "Test images by what the encoder makes of them at its threshold, with the evidence for the label, each on a scale of its own."), make("div", { class: "images heats" }, ...heated));
  const shown = pictures(id);
  if (shown.length) place.append(make("h4", {}, "Examples"), make("div", { class: "images shown" }, ...shown));
  for (const part of copy.querySelectorAll("[data-cell]")) texts(part, data);
}
function texts(part, data) {
  for (const record of Object.values(data.cells[part.dataset.cell])) part.append(make("pre", {}, JSON.stringify(record, null, 2)));
}
panel.addEventListener("fill", (event) => fill(event.detail.id, event.detail.copy));
for (const part of document.querySelectorAll("#records details.record")) {
  part.addEventListener("toggle", () => fill(part.querySelector("[data-title]").id, part), { once: true });
}
// Volumes: one sheet of slices for each layer; the slider moves all of them to the same slice.
for (const card of document.querySelectorAll(".volume")) {
  const range = card.querySelector("input[type=range]"), shown = card.querySelector("output"), stack = card.querySelector(".stack");
  const columns = Number(card.dataset.columns), rows = Number(card.dataset.rows), select = card.querySelector("select");
  const layers = [...card.querySelectorAll(".slice")];
  const place = (at, count) => (count > 1 ? (100 * at) / (count - 1) : 0) + "%";
  for (const layer of layers) layer.style.backgroundSize = 100 * columns + "% " + 100 * rows + "%";
  const draw = () => {
    const at = Number(range.value);
    shown.textContent = at + 1;
    for (const layer of layers) layer.style.backgroundPosition = place(at % columns, columns) + " " + place(Math.floor(at / columns), rows);
  };
  const move = (steps) => {
    range.value = Number(range.value) + steps;
    draw();
  };
  range.addEventListener("input", draw);
  select?.addEventListener("change", () => {
    for (const part of card.querySelectorAll("[data-layer]")) part.hidden = part.dataset.layer !== select.value;
    const layer = layers.find((one) => one.dataset.layer === select.value);
    if (layer) range.value = layer.dataset.at;
    draw();
  });
  stack.addEventListener("wheel", (event) => {
    event.preventDefault();
    move(event.deltaY > 0 ? -1 : 1);
  }, { passive: false });
  // A drag over the whole height of the picture goes through all slices.
  let from = null;
  stack.addEventListener("pointerdown", (event) => {
    from = { y: event.clientY, at: Number(range.value) };
    stack.setPointerCapture(event.pointerId);
  });
  stack.addEventListener("pointermove", (event) => {
    if (from === null) return;
    range.value = from.at + Math.round(((from.y - event.clientY) / stack.clientHeight) * (Number(range.max) + 1));
    draw();
  });
  for (const end of ["pointerup", "pointercancel"]) stack.addEventListener(end, () => { from = null; });
  draw();
}
