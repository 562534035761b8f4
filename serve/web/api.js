// The server, as everybody asks it. A key is asked for when one is needed, and kept as long as the tab, or longer if wanted.
import { dialog, h } from "./dom.js";

/** What the server said was wrong. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const KEY = "homegrown.key";

function readKey() {
  try { return sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY); } catch { return null; }
}

function writeKey(key, long) {
  try {
    sessionStorage.setItem(KEY, key);
    if (long) localStorage.setItem(KEY, key);
    else localStorage.removeItem(KEY);
  } catch { /* Then it is asked for again. */ }
}

let asking = null;

/** Asks the person for a key; one dialog, however many requests wait. */
function askKey(wrong) {
  asking ??= new Promise((given) => {
    const field = h("input", { type: "password", required: true, autocomplete: "off", "aria-label": "API key", placeholder: "hg-…" });
    const long = h("input", { type: "checkbox" });
    const submit = (event) => {
      event.preventDefault();
      writeKey(field.value.trim(), long.checked);
      box.close();
    };
    const box = dialog(
      "This server needs a key",
      h("p", {}, wrong ? "That key is not one of this server's." : "Whoever runs it can make one: homegrown serve … --keys FILE --new-key NAME"),
      h("form", { onsubmit: submit }, field,
        h("label", { class: "check" }, long, " Keep it in this browser"),
        h("button", { type: "submit", class: "main" }, "Use this key")),
    );
    box.addEventListener("cancel", (event) => event.preventDefault());
    box.addEventListener("close", () => {
      asking = null;
      given();
    });
  });
  return asking;
}

/** A request; its answer is good, or it throws. */
export async function ask(path, { method = "GET", body, signal } = {}) {
  for (;;) {
    const key = readKey();
    const headers = {};
    if (key) headers.authorization = `Bearer ${key}`;
    if (body !== undefined) headers["content-type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The server can't be reached. What was sent before is kept.");
    }
    if (response.ok) return response;
    if (response.status === 401) {
      await askKey(key !== null);
      continue;
    }
    let message = `${response.status} ${response.statusText}`;
    try { message = (await response.json()).error.message; } catch { /* No JSON: the status says it. */ }
    throw new ApiError(response.status, message);
  }
}

export const get = async (path) => (await ask(path)).json();
export const post = async (path, body) => (await ask(path, { method: "POST", body })).json();
export const send = (method, path, body) => ask(path, { method, body });

/** The events of a stream, as they come. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}
