// Small charts as SVG, drawn in the pixels that they get, each with its numbers as a table.

const NAMESPACE = "http://www.w3.org/2000/svg";
const LEFT = 46, RIGHT = 10, TOP = 10, BOTTOM = 34;

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(name, attributes, text) {
  const made = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

export function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2);
}

const onAxis = (value) => (Number.isInteger(value) ? (value || 0).toLocaleString("en") : short(value));  // no -0

// Puts a chart into a figure, in place of the one before; what was opened stays open.
function show(figure, { label, svg, key, head, rows }) {
  const isOpen = figure.querySelector("details")?.open ?? false;
  for (const old of figure.querySelectorAll(".key, .chart, details")) old.remove();
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  const caption = figure.querySelector("figcaption");
  caption.before(legend(key), svg);
  const details = element("details", {}, element("summary", {}, "Numbers"), table(head, rows));
  details.open = isOpen;
  figure.append(details);
}

function legend(entries) {
  const list = element("ul", { class: "key" });
  for (const { name, style, kind } of entries) {
    const mark = shape("svg", { viewBox: "0 0 18 10", "aria-hidden": "true" });
    mark.append(
      kind === "bar" ? shape("rect", { width: 14, height: 10, class: `f-${style}` })
        : kind === "dim" ? shape("rect", { width: 14, height: 10, class: `f-${style} dim` })
        : kind === "hollow" ? shape("rect", { x: 1, y: 1, width: 12, height: 8, class: `s-${style} hollow`, fill: "none" })
        : shape("path", { d: "M0 5H18", class: `s-${style} ${kind === "dash" ? "dash" : ""}`, "stroke-width": 2, "stroke-dasharray": kind === "dash" ? "4 4" : "none" }),
    );
    list.append(element("li", {}, mark, name));
  }
  return list;
}

function table(head, rows) {
  const line = (cells, name) => element("tr", {}, ...cells.map((cell) => element(name, name === "th" ? { scope: "col" } : {}, cell)));
  return element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Numbers" },
    element("table", {}, element("thead", {}, line(head, "th")), element("tbody", {}, ...rows.map((row) => line(row.map((cell) => typeof cell === "number" ? short(cell) : cell), "td")))));
}

