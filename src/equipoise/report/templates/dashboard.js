import { drawBars, drawHeat, drawLines, drawParts, element, short } from "./dashboard-charts.js";

const LIVE_MILLISECONDS = 2000;
const LIVE_MARKS = 3;
const LIVE_SAMPLES = 300;

const at = (id) => document.getElementById(id);
const form = at("question");
let choices, answer = null, seed = 0;

// --- Light and dark ---

{
  const root = document.documentElement;
  const wantsDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (wantsDark.matches ? "dark" : "light")) === "dark";
  const tell = () => at("theme").setAttribute("aria-pressed", String(isDark()));
  at("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    tell();
  });
  wantsDark.addEventListener("change", tell);
  tell();
}

async function fetched(path, question) {
  const options = question && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question) };
  const reply = await fetch(path, options);
  const document = await reply.json();
  if (!reply.ok) throw new Error(document.error);
  return document;
}

// --- The question ---

const isRecorded = () => at("routing").value === "recorded";
const experts = () => (isRecorded() ? choices.recording : choices.model[at("model").value]).experts;
const valueOf = (input) => ("power" in input.dataset ? 2 ** input.value : Number(input.value));

function fill(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => element("option", { value }, text)));
}

function setUp() {
  fill(at("model"), Object.keys(choices.model).map((name) => [name, name]));
  fill(at("gpu"), Object.entries(choices.gpu));
  fill(at("dispatch"), Object.keys(choices.dispatch).map((name) => [name, name]));
  fill(at("phase"), choices.phase.map((name) => [name, name]));
  fill(at("layer"), [["", "least balanced"]]);
  const defaults = { ...choices.defaults, skew: 1, drift: 0.05 };
  for (const input of form.querySelectorAll("input, select")) {
    if (input.id === "routing") continue;
    input.value = "power" in input.dataset ? Math.log2(defaults[input.name]) : defaults[input.name];
  }
  if (choices.recording) {
    at("routing-row").hidden = false;
    at("routing").options[1].textContent = choices.recording.name;
    at("routing").value = "recorded";
  }
}

// Keeps to what the experts allow, and says what every control is set to.
function tellControls() {
  at("num_ranks").max = Math.min(7, Math.floor(Math.log2(experts())));
  const ranks = valueOf(at("num_ranks"));
  at("redundant_per_rank").max = Math.min(8, experts() - Math.ceil(experts() / ranks));
  for (const row of document.querySelectorAll(".generated")) row.hidden = isRecorded();
  for (const input of form.querySelectorAll("input")) {
    const text = input.step < 1 ? valueOf(input).toFixed(2) : valueOf(input).toLocaleString("en");
    form.querySelector(`output[for="${input.id}"]`).value = text;
    input.setAttribute("aria-valuetext", text);
  }
  at("dispatch-hint").textContent = `Each copy of an expert gets ${choices.dispatch[at("dispatch").value]}.`;
  const { experts: number, layers } = choices.model[at("model").value];
  at("model-hint").textContent = `${number} experts in each of ${layers} layers; its widths set the times.`;
}

function question() {
  const asked = { seed };
  for (const input of form.querySelectorAll("input")) asked[input.name] = valueOf(input);
  for (const select of form.querySelectorAll("select")) asked[select.name] = select.value;
  if (isRecorded()) { delete asked.skew; delete asked.drift; }
  if (at("layer").value !== "") asked.layer = Number(at("layer").value);
  return asked;
}

// One question at a time; of those that come meanwhile, the last.
let isAsking = false, isStale = false;
async function ask() {
  isStale = true;
  if (isAsking) return;
  isAsking = true;
  at("answer").setAttribute("aria-busy", "true");
  while (isStale) {
    isStale = false;
    const began = performance.now();
    try {
      answer = await fetched("/api/what-if", question());
      at("error").hidden = true;
      tell();
      at("took").textContent = `This answer took ${Math.round(performance.now() - began)} ms.`;
    } catch (error) {
      at("error").textContent = error instanceof TypeError ? "The dashboard does not answer; is it still running?" : error.message;
      at("error").hidden = false;
    }
  }
  isAsking = false;
  at("answer").setAttribute("aria-busy", "false");
}

// --- The answer ---

function figures(list, entries) {
  list.replaceChildren(...entries.map(({ key, name, before, after, unit, meaning }) => {
    const value = element("dd", { "data-key": key });
    if (before !== null && before !== after) {
      value.append(element("span", { class: "sr" }, "before "), element("s", {}, short(before)), element("span", { class: "sr" }, ", after "));
    }
    value.append(element("b", {}, `${typeof after === "number" ? short(after) : after}${unit === "×" ? "×" : unit && ` ${unit}`}`));
    return element("div", {}, element("dt", {}, name), value, element("dd", { class: "meaning" }, meaning));
  }));
}

