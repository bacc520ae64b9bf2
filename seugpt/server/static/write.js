// Write: a text streams in; any token can be exchanged, and the text goes on from there.

import { post, stream } from "./api.js";
import { makeControls } from "./controls.js";
import { $ } from "./dom.js";
import { number, onLanguage, t } from "./i18n.js";
import { drawBars, moveByArrows } from "./likeliest.js";
import { TokenText } from "./tokens.js";

const NAMES = ["temperature", "top_k", "top_p", "min_p", "max_tokens", "seed"];
const PENALTIES = ["repetition_penalty", "presence_penalty", "frequency_penalty"];

let settings;
let text;
let prompt = { model: null, ids: [], text: "" };
let running = null; // the AbortController of a text in work

export function startWrite() {
  settings = makeControls($("write-controls"), [...NAMES, ...PENALTIES]);
  text = new TokenText($("text"), showLikeliest, () =>
    $("likeliest").querySelector("button")?.focus(),
  );
  moveByArrows($("likeliest"), () => $("text").focus());
  $("start").onclick = () => attempt(begin);
  $("more").onclick = () => attempt(write);
  $("stop").onclick = () => running?.abort();
  $("copy").onclick = copy;
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) attempt(begin);
  });
  $("model").addEventListener("change", forget);
  onLanguage(() => {
    text.tokens.forEach((_, index) => text.draw(index));
    showLikeliest(text.index);
    $("write-status").textContent = "";
  });
  showLikeliest(-1);
}

// A text of another model cannot go on: its tokens may mean something else.
function forget() {
  running?.abort();
  text.clear();
  setButtons();
}

async function attempt(action, ...values) {
  running?.abort();
  const controller = new AbortController();
  running = controller;
  setButtons();
  $("write-status").textContent = t("writing");
  try {
    await action(controller.signal, ...values);
  } catch (error) {
    const isStopped = error.name === "AbortError";
    if (isStopped && running !== controller) return; // another text has begun
    const count = number(text.tokens.length);
    $("write-status").textContent = isStopped ? t("stopped", { count }) : error.message;
  } finally {
    if (running === controller) running = null;
    setButtons();
  }
}

function setButtons() {
  $("stop").disabled = !running;
  $("more").disabled = $("copy").disabled = !!running || !text.tokens.length;
}

async function begin(signal) {
  text.clear($("prompt").value);
  const model = $("model").value;
  const { tokens } = await post("tokens", { model, text: $("prompt").value }, signal);
  prompt = { model, ids: tokens.map((token) => token.id), text: $("prompt").value };
  await write(signal);
}

// Continue what is there.
async function write(signal) {
  const ids = [...prompt.ids, ...text.tokens.map((token) => token.id)];
  let reason;
  for await (const token of stream({ model: prompt.model, ids, ...settings() }, signal)) {
    if (signal.aborted) return;
    if (token.done) reason = token.reason;
    else text.add(token);
  }
  if (text.tokens.some((token) => token.text.includes("\ufffd"))) await repair(signal);
  const key = reason === "stop" ? "doneStop" : "doneLength";
  $("write-status").textContent = t(key, { count: number(text.tokens.length) });
}

// A text that went on inside a character came without it: ask for the whole again.
async function repair(signal) {
  const ids = text.tokens.map((token) => token.id);
  const { tokens } = await post("tokens", { model: prompt.model, ids }, signal);
  text.setTexts(tokens.map((token) => token.text));
}

function showLikeliest(index) {
  const token = text?.tokens[index];
  $("likeliest-help").textContent = t(token ? "likeliestHelp" : "likeliestEmpty");
  if (!token) return $("likeliest").replaceChildren();
  const isListed = token.top.some((each) => each.id === token.id);
  const top = isListed ? token.top : [...token.top, token];
  drawBars($("likeliest"), top, token.id, (alternative) => attempt(goOnWith, index, alternative));
}

async function goOnWith(signal, index, alternative) {
  const { top } = text.tokens[index];
  const ids = [...text.tokens.slice(0, index).map((token) => token.id), alternative.id];
  const { tokens } = await post("tokens", { model: prompt.model, ids }, signal);
  text.cut(index);
  text.add({ ...alternative, text: tokens.at(-1).text, top, isChosen: true });
  $("text").focus({ preventScroll: true });
  await write(signal);
}

async function copy() {
  const whole = prompt.text + text.tokens.map((token) => token.text).join("");
  try {
    await navigator.clipboard.writeText(whole);
    $("write-status").textContent = t("copied");
  } catch {
    $("write-status").textContent = t("notCopied");
  }
}
