"use strict";
// Draws the figures, fills the heat maps from what the reader selects, sorts and saves tables.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const views = {};
  const element = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");

  // Numbers that stand in the page as base64.
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const whole = (text) => new Uint16Array(bytes(text));
  const scaled = ({ unit, packed }) => Float32Array.from(whole(packed), (x) => x * unit);

  // A specification with the colours of the theme; words in data stay as they are.
  function painted(spec, colours) {
    if (Array.isArray(spec)) return spec.map((x) => painted(x, colours));
    if (spec && typeof spec === "object")
      return Object.fromEntries(Object.entries(spec).map(([key, value]) =>
        [key, key === "values" || key === "domain" ? value : painted(value, colours)]));
    if (typeof spec === "string" && spec[0] === "$") return colours[spec.slice(1)] ?? spec;
    return spec;
  }

  async function draw() {
    const colours = data.themes[theme()];
    for (const { name, spec, renderer } of data.figures) {
      views[name]?.finalize();
      const found = await vegaEmbed("#" + name, painted({ ...spec, config: data.config }, colours), {
        ast: true, // evaluates expressions without eval, which the page's policy forbids
        actions: false, renderer, theme: "none", tooltip: { theme: theme() === "dark" ? "dark" : "" },
      });
      views[name] = found.view;
    }
    if (data.layouts.length) startMaps();
    document.body.dataset.drawn = theme();
  }

  // The heat maps ------------------------------------------------------------------------------
  const L = data.layers.length;
  const C = (data.ranks || []).length;
  const means = data.means && new Float32Array(bytes(data.means));
  const experts = data.experts && scaled(data.experts);
  const E = experts && experts.length / L;
  const layouts = data.layouts.map((x) => ({ ...x, multiples: scaled(x.multiples), slots: whole(x.slots) }));
  const multiple = (layout, step, row, column) => layout.multiples[(step * L + row) * C + column];
  const busiest = (layout, step, row) => {
    let most = 0;
    for (let c = 0; c < C; c++) most = Math.max(most, multiple(layout, step, row, c));
    return most;
  };

  const statistics = {
    mean: (values) => values.reduce((a, b) => a + b, 0) / values.length,
    worst: (values) => Math.max(...values),
    p95: (values) => {
      const sorted = [...values].sort((a, b) => a - b);
      const at = 0.95 * (sorted.length - 1), low = Math.floor(at);
      return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
    },
  };

  function selectedSteps() {
    if (element("statistic").value === "step") return [Number(element("step").value)];
    const stage = element("stage")?.value;
    const all = data.steps.map((_, i) => i);
    if (!stage) return all;
    const [name, value] = JSON.parse(stage);
    return all.filter((i) => data.labels[name][i] === value);
  }

  // A layer's cells: each rank, and the busiest, last.
  function cells(layout, row, steps, how) {
    const loaded = steps.filter((t) => means[t * L + row] > 0);
    if (!loaded.length) return new Array(C + 1).fill(0);
    const columns = [...Array(C).keys()];
    if (how === "sum") {
      const total = loaded.reduce((sum, t) => sum + means[t * L + row], 0);
      const shares = columns.map((c) =>
        loaded.reduce((sum, t) => sum + multiple(layout, t, row, c) * means[t * L + row], 0) / total);
      return [...shares, Math.max(...shares)];
    }
    const reduce = statistics[how] || statistics.mean;
    return [
      ...columns.map((c) => reduce(loaded.map((t) => multiple(layout, t, row, c)))),
      reduce(loaded.map((t) => busiest(layout, t, row))),
    ];
  }

  const names = () => [...data.ranks, "busiest"];
  let tables = []; // the cells shown, by layout and row

  function fillMaps() {
    const steps = selectedSteps(), how = element("statistic").value;
    tables = layouts.map((layout) => data.layers.map((_, row) => cells(layout, row, steps, how)));
    layouts.forEach((_, i) => {
      const rows = tables[i].flatMap((values, row) => values.map((value, c) =>
        ({ layer: data.layers[row], rank: names()[c], value })));
      views["heat-" + i].data("rows", rows).run();
    });
    const at = Number(element("step").value);
    element("which").textContent = `${data.steps[at]}` + Object.entries(data.labels)
      .map(([name, values]) => `, ${name} ${values[at]}`).join("");
    if (cursor) show();
  }

  // What a cell holds: its load under every layout, the step in which that was most, its experts.
  let cursor = null; // [row, column]

  function hottest(layout, row, column) {
    const value = (t) => (column < C ? multiple(layout, t, row, column) : busiest(layout, t, row));
    return selectedSteps().reduce((best, t) => (value(t) > value(best) ? t : best));
  }

  function held(layout, row, column) {
    const size = layout.firstSlots.at(-1);
    const [a, b] = [data.firstRanks[column], data.firstRanks[column + 1]].map((r) => layout.firstSlots[r]);
    const found = [...new Set(layout.slots.slice(row * size + a, row * size + b))];
    found.sort((x, y) => experts[row * E + y] - experts[row * E + x]);
    const some = found.slice(0, 4).map((e) => `${e} (${experts[row * E + e].toFixed(1)}×)`).join(", ");
    return `${found.length} experts, by load ${some}`;
  }

  function show() {
    const [row, column] = cursor;
    const where = column < C ? `rank ${data.ranks[column]}` : "busiest rank";
    const said = layouts.map((layout, i) => {
      const value = tables[i][row][column].toFixed(2);
      const t = hottest(layout, row, column);
      const most = column < C ? multiple(layout, t, row, column) : busiest(layout, t, row);
      const holds = column < C ? `; ${held(layout, row, column)}` : "";
      return `${layout.name} ${value}× (most ${most.toFixed(2)}× in step ${data.steps[t]})${holds}`;
    });
    element("readout").textContent = `layer ${data.layers[row]}, ${where}: ${said.join(" · ")}`;
    layouts.forEach((_, i) => views["heat-" + i]
      .data("at", [{ layer: data.layers[row], rank: names()[column] }]).run());
  }

  function point(row, column) {
    const clip = (x, size) => Math.min(size - 1, Math.max(0, x));
    const next = [clip(row, L), clip(column, C + 1)];
    if (cursor && next[0] === cursor[0] && next[1] === cursor[1]) return;
    cursor = next;
    show();
  }

  function startMaps() {
    layouts.forEach((_, i) => views["heat-" + i].addEventListener("mousemove", (event, item) => {
      const cell = item?.datum;
      if (cell && cell.rank !== undefined)
        point(data.layers.indexOf(cell.layer), names().indexOf(cell.rank));
    }));
    fillMaps();
    fillExperts();
    fillPlacement();
  }

  // Experts of every layer, in the order of their numbers or of their loads; copies are those of
  // the last layout.
  function fillExperts() {
    const last = layouts.at(-1), size = last.firstSlots.at(-1), byLoad = element("order").value === "load";
    const rows = data.layers.flatMap((layer, row) => {
      const copies = new Array(E).fill(0);
      for (const e of last.slots.subarray(row * size, (row + 1) * size)) copies[e]++;
      const ids = [...Array(E).keys()];
      if (byLoad) ids.sort((a, b) => experts[row * E + b] - experts[row * E + a]);
      return ids.map((id, expert) => ({ layer, expert, id, value: experts[row * E + id], copies: copies[id] }));
    });
    views.experts.data("rows", rows).run();
  }
  // One layer's slots on every rank, lines between the copies of an expert.
  function fillPlacement() {
    if (!views.placement) return;
    const last = layouts.at(-1), before = layouts[data.movesFrom], row = Number(element("layer").value);
    const of = (layout) => layout.slots.subarray(row * layout.firstSlots.at(-1), (row + 1) * layout.firstSlots.at(-1));
    const slots = of(last), homes = new Map();
    slots.forEach((expert, s) => homes.set(expert, [...(homes.get(expert) || []), s]));
    const each = last.firstSlots[1];
    const place = (s) => ({ rank: Math.floor(s / each), slot: s % each });
    const rows = [...slots].map((expert, s) => {
      const copies = homes.get(expert).length;
      const value = (experts[row * E + expert] / copies) * (slots.length / E);
      return { ...place(s), expert, copies, value, moved: Boolean(before) && of(before)[s] !== expert };
    });
    const links = [...homes.values()].flatMap((all) => all.slice(1).map((s, i) => {
      const { rank, slot } = place(all[i]);
      return { ...place(s), rank2: rank, slot2: slot };
    }));
    views.placement.data("rows", rows).data("links", links).run();
  }
  element("layer")?.addEventListener("change", fillPlacement);
  element("order")?.addEventListener("change", fillExperts);

  for (const map of document.querySelectorAll(".heat")) {
    map.addEventListener("focus", () => { if (!cursor) point(0, 0); });
    map.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step || !cursor) return;
      event.preventDefault();
      point(cursor[0] + step[0], cursor[1] + step[1]);
    });
  }

  // Curves: the arrow keys go along a line, and to the nearest point of the next one.
  for (const { name, reads } of data.figures.filter((x) => x.reads)) {
    const [line, along] = reads;
    let at = null; // the point that is read

    const read = (point) => {
      at = point;
      element(`${name}-point`).textContent = at._said;
      views[name].data("at", [{ ...at }]).run();
    };
    const step = (list, here, by) => list[Math.min(list.length - 1, Math.max(0, list.indexOf(here) + by))];

    element(name).addEventListener("focus", () => read(at ?? views[name].data("rows")[0]));
    element(name).addEventListener("keydown", (event) => {
      const [next, other] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
      if (next === undefined || !at) return;
      event.preventDefault();
      const rows = views[name].data("rows");
      const chosen = step([...new Set(rows.map((x) => x[line]))], at[line], other);
      const points = rows.filter((x) => x[line] === chosen);
      const far = (x) => Math.abs(x[along] - at[along]);
      const nearest = points.reduce((best, x) => (far(x) < far(best) ? x : best));
      read(step(points, nearest, next));
    });
  }

  element("statistic")?.addEventListener("change", fillMaps);
  element("stage")?.addEventListener("change", () => {
    if (element("statistic").value === "step") element("statistic").value = "mean";
    fillMaps();
  });
  element("step")?.addEventListener("input", () => {
    element("statistic").value = "step";
    fillMaps();
  });

  // Tables and files -----------------------------------------------------------------------------
  function save(name, kind, text) {
    const link = document.createElement("a");
    link.download = `${name}.${kind}`;
    link.href = text.startsWith("data:") ? text : URL.createObjectURL(new Blob([text]));
    link.click();
  }

  const quoted = (value) => {
    // A leading apostrophe keeps spreadsheets from running a cell as a formula.
    const text = String(value ?? "").replace(/^[=+@\t\r]|^-(?![\d.])/, "'$&");
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const csv = (head, rows) => [head, ...rows].map((row) => row.map(quoted).join(",")).join("\n") + "\n";

  function read(id) {
    const number = (text) => (text !== "" && isFinite(text) ? Number(text) : text === "" ? null : text);
    const rows = [...element(id).tBodies[0].rows].map((row) => [...row.cells].map((c) => number(c.dataset.v)));
    return [[...element(id).querySelectorAll(".sort")].map((b) => b.textContent), rows];
  }

  // The data of a figure that has most columns: what it is about.
  function rowsOf(name) {
    const sets = Object.values(views[name].getState({ data: (n) => n === "rows" || n.startsWith("source") }).data);
    const rows = sets.filter((x) => x.length).sort((a, b) => b.length - a.length)[0] || [];
    const head = Object.keys(rows[0] || {}).filter((key) => !key.startsWith("_"));
    return csv(head, rows.map((row) => head.map((key) => row[key])));
  }

  for (const button of document.querySelectorAll("[data-save]"))
    button.addEventListener("click", async () => {
      const { of, save: kind } = button.dataset;
      if (kind === "png") save(of, kind, await views[of].toImageURL("png", 2));
      else save(of, kind, kind === "svg" ? await views[of].toSVG() : rowsOf(of));
    });

  for (const button of document.querySelectorAll("[data-table]"))
    button.addEventListener("click", () => {
      const { of, table: kind } = button.dataset;
      const [head, rows] = read(of);
      const objects = rows.map((row) => Object.fromEntries(head.map((name, i) => [name, row[i]])));
      save(of, kind, kind === "csv" ? csv(head, rows) : JSON.stringify(objects, null, 1));
    });

  for (const button of document.querySelectorAll(".sort"))
    button.addEventListener("click", () => {
      const head = button.parentElement, body = head.closest("table").tBodies[0];
      const falls = head.getAttribute("aria-sort") !== "descending";
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falls ? "descending" : "ascending");
      const key = (row) => row.cells[head.cellIndex].dataset.v;
      const compare = (a, b) => (isFinite(a) && isFinite(b) ? a - b : a.localeCompare(b));
      const rows = [...body.rows].sort((x, y) => {
        const [a, b] = [key(x), key(y)];
        if (a === "" || b === "") return (a === "") - (b === ""); // what is unknown stays last
        return falls ? compare(b, a) : compare(a, b);
      });
      body.append(...rows);
    });

  // Light and dark -------------------------------------------------------------------------------
  const said = () => element("theme").setAttribute("aria-pressed", String(theme() === "dark"));
  let drawing = Promise.resolve();
  const again = () => { said(); drawing = drawing.then(draw); };
  element("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = theme() === "dark" ? "light" : "dark";
    again();
  });
  dark.addEventListener("change", again);
  again();
})();