function tell() {
  const { batches, layer, curve, notes, facts } = answer;
  const dispatch = answer.question.dispatch;
  at("headline").textContent = answer.headline;
  figures(at("figures"), answer.figures);
  fill(at("layer"), [["", "least balanced"], ...answer.layers.map((id) => [id, String(id)])]);
  at("layer").value = answer.question.layer ?? "";
  at("lplb-reason").textContent = batches.lplb_reason && `LPLB's ring does not fit: ${batches.lplb_reason}`;
  at("notes").replaceChildren(...notes.map((note) => element("li", {}, note)));
  at("facts").replaceChildren(...Object.entries(facts).flatMap(([part, said]) => [element("dt", {}, part), element("dd", {}, said)]));
  draw(batches, layer, curve, dispatch);
}

function draw(batches, layer, curve, dispatch) {
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const lines = [
    { name: "without balancing", style: "before", values: batches.without },
    { name: "EPLB: even split", style: "after", values: batches.eplb },
    ...(batches.lplb ? [{ name: "LPLB: ring, split by batch", style: "lplb", values: batches.lplb }] : []),
    ...(dispatch === "even" ? [] : [{ name: `EPLB's copies, ${dispatch}`, style: "chosen", values: batches.chosen }]),
    { name: "noise floor", style: "floor", kind: "dash", values: batches.without.map(() => batches.floor) },
  ];
  drawLines(at("batches"), {
    label: `Busiest rank by batch: ${lines.map(({ name, values }) => `${name} ${short(mean(values))}`).join(", ")}`,
    x: batches.without.map((_, i) => i + 1), xTitle: "batch", yTitle: "busiest rank over mean, stretched near 1", lines,
  });
  const busiest = (values) => short(Math.max(...values));
  drawBars(at("ranks"), {
    label: `Ranks of layer ${layer.layer}: the busiest has ${busiest(layer.ranks_before)} times the mean without balancing and ${busiest(layer.ranks_after)} with it`,
    names: layer.ranks_before.map((_, i) => i), xTitle: `rank, layer ${layer.layer}`, yTitle: "load over mean",
    outer: layer.ranks_before, inner: layer.ranks_after, light: layer.shared_after,
    key: [{ name: "without", style: "before", kind: "hollow" }, { name: "with, experts of one copy", style: "after", kind: "bar" }, { name: "with, copied experts", style: "after", kind: "dim" }],
    head: ["rank", "without", "with", "of it copied"],
    rows: layer.ranks_before.map((value, i) => [String(i), value, layer.ranks_after[i], layer.shared_after[i]]),
  });
  drawBars(at("experts"), {
    label: `The hottest expert of layer ${layer.layer} has ${short(layer.loads[0])} times the mean load and ${layer.copies[0]} copies`,
    names: layer.experts, xTitle: "expert, hottest first", yTitle: "load over mean",
    outer: layer.loads, inner: layer.loads.map((load, i) => load / layer.copies[i]), dots: layer.copies,
    key: [{ name: "expert", style: "before", kind: "hollow" }, { name: "one copy of it", style: "after", kind: "bar" }, { name: "dots: copies", style: "lplb", kind: "bar" }],
    head: ["expert", "load", "copies"],
    rows: layer.experts.map((id, i) => [String(id), layer.loads[i], String(layer.copies[i])]),
  });
  const milliseconds = (values) => values.map((value) => 1000 * value);
  drawLines(at("curve"), {
    label: `Step time against tokens: ${short(1000 * curve.before_seconds[0])} ms at ${curve.tokens[0]} tokens, knee at ${short(curve.knee_tokens)} tokens`,
    x: curve.tokens, xTitle: "tokens of a step", yTitle: "ms", xScale: "logarithmic", yScale: "logarithmic",
    lines: [{ name: "without balancing", style: "before", values: milliseconds(curve.before_seconds) }, { name: "with", style: "after", values: milliseconds(curve.after_seconds) }],
    marks: [{ at: curve.knee_tokens, text: "knee", style: "floor" }, { at: answer.question.step_tokens, text: "this batch", style: "chosen" }],
  });
  const names = ["experts", "waiting", "exchanges", "attention and the rest"];
  drawParts(at("parts"), {
    label: `A step without balancing waits ${short(1000 * answer.parts_before.waiting)} ms and with it ${short(1000 * answer.parts_after.waiting)} ms`,
    parts: names, unit: "ms",
    bars: [
      { name: "without balancing", values: names.map((name) => 1000 * answer.parts_before[name]) },
      { name: "with balancing", values: names.map((name) => 1000 * answer.parts_after[name]) },
    ],
  });
}