function canvas(figure, height) {
  const width = Math.max(240, figure.clientWidth);
  return { svg: shape("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, height }), width, height };
}

function ticks(low, high) {
  const raw = (high - low) / 4 || 1;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * unit).find((s) => s >= raw * 0.999);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(value);
  return found;
}

const SCALES = {
  linear: { of: (v) => v, ticks },
  logarithmic: { of: Math.log, ticks: powers },
  // Stretched near 1, where balanced ranks differ.
  aboveOne: { of: (v) => Math.sqrt(Math.max(0, v - 1)), ticks: (_, high) => ABOVE_ONE.filter((v) => v <= high) },
};
const ABOVE_ONE = [1, 1.05, 1.2, 1.5, 2, 3, 5, 8, 12, 20, 30];

function powers(low, high) {
  const found = [];
  for (let n = Math.floor(Math.log10(low)); n <= Math.ceil(Math.log10(high)); n++) {
    for (const m of [1, 2, 5]) if (m * 10 ** n >= low && m * 10 ** n <= high) found.push(m * 10 ** n);
  }
  return found;
}

function yAxis(svg, width, y, values, title) {
  for (const value of values) {
    svg.append(shape("path", { class: "grid", d: `M${LEFT} ${y(value)}H${width - RIGHT}` }));
    svg.append(shape("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, onAxis(value)));
  }
  svg.append(shape("text", { x: 0, y: 4 }, title));
}

// Lines over positions: {x: [], lines: [{name, style, kind, values}], marks: [{at, text, style}]}.
export function drawLines(figure, { label, x, xTitle, yTitle, lines, xScale = "linear", yScale = "aboveOne", marks = [] }) {
  const { svg, width, height } = canvas(figure, 250);
  const all = lines.flatMap((line) => line.values).filter((v) => v !== null);
  const bottom = yScale === "aboveOne" ? 1 : Math.min(...all) / 1.15;
  const top = Math.max(1.2, Math.max(...all) * 1.05);
  const place = ({ of }, from, to, start, end) => (v) => start + ((of(v) - of(from)) / ((of(to) - of(from)) || 1)) * (end - start);
  const px = place(SCALES[xScale], x[0], x[x.length - 1], LEFT + 6, width - RIGHT - 4);
  const py = place(SCALES[yScale], bottom, top, height - BOTTOM, TOP + 8);
  yAxis(svg, width, py, SCALES[yScale].ticks(bottom, top), yTitle);
  const every = Math.ceil(x.length / Math.max(2, Math.floor(width / 62)));
  x.forEach((value, i) => {
    if (i % every === 0) svg.append(shape("text", { x: px(value), y: height - BOTTOM + 16, "text-anchor": "middle" }, onAxis(value)));
  });
  svg.append(shape("text", { x: width - RIGHT, y: height - 3, "text-anchor": "end" }, xTitle));
  for (const { at, text, style } of marks) {
    if (at < x[0] || at > x[x.length - 1]) continue;
    svg.append(shape("path", { class: `line dash s-${style}`, d: `M${px(at)} ${TOP + 8}V${height - BOTTOM}` }));
    const leftwards = px(at) + 8 * text.length > width - RIGHT; // else it would be cut off
    svg.append(shape("text", { x: px(at) + (leftwards ? -5 : 5), y: TOP + 16 + 15 * marks.findIndex((m) => m.text === text), "text-anchor": leftwards ? "end" : "start" }, text));
  }
  for (const { name, style, kind, values } of lines) {
    let pen = "M";
    const path = values.map((value, i) => {
      if (value === null) { pen = "M"; return ""; }
      const step = `${pen}${px(x[i]).toFixed(1)} ${py(value).toFixed(1)}`;
      pen = "L";
      return step;
    }).join("");
    svg.append(shape("path", { class: `line s-${style} ${kind === "dash" ? "dash" : ""}`, d: path, "data-name": name }));
  }
  show(figure, { label, svg, key: lines, head: [xTitle, ...lines.map((line) => line.name)], rows: x.map((value, i) => [onAxis(value), ...lines.map((line) => line.values[i] ?? "")]) });
}

// Bars side by side, each hollow up to `outer` and filled up to `inner`, the top `light` of it dim.
export function drawBars(figure, { label, names, xTitle, yTitle, outer, inner, light, dots, key, head, rows }) {
  const { svg, width, height } = canvas(figure, 220);
  const roof = dots ? 10 + 5 * Math.min(12, Math.max(...dots)) : 0;
  const top = Math.max(1.1, ...outer, ...inner);
  const y = (v) => height - BOTTOM - (v / top) * (height - BOTTOM - TOP - 10 - roof);
  yAxis(svg, width, y, ticks(0, top), yTitle);
  const slot = (width - LEFT - RIGHT) / names.length;
  const thick = Math.max(1, slot * 0.72);
  const every = Math.ceil(names.length / Math.floor((width - LEFT) / 34));
  names.forEach((name, i) => {
    const x = LEFT + slot * i + (slot - thick) / 2;
    const bar = (from, to, style) => svg.append(shape("rect", { x, y: y(to), width: thick, height: Math.max(0, y(from) - y(to)), class: style }));
    const solid = inner[i] - (light?.[i] ?? 0);
    bar(0, solid, "f-after");
    if (light) bar(solid, inner[i], "f-after dim");
    bar(0, outer[i], "s-before hollow");
    if (dots && dots[i] > 1) {
      for (let n = 0; n < Math.min(12, dots[i]); n++) {
        svg.append(shape("circle", { cx: x + thick / 2, cy: y(outer[i]) - 6 - 5 * n, r: Math.min(2, thick / 2), class: "f-lplb" }));
      }
    }
    if (i % every === 0) svg.append(shape("text", { x: x + thick / 2, y: height - BOTTOM + 16, "text-anchor": "middle" }, name));
  });
  svg.append(shape("path", { class: "line dash s-floor", d: `M${LEFT} ${y(1)}H${width - RIGHT}` }));
  svg.append(shape("text", { x: width - RIGHT, y: height - 3, "text-anchor": "end" }, xTitle));
  show(figure, { label, svg, key, head, rows });
}

// Two bars of parts, in the same unit.
export function drawParts(figure, { label, parts, bars, unit }) {
  const { svg, width, height } = canvas(figure, 118);
  const styles = ["after", "before", "lplb", "chosen"];
  const total = Math.max(...bars.map(({ values }) => values.reduce((a, b) => a + b, 0)));
  bars.forEach(({ name, values }, row) => {
    let at = 0;
    const y = 14 + row * 52;
    svg.append(shape("text", { x: 0, y }, `${name}: ${short(values.reduce((a, b) => a + b, 0))} ${unit}`));
    values.forEach((value, i) => {
      const size = (value / total) * width;
      svg.append(shape("rect", { x: at, y: y + 6, width: Math.max(0, size - 1), height: 24, class: `f-${styles[i]}` }));
      at += size;
    });
  });
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  show(figure, {
    label, svg,
    key: parts.map((name, i) => ({ name, style: styles[i], kind: "bar" })),
    head: ["", ...bars.map(({ name }) => name)],
    rows: parts.map((name, i) => [name, ...bars.map(({ values }) => values[i])]),
  });
}

// Cells of rows over columns: {rows: names, columns: names, values: rows of numbers, 1 the mean}.
export function drawHeat(figure, { label, rows, columns, values, xTitle, yTitle }) {
  const cell = Math.max(6, Math.min(22, Math.floor(360 / rows.length)));
  const { svg, width, height } = canvas(figure, TOP + BOTTOM + cell * rows.length);
  const wide = (width - LEFT - RIGHT) / columns.length;
  values.forEach((row, r) => row.forEach((value, c) => svg.append(shape("rect", {
    x: LEFT + c * wide, y: TOP + r * cell, width: wide, height: cell,
    class: value < 1 ? "f-lplb" : "f-before",
    "fill-opacity": Math.min(1, value < 1 ? 1 - value : (value - 1) / 2).toFixed(2),
  }))));
  const every = (count, room) => Math.max(1, Math.ceil(count / room));
  const down = every(rows.length, (cell * rows.length) / 14), across = every(columns.length, width / 34);
  rows.forEach((name, r) => r % down || svg.append(shape("text", { x: LEFT - 6, y: TOP + (r + 0.5) * cell + 4, "text-anchor": "end" }, name)));
  columns.forEach((name, c) => c % across || svg.append(shape("text", { x: LEFT + (c + 0.5) * wide, y: height - BOTTOM + 14, "text-anchor": "middle" }, name)));
  svg.append(shape("text", { x: width - RIGHT, y: height - 4, "text-anchor": "end" }, xTitle), shape("text", { x: 0, y: 8 }, yTitle));
  show(figure, {
    label, svg,
    key: [{ name: "above the mean", style: "before", kind: "bar" }, { name: "below", style: "lplb", kind: "bar" }],
    head: [yTitle, ...columns], rows: values.map((row, r) => [rows[r], ...row]),
  });
}
