// An answer as it comes, into a message.
import { ask, events } from "./api.js";

/** Fields of sampling that are sent as they are. */
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "seed", "max_tokens"];

/** The request for the next message of a path. */
export function request(path, settings, side) {
  const messages = path.map(({ role, content, reasoning_content, tool_calls, tool_call_id }) => ({
    role, content,
    ...(reasoning_content && { reasoning_content }),
    ...(tool_calls && { tool_calls }),
    ...(tool_call_id && { tool_call_id }),
  }));
  if (settings.system?.trim()) messages.unshift({ role: "system", content: settings.system });
  const body = { model: side.model, messages, logprobs: true, top_logprobs: 10 };
  for (const name of NUMBERS) if (side[name] !== undefined && side[name] !== null) body[name] = side[name];
  if (side.stop?.length) body.stop = side.stop;
  if (settings.tools?.length) body.tools = settings.tools;
  return body;
}

const token = ({ token: text, bytes, logprob, top_logprobs = [] }) => {
  const written = (t, b) => (t.includes("\ufffd") && b ? b.map((n) => `\\x${n.toString(16).toUpperCase().padStart(2, "0")}`).join("") : t);
  return [written(text, bytes), logprob, top_logprobs.map((t) => [written(t.token, t.bytes), t.logprob])];
};

function call(calls, delta) {
  const known = calls[delta.index ?? calls.length];
  if (known) known.function.arguments += delta.function?.arguments ?? "";
  else calls.push({ id: delta.id, type: "function", function: { ...delta.function } });
}

/** Reads an event into a message. */
function take(message, event) {
  if (event.error) throw new Error(event.error.message);
  message.model = event.model ?? message.model;
  message.fingerprint = event.system_fingerprint ?? message.fingerprint;
  message.seed = event.seed ?? message.seed;
  message.usage = event.usage ?? message.usage;
  message.receipt = event.receipt ?? message.receipt;
  const choice = event.choices?.[0];
  if (!choice) return;
  const { delta = {}, logprobs } = choice;
  message.content += delta.content ?? "";
  if (delta.reasoning_content) message.reasoning_content = (message.reasoning_content ?? "") + delta.reasoning_content;
  for (const part of delta.tool_calls ?? []) call((message.tool_calls ??= []), part);
  if (logprobs?.content) {
    message.tokens.push(...logprobs.content.map(token));
    if (logprobs.content.length) message.times.push(performance.now());
  }
  message.state = choice.finish_reason ?? message.state;
}

/**
 * Asks for an answer, which the server keeps. `onstart` gets its message as soon as there is one, `onpiece` every time
 * there is more. It throws what kept it from beginning; what breaks off later is in the message.
 */
export async function answer({ conversation, parent, body, signal, onstart, onpiece }) {
  const place = parent ? `?parent=${encodeURIComponent(parent)}` : "";
  const response = await ask(`/chat/conversations/${conversation}/answers${place}`, { method: "POST", body, signal });
  const begun = body.continue_final_message ? body.messages.at(-1).content : "";
  const message = {
    id: response.headers.get("x-homegrown-message"), parent, role: "assistant", content: begun, state: "writing",
    model: body.model, tokens: [], has_tokens: true, thumb: 0, comment: "", times: [performance.now()], asked: { ...body, begun },
  };
  onstart(message);
  try {
    for await (const event of events(response)) {
      take(message, event);
      onpiece(message);
    }
    if (message.state === "writing") message.state = "cut";
  } catch (error) {
    if (error.name === "AbortError") message.state = "stopped";
    else if (error instanceof TypeError) message.state = "cut";
    else Object.assign(message, { state: "failed", error: error.message });
  }
  onpiece(message);
  return message;
}
