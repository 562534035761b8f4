// What a conversation is asked with: system prompt, tools, and how tokens are drawn, for each side its own.
import { $, h } from "./dom.js";
import { icon } from "./icons.js";

/** What a side begins with. */
export const side = (model) => ({ model, temperature: 0.7, top_p: 1, min_p: 0, top_k: null, max_tokens: 1024, seed: null, stop: [] });

const RANGES = [
  ["temperature", "Temperature", 0, 2, 0.05, "0 takes the likeliest token each time"],
  ["top_p", "Top p", 0.05, 1, 0.01, "Draw from the likeliest that sum to this; 1 is all"],
  ["min_p", "Min p", 0, 1, 0.01, "Leave out what is less likely than this share of the likeliest"],
];
const NUMBERS = [
  ["top_k", "Top k", 1, "all"],
  ["max_tokens", "Most tokens", 1, "what fits"],
  ["seed", "Seed", 0, "random"],
];

const number = (text) => (text.trim() === "" || !Number.isFinite(Number(text)) ? null : Number(text));

function range([name, label, min, max, step, hint], of, changed) {
  const text = h("input", { type: "number", min, max, step, value: of[name] ?? "", "aria-label": `${label}, as a number` });
  const slide = h("input", { type: "range", min, max, step, value: of[name] ?? max, "aria-label": label, title: hint });
  const set = (value, other) => {
    of[name] = value;
    other.value = value ?? "";
    changed();
  };
  slide.addEventListener("input", () => set(Number(slide.value), text));
  text.addEventListener("change", () => set(number(text.value), slide));
  return h("div", { class: "field" }, h("div", { class: "row" }, h("span", {}, label), text), slide, h("p", { class: "soft" }, hint));
}

function numeric([name, label, min, empty], of, changed) {
  const text = h("input", { type: "number", min, step: 1, value: of[name] ?? "", placeholder: empty, onchange: () => {
    of[name] = number(text.value);
    changed();
  } });
  return h("label", { class: "field row" }, h("span", {}, label), text);
}

/** Fills the panel. `changed` is told of every change. */
export function fillSettings(chat, changed) {
  const { settings } = chat;
  const system = h("textarea", { rows: 4, value: settings.system ?? "", placeholder: "You are …", oninput: () => {
    settings.system = system.value;
    changed();
  } });
  const sides = settings.sides.map((of, i) => h("fieldset", {},
    h("legend", {}, settings.sides.length > 1 ? (i ? "Right answer" : "Left answer") : "Sampling"),
    RANGES.map((r) => range(r, of, changed)), NUMBERS.map((n) => numeric(n, of, changed)), stops(of, changed)));
  $("settings").replaceChildren(
    h("div", { class: "row" }, h("h2", {}, "Settings"), h("button", { type: "button", class: "icon", "aria-label": "Close the settings", onclick: () => chat.toggleSettings(false) }, icon("close"))),
    h("label", { class: "field" }, h("span", {}, "System prompt"), system),
    ...sides, tools(chat, changed));
}

function stops(of, changed) {
  const text = h("textarea", { rows: 2, value: (of.stop ?? []).join("\n"), placeholder: "One a line", onchange: () => {
    of.stop = text.value.split("\n").filter(Boolean);
    changed();
  } });
  return h("label", { class: "field" }, h("span", {}, "End at these strings"), text);
}

const nameOf = (tool) => tool?.function?.name;

function tools(chat, changed) {
  const { settings, about } = chat;
  const here = (about.tools ?? []).map((tool) => {
    const box = h("input", { type: "checkbox", checked: (settings.tools ?? []).some((t) => nameOf(t) === nameOf(tool)), onchange: () => {
      settings.tools = (settings.tools ?? []).filter((t) => nameOf(t) !== nameOf(tool));
      if (box.checked) settings.tools.push(tool);
      fillSettings(chat, changed);
      changed();
    } });
    return h("label", { class: "check" }, box, ` ${nameOf(tool)}, run by this server`);
  });
  const wrong = h("p", { class: "bad", role: "alert", hidden: true });
  const text = h("textarea", { rows: 6, class: "mono", spellcheck: "false", value: settings.tools?.length ? JSON.stringify(settings.tools, null, 1) : "", placeholder: '[{"type": "function", "function": {"name": "…", "description": "…", "parameters": {…}}}]', onchange: () => {
    try {
      const read = text.value.trim() ? JSON.parse(text.value) : [];
      if (!Array.isArray(read) || !read.every(nameOf)) throw new Error("a list of functions with names is needed");
      settings.tools = read;
      wrong.hidden = true;
      changed();
    } catch (error) {
      wrong.textContent = `Not taken: ${error.message}`;
      wrong.hidden = false;
    }
  } });
  return h("fieldset", {}, h("legend", {}, "Tools"), ...here, h("label", { class: "field" }, h("span", {}, "Definitions, as in OpenAI's API"), text), wrong,
    h("p", { class: "soft" }, "Calls of your own tools are shown, and you type what they return."));
}
