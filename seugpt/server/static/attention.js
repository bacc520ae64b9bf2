// Attention of one layer: a small map of each head, and what one of the tokens attends to.

import { $, make } from "./dom.js";
import { percent, t } from "./i18n.js";
import { TokenText } from "./tokens.js";

let head = 0; // stays while the text or the layer changes

export function drawAttention(box, { tokens, weights }) {
  head = Math.min(head, weights.length - 1);
  const strip = make("div", {
    className: "tokens strip",
    attributes: { "aria-label": t("attentionText") },
  });
  const text = new TokenText(strip, (index) => shade(strip, weights[head], index));
  for (const token of tokens) text.add({ ...token, text: token.label });
  for (const element of strip.children) element.append(make("small"));
  const maps = weights.map((ofHead, n) => {
    const name = t("headNumber", { n });
    const canvas = make("canvas", { width: tokens.length, height: tokens.length });
    draw(canvas, ofHead);
    const radio = make("input", { type: "radio", name: "head", value: n, checked: n === head });
    radio.onchange = () => {
      head = n;
      text.select(text.index);
    };
    return make("label", { className: "map" }, radio, canvas, make("span", { text: name }));
  });
  const help = make("p", { className: "help", text: t("headsHelp") });
  const legend = make("legend", { text: t("heads") });
  box.replaceChildren(strip, make("fieldset", { className: "maps" }, legend, help, ...maps));
  text.select(tokens.length - 1);
}

// Before the token: where it looks; after it: who looks at it.
function shade(strip, weights, index) {
  [...strip.children].forEach((element, n) => {
    const weight = n <= index ? weights[index]?.[n] : weights[n][index];
    element.classList.toggle("later", n > index);
    element.style.setProperty("--weight", Math.sqrt(weight ?? 0)); // 2% is visible beside 100%
    element.lastChild.textContent = weight >= 0.005 ? percent(weight) : "";
  });
}

// One pixel for each weight, in the colour of the page.
function draw(canvas, weights) {
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle($("view")).getPropertyValue("--accent");
  weights.forEach((row, y) =>
    row.forEach((weight, x) => {
      context.globalAlpha = Math.sqrt(weight);
      context.fillRect(x, y, 1, 1);
    }),
  );
}
