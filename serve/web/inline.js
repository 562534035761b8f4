// Text in a line of Markdown, as nodes. What isn't closed within REACH is what it is: so a line takes linear time.
import { h } from "./dom.js";

const REACH = 4000;
const DEPTH = 8;
const MARKS = [["**", "strong"], ["__", "strong"], ["~~", "del"], ["*", "em"], ["_", "em"]];

/** An address that may be followed, or null. */
export function address(text) {
  let url;
  try { url = new URL(text); } catch { return null; }
  return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
}

function link(href, content) {
  return h("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, content);
}

const find = (text, what, from) => {
  const at = text.slice(from, from + REACH).indexOf(what);
  return at < 0 ? -1 : from + at;
};

const word = (c) => c !== undefined && /[\p{L}\p{N}]/u.test(c);

/** Where emphasis that begins at `from` ends, or -1. */
function closing(text, mark, from) {
  if (!text[from] || /\s/.test(text[from])) return -1;
  for (let at = find(text, mark, from); at > 0; at = find(text, mark, at + 1)) {
    if (at - from > REACH) return -1;
    const after = text[at + mark.length];
    if (mark.length === 1 && after === mark) { at += 1; continue; }
    if (at > from && !/\s/.test(text[at - 1]) && !(mark[0] === "_" && word(after))) return at;
  }
  return -1;
}

/** Nodes of a text. */
export function inline(text, depth = 0) {
  const nodes = [];
  let plain = "";
  const flush = () => {
    if (plain) nodes.push(plain);
    plain = "";
  };
  const put = (node) => {
    flush();
    nodes.push(node);
  };
  let at = 0;
  scan: while (at < text.length) {
    const c = text[at];
    if (c === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
      continue;
    }
    if (c === "\n") {
      put(h("br"));
      at += 1;
      continue;
    }
    if (c === "`") {
      const ticks = /^`+/.exec(text.slice(at, at + 20))[0];
      const end = find(text, ticks, at + ticks.length);
      if (end > 0) {
        put(h("code", {}, text.slice(at + ticks.length, end).replace(/^ (.+) $/s, "$1")));
        at = end + ticks.length;
        continue;
      }
    }
    if ((c === "[" || (c === "!" && text[at + 1] === "[")) && depth < DEPTH) {
      const open = c === "!" ? at + 2 : at + 1;
      const middle = find(text, "](", open);
      const end = middle < 0 ? -1 : find(text, ")", middle);
      const href = end < 0 ? null : address(text.slice(middle + 2, end).trim().split(/\s/)[0]);
      // Pictures of elsewhere are not loaded: they would tell who reads.
      if (href && !text.slice(open, middle).includes("\n\n")) {
        put(link(href, inline(text.slice(open, middle), depth + 1)));
        at = end + 1;
        continue;
      }
    }
    if (c === "h" && !word(text[at - 1])) {
      const found = /^https?:\/\/[^\s<>"'`)\]]+[^\s<>"'`)\].,;:!?*_]/.exec(text.slice(at, at + 2000));
      const href = found && address(found[0]);
      if (href) {
        put(link(href, found[0]));
        at += found[0].length;
        continue;
      }
    }
    if ("*_~".includes(c) && depth < DEPTH) {
      for (const [mark, tag] of MARKS) {
        if (!text.startsWith(mark, at) || (c === "_" && word(text[at - 1]))) continue;
        const end = closing(text, mark, at + mark.length);
        if (end < 0) continue;
        put(h(tag, {}, inline(text.slice(at + mark.length, end), depth + 1)));
        at = end + mark.length;
        continue scan;
      }
    }
    plain += c;
    at += 1;
  }
  flush();
  return nodes;
}
