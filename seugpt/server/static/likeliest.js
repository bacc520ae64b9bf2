// Bars of the likeliest tokens.

import { percent, t } from "./i18n.js";
import { make } from "./dom.js";

// top: [{id, label, p, p_all}]; chosen: an id; onPick(alternative) makes each row a button.
export function drawBars(list, top, chosen, onPick) {
  const rows = top.map((alternative) => {
    const { id, label, p, p_all: before = p } = alternative;
    const bar = make("span", { className: "bar" }, barOf("before", before), barOf("now", p));
    const parts = [
      make("span", { className: "label", text: label }),
      bar,
      make("span", { className: "percent", text: percent(p) }),
    ];
    const row = make("li", { className: id === chosen ? "chosen" : "" });
    if (!onPick) {
      row.append(make("div", { className: "row" }, ...parts));
      return row;
    }
    parts.push(make("span", { className: "unseen", text: t("goOnWith") }));
    row.append(make("button", { className: "row", onclick: () => onPick(alternative) }, ...parts));
    return row;
  });
  list.replaceChildren(...rows);
}

function barOf(name, p) {
  const bar = make("span", { className: name });
  bar.style.width = `${100 * p}%`;
  return bar;
}

// Up and down among the buttons; Escape calls onLeave.
export function moveByArrows(list, onLeave) {
  list.addEventListener("keydown", (event) => {
    const buttons = [...list.querySelectorAll("button")];
    const index = buttons.indexOf(document.activeElement);
    if (event.key === "ArrowDown") buttons[Math.min(index + 1, buttons.length - 1)].focus();
    else if (event.key === "ArrowUp" && index > 0) buttons[index - 1].focus();
    else if (event.key === "Escape" || event.key === "ArrowUp") onLeave();
    else return;
    event.preventDefault();
  });
}
