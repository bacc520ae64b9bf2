// Elements, made in one call. Text is always textContent: what a model writes is never HTML.

export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const { className, text, attributes = {}, ...rest } = properties;
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  Object.assign(element, rest);
  element.append(...children);
  return element;
}

export function modelOption(name) {
  const translated = name === "untrained" ? { "data-t": "untrained" } : {};
  return make("option", { text: name, value: name, attributes: translated });
}

// Call a function once its calls have paused.
export function debounce(call, ms) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(call, ms);
  };
}
