// Calls of tools: the calculator is run here, for others the person says what came out.
import { post } from "./api.js";
import { h } from "./dom.js";

const pretty = (text) => {
  try { return JSON.stringify(typeof text === "string" ? JSON.parse(text) : text, null, 2); } catch { return text; }
};

/** A call: its name, its arguments, its result if there is one, or a field for it. */
export function callView(call, result, onresult) {
  const { name, arguments: given } = call.function;
  const parts = [h("pre", { tabindex: 0 }, h("code", {}, pretty(given)))];
  if (result) parts.push(h("p", { class: "soft" }, "Result"), h("pre", { tabindex: 0 }, result.content));
  else if (onresult) {
    const field = h("textarea", { rows: 2, placeholder: `What ${name} returns`, "aria-label": `Result of ${name}` });
    const submit = (event) => {
      event.preventDefault();
      onresult(field.value);
    };
    parts.push(h("form", { class: "result", onsubmit: submit }, field, h("button", { type: "submit", class: "main" }, "Send result")));
  }
  return h("details", { class: "call", open: !result && Boolean(onresult) },
    h("summary", {}, "Called ", h("code", {}, name), result && h("span", { class: "soft" }, ` → ${result.content.slice(0, 60)}`)), ...parts);
}

/** Runs a call here, if it is of a tool that can be: its result, or null. */
export async function run(call, known) {
  if (!known.includes(call.function.name)) return null;
  let given = call.function.arguments;
  try { if (typeof given === "string") given = JSON.parse(given); } catch { return "error: the arguments are not JSON"; }
  const { content } = await post(`/chat/tools/${encodeURIComponent(call.function.name)}`, { arguments: given });
  return content;
}

/** The results of a message's calls along a path: by call, in their order. */
export function results(message, path) {
  const from = path.indexOf(message) + 1;
  const answers = [];
  for (let i = from; path[i]?.role === "tool"; i += 1) answers.push(path[i]);
  return message.tool_calls.map((call, i) => answers.find((a) => a.tool_call_id === call.id) ?? (answers[i]?.tool_call_id ? undefined : answers[i]));
}
