// Compare: two models, one prompt, the same dice.

import { post, stream } from "./api.js";
import { makeControls } from "./controls.js";
import { $, make, modelOption } from "./dom.js";
import { onLanguage, percent, t, translate } from "./i18n.js";
import { TokenText } from "./tokens.js";

let settings;
let panes;
let running = null;

export function startCompare(models) {
  settings = makeControls($("compare-controls"), [
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "max_tokens",
    "seed",
  ]);
  const names = models.map((model) => model.name);
  // The untrained model, which comes last, beside the first one.
  panes = [makePane("left", names, names.length - 1), makePane("right", names, 0)];
  $("compare-start").onclick = begin;
  $("compare-stop").onclick = () => running?.abort();
  onLanguage(() => panes.forEach((pane) => pane.text.select(pane.text.index)));
}

function makePane(side, names, chosen) {
  const label = make("label", { htmlFor: `compare-${side}`, attributes: { "data-t": side } });
  const select = make("select", { id: `compare-${side}` }, ...names.map(modelOption));
  select.selectedIndex = chosen;
  const box = make("div", {
    className: "tokens output",
    attributes: { "data-label": "modelText", "data-empty": "emptyText" },
  });
  const readout = make("p", { className: "help readout" });
  const element = make(
    "div",
    { className: "pane" },
    make("div", { className: "which" }, label, select),
    box,
    readout,
  );
  $("compare-panes").append(element);
  const text = new TokenText(box, (index) => {
    const token = text?.tokens[index];
    readout.textContent = token ? describe(token) : t("readoutEmpty");
  });
  readout.textContent = t("readoutEmpty");
  translate(element);
  return { select, text };
}

function describe({ label, p, top }) {
  const likeliest = top.slice(0, 4).map((each) => `${each.label} ${percent(each.p)}`);
  return t("readout", { label, percent: percent(p), top: likeliest.join(" · ") });
}

async function begin() {
  running?.abort();
  const controller = new AbortController();
  running = controller;
  $("compare-stop").disabled = false;
  $("compare-status").textContent = t("writing");
  const results = await Promise.allSettled(panes.map((pane) => write(pane, controller.signal)));
  if (running !== controller) return;
  running = null;
  $("compare-stop").disabled = true;
  const failed = results.find((result) => result.reason && result.reason.name !== "AbortError");
  $("compare-status").textContent = failed ? failed.reason.message : "";
}

async function write({ select, text }, signal) {
  const prompt = $("compare-prompt").value;
  text.clear(prompt);
  const content = { model: select.value, text: prompt, ...settings() };
  for await (const token of stream(content, signal)) {
    if (signal.aborted) return;
    if (!token.done) text.add(token);
  }
}
