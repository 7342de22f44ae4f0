"use strict";
// Figures name their colours; the style sheet says what they are in light and in dark.
const figures = JSON.parse(document.getElementById("figures").textContent);
const root = document.documentElement;

function themed(value, style) {
  if (typeof value === "string") return value.startsWith("var(--") ? style.getPropertyValue(value.slice(4, -1)).trim() : value;
  if (Array.isArray(value)) return value.map((item) => themed(item, style));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item, style)]));
}

function draw() {
  const style = getComputedStyle(root);
  const touch = matchMedia("(pointer: coarse)").matches; // where a drag scrolls the page
  const config = { displaylogo: false, displayModeBar: touch ? false : "hover", modeBarButtons: [["toImage"]] };
  for (const node of document.querySelectorAll(".plot")) {
    const { data, layout } = themed(figures[node.dataset.figure], style);
    Plotly.react(node, data, { ...layout, width: node.clientWidth, dragmode: touch ? false : "zoom" }, config);
  }
}

function prepare(printing) {
  root.classList.toggle("printing", printing);
  draw();
}

const nav = document.querySelector("nav");
for (const section of document.querySelectorAll("section:not(#answer)")) {
  nav.append(Object.assign(document.createElement("a"), { href: `#${section.id}`, textContent: section.querySelector("h2").textContent }));
}

draw();
let width = innerWidth;
addEventListener("resize", () => requestAnimationFrame(() => innerWidth !== width && ((width = innerWidth), draw())));
addEventListener("beforeprint", () => prepare(true));
addEventListener("afterprint", () => prepare(false));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

// The image under the pointer, cut from the sheet.
const scatter = document.querySelector('[data-figure="features"]');
if (scatter) {
  const card = document.getElementById("card");
  const tile = card.querySelector("i");
  const { columns, width, height } = card.dataset;
  const scale = Math.max(1, Math.round(84 / height));
  Object.assign(tile.style, { width: `${width * scale}px`, height: `${height * scale}px`, backgroundSize: `${columns * width * scale}px` });
  scatter.on("plotly_hover", ({ points: [point], event }) => {
    const column = point.customdata % columns;
    const row = Math.floor(point.customdata / columns);
    tile.style.backgroundPosition = `${-column * width * scale}px ${-row * height * scale}px`;
    card.querySelector("span").textContent = point.text;
    card.hidden = false;
    card.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - card.offsetWidth - 8))}px`;
    card.style.top = `${Math.max(8, Math.min(event.clientY + 14, innerHeight - card.offsetHeight - 8))}px`;
  });
  scatter.on("plotly_unhover", () => (card.hidden = true));
}

// The table of trials: a click on a heading sorts, every word of the filter must be in a row.
const table = document.getElementById("trials");
if (table) {
  const rows = [...table.tBodies[0].rows];
  const order = new Intl.Collator(undefined, { numeric: true });
  table.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("th");
    if (!head) return;
    const numeric = head.classList.contains("number");
    const rising = head.ariaSort ? head.ariaSort === "descending" : !numeric;
    for (const other of head.parentNode.cells) other.ariaSort = null;
    head.ariaSort = rising ? "ascending" : "descending";
    const value = (row) => row.cells[head.cellIndex].dataset.value;
    const sign = rising ? 1 : -1;
    rows.sort((a, b) => {
      const [one, two] = [value(a), value(b)];
      if (one === "" || two === "") return (one === "") - (two === "");
      return sign * (numeric ? one - two : order.compare(one, two));
    });
    table.tBodies[0].append(...rows);
  });
  const shown = document.getElementById("shown");
  document.getElementById("filter").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    shown.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  });
}