// --- The running group ---

const seen = [];
const known = (value) => typeof value === "number";
const count = (value) => (known(value) ? String(value) : null);

async function look() {
  let sight;
  try {
    sight = await fetched("/api/live");
  } catch {
    sight = { error: "The dashboard does not answer; is it still running?" };
  }
  if (sight.error) {
    at("live-status").textContent = `${sight.error} What is below is of ${seen.length ? "the last answer" : "no answer yet"}.`;
  } else {
    at("live-status").textContent = [`${choices.metrics} at ${new Date().toLocaleTimeString("en-GB")}`, ...sight.alarms.map((name) => `alarm ${name}`)].join(" · ");
    seen.push({ at: performance.now() / 1000, ...sight });
    if (seen.length > LIVE_SAMPLES) seen.shift();
    tellGroup();
  }
  setTimeout(look, LIVE_MILLISECONDS);
}

function tellGroup() {
  const now = seen[seen.length - 1];
  const phase = Object.keys(now.imbalance).at(-1);
  const excess = (sight) => (known(sight.noise_floor[phase]) ? sight.imbalance[phase] - sight.noise_floor[phase] : null);
  const entries = [
    ["imbalance", "Busiest rank", now.imbalance[phase], "×", `Load of the busiest rank over the mean in the last window${phase ? ` of ${phase}` : ""}.`],
    ["excess", "Above chance", excess(now), "", "Difference to the imbalance of a fair router: what balancing can gain."],
    ["state", "State", now.state || null, "", "Present state of the controller."],
    ["ranks", "Ranks", count(now.ranks), "", "Ranks that serve together."],
    ["map", "Map", count(now.map_version), "", "Changes of the map so far."],
    ["step", "Step", known(now.step_seconds) ? 1000 * now.step_seconds : null, "ms", "Recent mean time of a forward pass."],
    ["tokens", "Tokens", now.tokens_per_second, "/s", "Tokens generated per second, recently."],
    ["stall", "Stalls", known(now.stalled) ? 100 * now.stalled : null, "%", "Share of recent time in which serving waited for balancing."],
    ["moved", "Moved", now.moved_bytes ? now.moved_bytes / 1e9 : null, "GB", "Bytes of experts that ranks have received since the start."],
    ["kept", "Rebalances kept", count(now.rebalances.kept), "", "Attempts to balance whose gain was measured afterwards, and is above 0."],
    ["failures", "Failures", count(now.failures), "", "Planners and transfers that failed since the start; serving went on."],
  ];
  figures(at("live-figures"), entries.filter(([, , value]) => known(value) || typeof value === "string").map(([key, name, after, unit, meaning]) => ({ key, name, before: null, after, unit, meaning })));
  tellRanks(now.layer_rank_load);
  if (!phase || seen.length < 2) return;
  const values = (of) => seen.map((sight) => of(sight) ?? null);  // null: a gap in the line
  drawLines(at("live-chart"), {
    label: `Busiest rank of the running group, now ${short(now.imbalance[phase])}`,
    x: seen.map((sight) => Math.round(sight.at - seen[0].at)), xTitle: "seconds since this page opened", yTitle: "busiest rank over mean",
    lines: [
      { name: phase, style: "after", values: values((sight) => sight.imbalance[phase]) },
      { name: "of it chance", style: "floor", kind: "dash", values: values((sight) => sight.noise_floor[phase]) },
    ],
    marks: seen.slice(1).flatMap((sight, i) => (sight.map_version === seen[i].map_version ? [] : [{ at: Math.round(sight.at - seen[0].at), text: `map ${sight.map_version}`, style: "chosen" }])).slice(-LIVE_MARKS),
  });
}

function tellRanks(loads) {
  const layers = Object.keys(loads), values = Object.values(loads);
  at("live-heat").hidden = !layers.length;
  if (!layers.length) return;
  const most = Math.max(...values.flat());
  drawHeat(at("live-heat"), {
    label: `Layers by ranks of the running group: the busiest has ${short(most)} times the mean of its layer`,
    rows: layers, columns: values[0].map((_, rank) => String(rank)), values, xTitle: "rank", yTitle: "layer",
  });
}

// --- The start ---

choices = await fetched("/api/choices");
setUp();
tellControls();
if (choices.metrics) {
  at("live").hidden = false;
  look();
}
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", (event) => {
  if (["model", "routing"].includes(event.target.id)) at("layer").value = "";
  tellControls();
  ask();
});
at("layer").addEventListener("input", ask);
at("draw").addEventListener("click", () => { seed += 1; ask(); });
let lastWidth = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== lastWidth && answer) { lastWidth = innerWidth; tell(); }
});
await ask();
