// The language of the page: its texts, and how it writes numbers.

import { ERRORS_IN_PORTUGUESE, STRINGS } from "./strings.js";

const saved = localStorage.getItem("language");
export let language = saved ?? (navigator.language.toLowerCase().startsWith("pt") ? "pt" : "en");

export function t(key, values = {}) {
  const text = STRINGS[key][language === "pt" ? 1 : 0];
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

export function errorText({ code, message }) {
  return (language === "pt" && ERRORS_IN_PORTUGUESE[code]) || message;
}

export function setLanguage(name) {
  language = name;
  localStorage.setItem("language", name);
  translate();
  document.dispatchEvent(new Event("language"));
}

export const onLanguage = (listener) => document.addEventListener("language", listener);

// Fill in what the elements of the page ask for: data-t is their text, data-label their name.
export function translate(root = document) {
  document.documentElement.lang = language === "pt" ? "pt-BR" : "en";
  for (const element of root.querySelectorAll("[data-t]"))
    element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-label]"))
    element.setAttribute("aria-label", t(element.dataset.label));
  for (const element of root.querySelectorAll("[data-empty]"))
    element.dataset.placeholder = t(element.dataset.empty);
}

export function number(value, digits = 0) {
  const places = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return value.toLocaleString(document.documentElement.lang, places);
}

export function percent(p) {
  if (p > 0 && p < 0.001) return `<${number(0.1, 1)}%`;
  return `${number(100 * p, p < 0.0995 && p > 0 ? 1 : 0)}%`;
}
