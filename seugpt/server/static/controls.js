// The settings of sampling, each with a line that says what it does.

import { number, onLanguage, t } from "./i18n.js";
import { make } from "./dom.js";

// The first values are sample.py's.
const CONTROLS = {
  temperature: { type: "range", min: 0, max: 2, step: 0.05, value: 0.8 },
  top_k: { type: "number", min: 0, max: 1000000, step: 1, value: 200 },
  top_p: { type: "range", min: 0.05, max: 1, step: 0.05, value: 1 },
  min_p: { type: "range", min: 0, max: 0.5, step: 0.01, value: 0 },
  max_tokens: { type: "number", min: 1, max: 4096, step: 1, value: 200 },
  seed: { type: "number", min: 0, max: 2 ** 53 - 1, step: 1, value: 1337 },
  repetition_penalty: { type: "range", min: 1, max: 2, step: 0.05, value: 1 },
  presence_penalty: { type: "range", min: -2, max: 2, step: 0.1, value: 0 },
  frequency_penalty: { type: "range", min: -2, max: 2, step: 0.1, value: 0 },
};
const PENALTIES = ["repetition_penalty", "presence_penalty", "frequency_penalty"];

// Returns a function that gives {name: value}. Penalties are folded away.
export function makeControls(box, names, onChange = () => {}) {
  const inputs = {};
  const folded = make("div");
  for (const name of names) {
    const control = makeControl(`${box.id}-${name}`, name, onChange);
    inputs[name] = control.querySelector("input");
    (PENALTIES.includes(name) ? folded : box).append(control);
  }
  if (folded.children.length) {
    box.append(
      make("details", {}, make("summary", { attributes: { "data-t": "penalties" } }), folded),
    );
  }
  return () => Object.fromEntries(names.map((name) => [name, valueOf(inputs[name], name)]));
}

// What lies outside the limits becomes the nearest value that does not.
function valueOf(input, name) {
  const { min, max, step, value } = CONTROLS[name];
  const given = Number.isNaN(input.valueAsNumber) ? value : input.valueAsNumber;
  const inside = Math.min(Math.max(given, min), max);
  return Number.isInteger(step) ? Math.round(inside) : inside;
}

function makeControl(id, name, onChange) {
  const help = make("p", {
    className: "help",
    id: `${id}-help`,
    attributes: { "data-t": `${name}Help` },
  });
  const label = make("label", { htmlFor: id, attributes: { "data-t": name } });
  const input = make("input", {
    id,
    ...CONTROLS[name],
    attributes: { "aria-describedby": help.id },
  });
  const output = make("output", { htmlFor: id });
  const show = () => {
    if (input.type === "range")
      output.textContent = number(input.valueAsNumber, CONTROLS[name].step < 0.1 ? 2 : 1);
  };
  input.addEventListener("input", () => {
    show();
    onChange();
  });
  onLanguage(show);
  show();
  return make("div", { className: "control" }, label, output, input, help);
}
