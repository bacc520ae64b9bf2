// The page: its tabs, its language, its model.

import { get } from "./api.js";
import { startCompare } from "./compare.js";
import { $, modelOption } from "./dom.js";
import { language, number, onLanguage, setLanguage, t, translate } from "./i18n.js";
import { showInside, startInside } from "./inside.js";
import { drawLegend } from "./tokens.js";
import { showTrain, startTrain } from "./train.js";
import { startWrite } from "./write.js";

const REFRESH_MS = 10000; // with serve.py --reload, a model's step goes on
const WIDE = matchMedia("(min-width: 70rem)"); // as in style.css: settings stand beside the text
const tabs = [...document.querySelectorAll("#tabs [role=tab]")];
let models = [];

function showTab(tab) {
  for (const each of tabs) {
    each.setAttribute("aria-selected", each === tab);
    each.tabIndex = each === tab ? 0 : -1;
    $(each.getAttribute("aria-controls")).hidden = each !== tab;
  }
  document.body.dataset.tab = tab.getAttribute("aria-controls");
  showInside(tab.id === "tab-inside");
  showTrain(tab.id === "tab-train");
}

function startTabs() {
  for (const tab of tabs) tab.onclick = () => showTab(tab);
  $("tabs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs.at((tabs.indexOf(document.activeElement) + step) % tabs.length);
    next.focus();
    showTab(next);
  });
}

function showFacts() {
  const model = models.find((each) => each.name === $("model").value);
  let facts = t("modelFacts", {
    parameters: number(model.parameters),
    layers: model.n_layer,
    heads: model.n_head,
    block: number(model.block_size),
  });
  if (model.step) facts += t("modelStep", { step: number(model.step) });
  if (model.val_loss !== null) facts += t("modelLoss", { loss: number(model.val_loss, 4) });
  $("model-facts").textContent = facts;
}

async function refreshFacts() {
  if (document.hidden) return;
  try {
    ({ models } = await get("info"));
  } catch {
    return; // the next request that the reader makes says what is wrong
  }
  showFacts();
}

function fillPrompts() {
  const first = [
    ["prompt", "firstPrompt"],
    ["compare-prompt", "firstPrompt"],
    ["inside-text", "firstText"],
  ];
  for (const [id, key] of first) $(id).value = t(key);
}

function openSettings() {
  for (const details of document.querySelectorAll("details.settings")) details.open = WIDE.matches;
}

function drawLegends() {
  document.querySelectorAll("[data-legend]").forEach(drawLegend);
}

async function start() {
  translate();
  fillPrompts();
  startTabs();
  try {
    ({ models } = await get("info"));
  } catch (error) {
    $("model-facts").textContent = error.message;
    return;
  }
  $("model").append(...models.map((model) => modelOption(model.name)));
  $("model").addEventListener("change", showFacts);
  $("language").onclick = () => setLanguage(language === "pt" ? "en" : "pt");
  startWrite();
  startInside(() => models.find((each) => each.name === $("model").value));
  startTrain();
  startCompare(models);
  showTab(tabs[0]);
  WIDE.addEventListener("change", openSettings);
  openSettings();
  drawLegends();
  showFacts();
  onLanguage(showFacts);
  onLanguage(drawLegends);
  translate();
  setInterval(refreshFacts, REFRESH_MS);
}

start();
