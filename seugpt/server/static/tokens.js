// A text shown token by token: shaded, and explored by pointer or arrow keys.

import { percent, t } from "./i18n.js";
import { make } from "./dom.js";

const DWELL = 70; // ms that the pointer rests on a token, so that crossing the text selects nothing
// The lowest probability of each shade, from none to strong: the stronger, the less expected.
const SHADES = [0.9, 0.6, 0.3, 0.1, 0.02, 0];
let count = 0;

export const shadeOf = (p) => SHADES.findIndex((lowest) => p >= lowest);

export function drawLegend(box) {
  const swatches = SHADES.map((lowest, shade) =>
    make("span", {
      className: `swatch shade${shade}`,
      text: lowest ? `≥ ${100 * lowest}%` : `< ${100 * SHADES[shade - 1]}%`,
    }),
  );
  box.replaceChildren(make("span", { text: t("probability") }), ...swatches);
}

export class TokenText {
  // box: a listbox to be; onSelect(index): a token was pointed at, -1 for none; onEnter: at Enter.
  constructor(box, onSelect, onEnter = () => {}) {
    this.box = box;
    this.onSelect = onSelect;
    this.tokens = [];
    this.index = -1;
    this.isHeld = false;
    this.follows = true; // the end of the text, until someone scrolls up
    this.frame = 0;
    box.setAttribute("role", "listbox");
    box.tabIndex = 0;
    box.addEventListener("scroll", () => {
      this.follows = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    });
    box.addEventListener("pointerover", (event) => this.point(event));
    box.addEventListener("pointerleave", () => clearTimeout(this.timer));
    box.addEventListener("click", (event) => this.hold(event));
    box.addEventListener("keydown", (event) => this.press(event, onEnter));
  }

  // prompt: what stands before the tokens.
  clear(prompt = "") {
    this.tokens = [];
    this.box.replaceChildren();
    this.box.dataset.prompt = visible(prompt);
    this.follows = true;
    this.isHeld = false;
    this.select(-1);
  }

  cut(length) {
    this.tokens.length = length;
    while (this.box.children.length > length) this.box.lastChild.remove();
    this.isHeld = false;
    this.select(-1);
  }

  // token: {id, text, label, p}; text is "" while its last character is incomplete.
  add(token) {
    const element = make("span", {
      id: `token-${count++}`,
      attributes: { role: "option", "aria-selected": "false" },
    });
    this.tokens.push(token);
    this.box.append(element);
    this.draw(this.tokens.length - 1);
    // Once a frame, as each look at scrollHeight lays the whole text out.
    if (!this.frame) this.frame = requestAnimationFrame(() => this.scroll());
  }

  scroll() {
    this.frame = 0;
    if (this.follows) this.box.scrollTop = this.box.scrollHeight;
  }

  draw(index) {
    const token = this.tokens[index];
    const element = this.box.children[index];
    element.textContent = token.text ? visible(token.text) : "▪";
    element.className = token.text ? "" : "part";
    if (token.p !== undefined) element.classList.add(`shade${shadeOf(token.p)}`);
    if (token.isChosen) element.classList.add("chosen");
    element.setAttribute(
      "aria-label",
      token.p === undefined
        ? token.label
        : t("tokenLabel", { label: token.label, percent: percent(token.p) }),
    );
  }

  setTexts(texts) {
    texts.forEach((text, index) => {
      this.tokens[index].text = text;
      this.draw(index);
    });
  }

  select(index) {
    this.box.children[this.index]?.setAttribute("aria-selected", "false");
    this.index = index;
    const element = this.box.children[index];
    if (element) {
      element.setAttribute("aria-selected", "true");
      this.box.setAttribute("aria-activedescendant", element.id);
      const top = element.offsetTop - this.box.offsetTop;
      const bottom = top + element.offsetHeight;
      if (top < this.box.scrollTop) this.box.scrollTop = top - 8;
      if (bottom > this.box.scrollTop + this.box.clientHeight)
        this.box.scrollTop = bottom - this.box.clientHeight + 8;
    } else this.box.removeAttribute("aria-activedescendant");
    this.onSelect(index);
  }

  indexOf(event) {
    const element = event.target.closest("[role=option]");
    return element ? [...this.box.children].indexOf(element) : -1;
  }

  point(event) {
    clearTimeout(this.timer);
    const index = this.indexOf(event);
    if (event.pointerType === "touch" || this.isHeld || index < 0) return;
    this.timer = setTimeout(() => this.select(index), DWELL);
  }

  hold(event) {
    clearTimeout(this.timer);
    const index = this.indexOf(event);
    this.isHeld = index >= 0 && !(this.isHeld && index === this.index);
    if (index >= 0) this.select(index);
    this.box.classList.toggle("held", this.isHeld);
  }

  press(event, onEnter) {
    const last = this.tokens.length - 1;
    const to = { ArrowLeft: this.index - 1, ArrowRight: this.index + 1, Home: 0, End: last }[
      event.key
    ];
    if (to !== undefined && last >= 0) {
      this.isHeld = true; // the pointer may rest anywhere meanwhile
      this.select(Math.min(Math.max(to, 0), last));
    } else if (event.key === "Escape") this.isHeld = false;
    else if (["Enter", "ArrowDown"].includes(event.key) && this.index >= 0) onEnter();
    else return;
    this.box.classList.toggle("held", this.isHeld);
    event.preventDefault();
  }
}

// Line ends are seen, and break the line; control characters are written as codes.
function visible(text) {
  const code = (control) => `\\x${control.charCodeAt(0).toString(16).padStart(2, "0")}`;
  return text.replaceAll("\n", "↵\n").replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f]/g, code);
}
