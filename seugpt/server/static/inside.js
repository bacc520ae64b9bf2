// Look inside: a text as the model reads it, in five views, each with what the server computes.

import { post } from "./api.js";
import { drawAttention } from "./attention.js";
import { makeControls } from "./controls.js";
import { $, debounce, make } from "./dom.js";
import { number, onLanguage, percent, t, translate } from "./i18n.js";
import { drawBars } from "./likeliest.js";
import { TokenText } from "./tokens.js";

const PATHS = { lens: "logit_lens" }; // of views that are named otherwise
const DRAW = {
  tokens: drawTokens,
  attention: drawAttention,
  next: drawNext,
  lens: drawLens,
  surprisal: drawSurprisal,
};
const PAUSE = 250; // ms without typing

let modelNow; // () -> the model of /api/info that is chosen
let view = "tokens";
let options = {}; // of the view: the layer, or how the next token is drawn
let isShown = false;
let pending = null;

export function startInside(getModel) {
  modelNow = getModel;
  const typed = debounce(refresh, PAUSE);
  $("inside-text").addEventListener("input", typed);
  $("model").addEventListener("change", openView);
  $("views").addEventListener("change", (event) => {
    view = event.target.value;
    openView();
  });
  onLanguage(openView);
}

export function showInside(isVisible) {
  isShown = isVisible;
  if (isShown) openView();
}

// What stays while the text changes: controls, and a place for the drawing.
function openView() {
  if (!isShown) return;
  $("view-help").textContent = t(`${view}Help`);
  const drawing = make("div", { id: "drawing" });
  $("view").replaceChildren(drawing);
  options = {};
  if (view === "attention") drawing.before(layerChoice());
  if (view === "next") {
    const box = make("div", { id: "next-controls", className: "control-row" });
    const values = makeControls(box, ["temperature", "top_k", "top_p", "min_p"], () => {
      options = values();
      refresh();
    });
    options = values();
    drawing.before(box);
  }
  translate($("view"));
  refresh();
}

function layerChoice() {
  const layers = [...Array(modelNow().n_layer).keys()];
  options = { layer: layers.at(-1) };
  const select = make(
    "select",
    { id: "layer", attributes: { "aria-describedby": "layer-help" } },
    ...layers.map((n) => make("option", { text: n, value: n })),
  );
  select.value = options.layer;
  select.onchange = () => {
    options = { layer: Number(select.value) };
    refresh();
  };
  const label = make("label", { htmlFor: "layer", attributes: { "data-t": "layer" } });
  const help = make("p", {
    id: "layer-help",
    className: "help",
    attributes: { "data-t": "layerHelp" },
  });
  return make(
    "div",
    { className: "control-row" },
    make("div", { className: "control" }, label, select, help),
  );
}

// Ask again. A request that a newer one has overtaken is given up.
async function refresh() {
  pending?.abort();
  pending = new AbortController();
  const { signal } = pending;
  const content = { model: modelNow().name, text: $("inside-text").value, ...options };
  try {
    const result = await post(PATHS[view] ?? view, content, signal);
    if (signal.aborted) return;
    const { tokens, total = 0 } = result;
    const isCut = tokens && total > tokens.length;
    $("inside-status").textContent = isCut
      ? t("shown", { shown: number(tokens.length), total: number(total) })
      : "";
    DRAW[view]($("drawing"), result);
  } catch (error) {
    if (error.name !== "AbortError") $("inside-status").textContent = error.message;
  }
}

// Tokens whose bytes make a character only together stand under one bracket.
function drawTokens(box, { tokens }) {
  const groups = [[]];
  for (const token of tokens) {
    groups.at(-1).push(token);
    if (!token.is_open) groups.push([]);
  }
  const chips = groups
    .filter((group) => group.length)
    .map((group) => {
      const parts = group.map((token) =>
        make(
          "span",
          { className: "chip" },
          make("b", { text: token.label }),
          make("small", { text: token.id }),
        ),
      );
      if (group.length === 1) return make("li", {}, ...parts);
      const text = group
        .map((token) => token.text)
        .join("")
        .trim();
      return make(
        "li",
        { className: "joined" },
        ...parts,
        make("span", { className: "whole", text }),
      );
    });
  const bytes = tokens.reduce((sum, token) => sum + token.bytes.split(" ").length, 0);
  const characters = [...tokens.map((token) => token.text).join("")].length;
  const counts = {
    tokens: number(tokens.length),
    characters: number(characters),
    bytes: number(bytes),
  };
  box.replaceChildren(
    make("ol", { className: "chips" }, ...chips),
    make("p", { className: "explain", text: t("tokenCounts", counts) }),
  );
}

function drawNext(box, { top, num_others: count, p_others: p }) {
  const list = make("ol", { className: "bars wide" });
  drawBars(list, top, top[0].id);
  const others = t("others", { count: number(count), percent: percent(p) });
  box.replaceChildren(list, make("p", { className: "explain", text: count ? others : "" }));
}

function drawLens(box, { tokens, rows, next_ids: nextIds }) {
  const head = make(
    "tr",
    {},
    make("th", { text: t("read"), scope: "row" }),
    ...tokens.map((token) => make("th", { text: token.label, scope: "col" })),
  );
  const body = rows.map((row, n) => {
    const name = n ? t("layerNumber", { n: n - 1 }) : t("embedding");
    const cells = row.map(({ id, label, p }, column) => {
      const cell = make(
        "td",
        { className: id === nextIds[column] ? "correct" : "" },
        make("b", { text: label }),
        make("small", { text: percent(p) }),
      );
      cell.style.setProperty("--weight", p);
      return cell;
    });
    return make("tr", {}, make("th", { text: name, scope: "row" }), ...cells);
  });
  const table = make(
    "table",
    { className: "lens" },
    make("thead", {}, head),
    make("tbody", {}, ...body),
  );
  const name = t("lens");
  box.replaceChildren(
    make(
      "div",
      { className: "scroll", tabIndex: 0, attributes: { role: "region", "aria-label": name } },
      table,
    ),
  );
}

function drawSurprisal(box, { tokens, bits, ...means }) {
  const readout = make("p", { className: "explain readout", attributes: { role: "status" } });
  const values = {
    token: number(means.per_token, 2),
    char: number(means.per_char, 2),
    uniform: number(means.uniform, 1),
  };
  const summary = t("surprisalMeans", values);
  const list = make("div", {
    className: "tokens output fitting",
    attributes: { "aria-label": t("attentionText") },
  });
  const text = new TokenText(list, (index) => {
    const token = tokens[index];
    if (!token) return;
    const { label } = token;
    const about = { label, bits: number(bits[index] ?? 0, 2), percent: percent(2 ** -bits[index]) };
    readout.textContent =
      bits[index] === null ? t("notPredicted", { label }) : t("surprisalOf", about);
  });
  tokens.forEach((token, n) => text.add(bits[n] === null ? token : { ...token, p: 2 ** -bits[n] }));
  text.follows = false;
  box.replaceChildren(make("p", { className: "explain", text: summary }), list, readout);
}
