// Train: the curves of the runs in this folder, live, with the samples of their evaluations.

import { get } from "./api.js";
import { lineChart } from "./charts.js";
import { $, make } from "./dom.js";
import { language, number, onLanguage, t } from "./i18n.js";

const INTERVAL = 2000; // ms between looks at the runs
const MAX_SHOWN = 2;

let chosen = []; // names, in the order of choice
let runs = {}; // {name: what the server has sent of it}
let listed = "";
let timer = null;

export function startTrain() {
  $("evaluation").addEventListener("input", draw);
  new ResizeObserver(draw).observe($("train"));
  onLanguage(() => {
    runs = {};
    listed = "";
    if (timer) update();
  });
}

export function showTrain(isVisible) {
  clearInterval(timer);
  timer = isVisible ? setInterval(update, INTERVAL) : null;
  if (isVisible) update();
}

async function update() {
  if (document.hidden) return;
  try {
    const list = (await get("runs")).runs;
    if (!chosen.length && list.length) chosen = [list[0].name];
    drawList(list);
    for (const name of chosen) await follow(name);
    $("train-status").textContent = list.length ? "" : t("noRuns");
    draw();
  } catch (error) {
    $("train-status").textContent = error.message;
  }
}

// Fetch what is new of a run: evaluations and samples after those known. A new run starts over.
async function follow(name) {
  const known = runs[name];
  const after = known?.evaluations.step.at(-1) ?? -1;
  const news = await get(`runs/${encodeURIComponent(name)}?after=${after}&lang=${language}`);
  if (known && news.steps >= known.steps) {
    for (const key of Object.keys(news.evaluations))
      news.evaluations[key].unshift(...known.evaluations[key]);
    news.samples.unshift(...known.samples);
  } else if (known) {
    delete runs[name];
    return follow(name);
  }
  runs[name] = news;
}

function drawList(list) {
  const content = JSON.stringify([list, chosen]);
  if (content === listed) return; // keep the focus where it is
  listed = content;
  const focused = document.activeElement?.value;
  const rows = list.map(({ name, steps, best }) => {
    const box = make("input", { type: "checkbox", value: name, checked: chosen.includes(name) });
    box.onchange = () => choose(name, box.checked);
    const key = best === null ? "runSteps" : "runFacts";
    const facts = t(key, { steps: number(steps), loss: best === null ? "" : number(best, 4) });
    return make(
      "label",
      { className: "run" },
      box,
      make("span", { text: name }),
      make("small", { text: facts }),
    );
  });
  $("runs").replaceChildren(...rows);
  if (focused)
    $("runs")
      .querySelector(`[value="${CSS.escape(focused)}"]`)
      ?.focus();
}

function choose(name, isChosen) {
  chosen = chosen.filter((each) => each !== name);
  if (isChosen) chosen = [...chosen, name].slice(-MAX_SHOWN);
  update();
}

function draw() {
  const shown = chosen.map((name) => runs[name]).filter(Boolean);
  const steps = [...new Set(shown.flatMap((run) => run.evaluations.step))].sort((a, b) => a - b);
  const slider = $("evaluation");
  const wasAtEnd = slider.value === slider.max;
  if (steps.length && Number(slider.max) !== steps.length - 1) {
    slider.max = steps.length - 1;
    if (wasAtEnd) slider.value = slider.max;
  }
  const step = steps[slider.value];
  slider.disabled = !steps.length;
  slider.setAttribute(
    "aria-valuetext",
    step === undefined ? "" : t("atStep", { step: number(step) }),
  );
  $("evaluation-step").textContent = step === undefined ? "" : t("atStep", { step: number(step) });
  $("findings").replaceChildren(...shown.map((run, n) => findingOf(run, n)));
  $("samples").replaceChildren(...shown.map((run) => sampleOf(run, step)).filter(Boolean));
  const label = t("curveOf", { names: chosen.join(", ") });
  const series = shown.flatMap(seriesOf).filter((line) => line.x.length);
  const axes = {
    width: $("curves").clientWidth,
    label,
    xLabel: t("stepAxis"),
    yLabel: t("lossAxis"),
    marker: step,
  };
  $("curves").replaceChildren(...(series.length ? [lineChart({ ...axes, series })] : []));
  $("curves-legend").replaceChildren(...shown.flatMap(legendOf));
}

function findingOf({ name, title }, n) {
  const words = make("span", { text: title.replace("\n", " ") });
  return make("p", { className: `finding run${n}` }, make("b", { text: name }), words);
}

function seriesOf({ losses, evaluations }, n) {
  const { step, train_loss: train, val_loss: val } = evaluations;
  return [
    { name: `batches run${n}`, x: losses.step, y: losses.loss },
    { name: `training run${n}`, x: step, y: train },
    { name: `validation run${n}`, x: step, y: val, hasDots: true },
  ];
}

function legendOf({ name }, n) {
  const prefix = chosen.length > 1 ? `${name}: ` : "";
  return ["validation", "training", "batches"].map((key) =>
    make("span", { className: `line ${key} run${n}`, text: prefix + t(key) }),
  );
}

// The last evaluation of a run up to a step, and what the model wrote then.
function sampleOf({ name, evaluations, samples }, step) {
  const index = evaluations.step.findLastIndex((each) => each <= step);
  if (index < 0) return null;
  const at = evaluations.step[index];
  const values = {
    name,
    step: number(at),
    train: number(evaluations.train_loss[index], 4),
    val: number(evaluations.val_loss[index], 4),
  };
  const text = samples.find((sample) => sample.step === at)?.text ?? "";
  return make(
    "div",
    { className: "pane" },
    make("p", { className: "help", text: t("sampleAt", values) }),
    make("p", { className: "sample", text }),
  );
}
