// Runs: those of the folder, their curves as they grow, their reports.
import { get, post } from "./api.js";
import { chart, short } from "./chart.js";
import { $, h } from "./dom.js";
import { icon } from "./icons.js";

/** Milliseconds between looks at what is new. */
const EVERY = 2000;
const NAMES = { pretrain: "Pretraining", finetune: "Fine-tuning" };
const PAGES = { "report.html": "Report", "costs.html": "Costs" };

let runs = [];
let folder = "";
/** The open run: name, tab, and for each stage what was read so far. */
let open = null;

function problem(error) {
  $("problem").textContent = error?.message ?? "";
  $("problem").hidden = !error;
}

const when = (seconds) => new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

function list() {
  const item = (run) => h("a", { href: `#${encodeURIComponent(run.name)}`, "aria-current": run.name === open?.name ? "page" : null },
    h("strong", {}, run.name), run.live && h("span", { class: "live" }, "training"), h("span", { class: "soft" }, when(run.changed)));
  $("list").replaceChildren(...runs.map(item));
  if (!runs.length) $("run").replaceChildren(h("div", { class: "empty" }, h("h2", {}, "No runs yet"), h("p", {}, "This page shows runs in ", h("code", {}, folder), ". ", h("code", {}, "homegrown grow"), " makes one; its curves appear here while it trains.")));
}

/** A stage's metrics, from where they were last read. */
async function read(stage) {
  const known = open.stages[stage] ??= { next: 0, steps: [], heldout: [], skipped: 0, sample: null };
  for (let more = true; more;) {
    const name = open.name;
    const told = await get(`/runs/of/${encodeURIComponent(name)}/metrics/${stage}?from=${known.next}`);
    if (name !== open?.name) return;
    // The file was begun anew.
    if (told.from < known.next) Object.assign(known, { steps: [], heldout: [], skipped: 0, sample: null });
    for (const line of told.text.split("\n")) {
      if (!line) continue;
      let metric;
      try { metric = JSON.parse(line); } catch { continue; }
      if (metric.loss !== undefined) known.steps.push(metric);
      if (metric.heldout_bits_per_byte !== undefined) known.heldout.push(metric);
      if (metric.skipped !== undefined) known.skipped += 1;
      if (metric.sample) known.sample = metric;
    }
    known.next = told.next;
    more = told.more;
  }
}

function figure(title, legend, svg) {
  return h("figure", { class: "chart" }, h("figcaption", {}, h("span", {}, title), h("span", {}, legend)), svg);
}

function stageView(stage, known) {
  const last = known.steps.at(-1);
  if (!last) return h("section", { class: "stage" }, h("h3", {}, NAMES[stage]), h("p", { class: "soft" }, "No step yet."));
  const points = (metrics, key) => metrics.map((m) => [m.tokens, m[key]]);
  const held = known.heldout.at(-1);
  const figures = [["Tokens", short(last.tokens)], ["Step", short(last.step)], ["Loss", last.loss.toFixed(3)], held && ["Held out, bits/byte", held.heldout_bits_per_byte.toFixed(3)], ["Learning rate", short(last.lr)], known.skipped > 0 && ["Steps not learned from", known.skipped]];
  const charts = [figure("Loss, nats per token", "by tokens", chart(`Loss of ${stage}, now ${last.loss.toFixed(3)}`, [{ points: points(known.steps, "loss"), smooth: true }]))];
  if (known.heldout.length) charts.push(figure("Held-out text, bits per byte", "by tokens", chart("Held-out bits per byte", [{ points: points(known.heldout, "heldout_bits_per_byte"), second: true }])));
  charts.push(figure("Length of the gradient", "by tokens", chart("Length of the gradient", [{ points: points(known.steps, "grad_norm"), smooth: true }])));
  charts.push(figure("Learning rate", "by tokens", chart("Learning rate", [{ points: points(known.steps, "lr") }])));
  return h("section", { class: "stage" }, h("h3", {}, NAMES[stage]),
    h("dl", { class: "figures" }, figures.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    h("div", { class: "charts" }, charts),
    known.sample && h("div", {}, h("p", { class: "soft" }, `What it wrote at step ${known.sample.step}`), h("p", { class: "sample" }, h("strong", {}, known.sample.sample.prompt), known.sample.sample.text)));
}

function head(run) {
  const tab = (name, label) => h("button", { type: "button", class: "pill", "aria-pressed": String(open.tab === name), onclick: () => show(name) }, label);
  return [h("h2", {}, run.name, run.live && h("span", { class: "live" }, "training")), h("p", { class: "soft" }, [run.source, run.seed !== null && run.seed !== undefined && `seed ${run.seed}`, run.command].filter(Boolean).join(" · ")),
    h("div", { class: "tabs" }, tab("curves", "Curves"), run.pages.map((page) => tab(page, PAGES[page])))];
}

function curves(run) {
  if (open.tab !== "curves") return;
  const stages = run.stages.map((stage) => stageView(stage, open.stages[stage] ?? { steps: [] }));
  $("run").replaceChildren(...head(run), ...(stages.length ? stages.reverse() : [h("p", { class: "empty" }, "This run has not begun to train.")]));
}

async function show(tab) {
  const run = runs.find((r) => r.name === open.name);
  open.tab = tab;
  try {
    if (tab === "curves") return curves(run);
    const { address } = await post(`/runs/of/${encodeURIComponent(run.name)}/open`, { page: tab });
    $("run").replaceChildren(...head(run), h("iframe", { src: address, title: `${PAGES[tab]} of ${run.name}`, sandbox: "" }));
  } catch (error) { problem(error); }
}

async function look() {
  try {
    ({ data: runs, folder } = await get("/runs/all"));
    const name = location.hash ? decodeURIComponent(location.hash.slice(1)) : runs[0]?.name;
    const run = runs.find((r) => r.name === name);
    if (run && open?.name !== name) open = { name, tab: "curves", stages: {} };
    if (!run) open = null;
    list();
    if (run) {
      const before = JSON.stringify(Object.values(open.stages).map((s) => s.next));
      const state = JSON.stringify([run.live, run.pages, run.stages]);
      for (const stage of run.stages) await read(stage);
      if (open?.name === name && (before !== JSON.stringify(Object.values(open.stages).map((s) => s.next)) || open.state !== state)) curves(run);
      if (open) open.state = state;
    } else if (runs.length) $("run").replaceChildren(h("p", { class: "empty" }, "There is no run of this name."));
    problem(null);
  } catch (error) { problem(error); }
}

async function forever() {
  for (;;) {
    if (!document.hidden) await look();
    await new Promise((wake) => { setTimeout(wake, EVERY); });
  }
}

$("theme").append(icon("theme"));
$("theme").addEventListener("click", () => window.homegrownTheme.toggle());
addEventListener("hashchange", async () => { await look(); $("run").focus(); });
forever();
