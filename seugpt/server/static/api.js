// Requests to the server, and the key that it may ask for.

import { errorText, t } from "./i18n.js";

let key = sessionStorage.getItem("key");

let asking = null; // one dialog, however many requests wait for it

function askForKey() {
  const dialog = document.getElementById("key-dialog");
  dialog.showModal();
  return new Promise((resolve) => {
    document.getElementById("key-form").onsubmit = (event) => {
      event.preventDefault();
      key = document.getElementById("key").value;
      sessionStorage.setItem("key", key);
      dialog.close();
      asking = null;
      resolve();
    };
  });
}

async function request(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(`api/${path}`, { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(t("noAnswer"));
  }
  if (response.status === 401) {
    await (asking ??= askForKey());
    return request(path, options);
  }
  if (!response.ok) throw new Error(errorText((await response.json()).error));
  return response;
}

const asPost = (content, signal) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(content),
  signal,
});

export const get = async (path) => (await request(path)).json();
export const post = async (path, content, signal) =>
  (await request(path, asPost(content, signal))).json();

// The tokens of /api/write as they come, then {done, reason}.
export async function* stream(content, signal) {
  const response = await request("write", asPost(content, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (buffer + value).split("\n\n");
    buffer = events.pop();
    for (const event of events) {
      const content = JSON.parse(event.slice("data: ".length));
      if (content.error) throw new Error(errorText(content.error));
      yield content;
    }
  }
}
