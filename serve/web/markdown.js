// Markdown as nodes. Blocks that stayed the same keep their nodes while a text grows, and with them what is selected.
import { copy, h } from "./dom.js";
import { highlight } from "./highlight.js";
import { icon } from "./icons.js";
import { inline } from "./inline.js";

/** Quotes and lists within each other. */
const DEPTH = 12;

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+•]|\d{1,9}[.)])(\s+|$)(.*)$/;
const ROW = /^\s*\|?.*\|.*$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

/** Splits lines into blocks: `{ kind, lines, … }`. */
function blocks(lines) {
  const found = [];
  let at = 0;
  const take = (kind, end, more) => {
    found.push({ kind, lines: lines.slice(at, end), ...more });
    at = end;
  };
  const until = (from, stop) => {
    let end = from;
    while (end < lines.length && !stop(lines[end], end)) end += 1;
    return end;
  };
  while (at < lines.length) {
    const line = lines[at];
    if (!line.trim()) { at += 1; continue; }
    const fence = FENCE.exec(line);
    if (fence) {
      const [, ticks, language] = fence;
      const closes = (l) => { const t = l.trim(); return t.startsWith(ticks) && !t.slice(ticks.length).replaceAll(ticks[0], ""); };
      const end = until(at + 1, closes);
      const code = lines.slice(at + 1, end).join("\n");
      take("code", Math.min(end + 1, lines.length), { code, language: language.trim().split(/\s/)[0] });
    } else if (HEADING.test(line)) take("heading", at + 1);
    else if (RULE.test(line)) take("rule", at + 1);
    else if (QUOTE.test(line)) take("quote", until(at, (l) => !QUOTE.test(l)));
    else if (ITEM.test(line)) take("list", until(at, (l, i) => i > at && endsList(lines, i)));
    else if (line.includes("|") && DIVIDER.test(lines[at + 1] ?? "") && lines[at + 1].includes("-")) {
      take("table", until(at + 2, (l) => !l.trim() || !ROW.test(l)));
    } else take("text", until(at + 1, (l, i) => !l.trim() || starts(l) || (l.includes("|") && DIVIDER.test(lines[i + 1] ?? "") && (lines[i + 1] ?? "").includes("|"))));
  }
  return found;
}

const starts = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);

/** A list ends where something less indented follows an empty line, or another block begins. */
function endsList(lines, at) {
  const line = lines[at];
  if (!line.trim()) {
    const next = lines.slice(at, at + 3).find((l) => l.trim());
    return !(next && (ITEM.test(next) || /^ {2,}/.test(next)));
  }
  if (ITEM.test(line) || /^ {2,}/.test(line)) return false;
  return !lines[at - 1].trim() || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line);
}

const wide = (line) => line.replace(/^\t+/, (tabs) => "    ".repeat(tabs.length));

function list(lines, depth) {
  lines = lines.map(wide);
  const first = ITEM.exec(lines[0]);
  const ordered = /\d/.test(first[2]);
  const start = ordered ? Number.parseInt(first[2], 10) : 1;
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && (items.length === 0 || item[1].length < first[1].length + 2)) items.push([item[4]]);
    else items.at(-1).push(line);
  }
  const element = h(ordered ? "ol" : "ul", ordered && start !== 1 ? { start } : {});
  for (const [head, ...rest] of items) {
    const indent = Math.min(...rest.filter((l) => l.trim()).map((l) => /^ */.exec(l)[0].length), 8);
    const inner = [head, ...rest.map((l) => l.slice(Number.isFinite(indent) ? indent : 0))];
    const box = /^\[([ xX])\]\s+/.exec(head);
    if (box) inner[0] = head.slice(box[0].length);
    const content = nodes(inner, depth + 1);
    // A line alone needs no paragraph.
    const tight = content[0]?.tagName === "P" ? [...content[0].childNodes, ...content.slice(1)] : content;
    const check = box && h("input", { type: "checkbox", disabled: true, checked: box[1] !== " ", "aria-label": "done" });
    element.append(h("li", { class: box ? "task" : "" }, check, ...tight));
  }
  return element;
}

function cells(line) {
  const text = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return text.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table(lines) {
  const sides = cells(lines[1]).map((c) => (/^:-+:$/.test(c) ? "center" : /-:$/.test(c) ? "right" : ""));
  const head = cells(lines[0]);
  const row = (tag, line) => h("tr", {}, head.map((_, i) => h(tag, { class: sides[i] ? `to-${sides[i]}` : "" }, inline(cells(line)[i] ?? ""))));
  return h("div", { class: "table", tabindex: 0, role: "group", "aria-label": "Table" },
    h("table", {}, h("thead", {}, row("th", lines[0])), h("tbody", {}, lines.slice(2).map((line) => row("td", line)))));
}

function code(block) {
  const button = h("button", { type: "button", class: "copy", "aria-label": "Copy code", onclick: async () => {
    await copy(block.code);
    button.replaceChildren(icon("check"), "Copied");
    setTimeout(() => button.replaceChildren(icon("copy"), "Copy"), 1500);
  } }, icon("copy"), "Copy");
  return h("figure", { class: "code" },
    h("figcaption", {}, h("span", {}, block.language || "code"), button),
    h("pre", { tabindex: 0 }, h("code", {}, highlight(block.code, block.language.toLowerCase()))));
}

function node(block, depth) {
  const text = block.lines.join("\n");
  switch (block.kind) {
    case "code": return code(block);
    case "heading": {
      const [, marks, title] = HEADING.exec(text);
      return h(`h${Math.min(marks.length + 2, 6)}`, {}, inline(title));
    }
    case "rule": return h("hr");
    case "quote": return h("blockquote", {}, ...nodes(block.lines.map((l) => l.replace(QUOTE, "")), depth + 1));
    case "list": return list(block.lines, depth);
    case "table": return table(block.lines);
    default: return h("p", {}, inline(block.lines.map((l) => l.trim()).join("\n")));
  }
}

function nodes(lines, depth) {
  if (depth > DEPTH) return [h("p", {}, lines.join("\n"))];
  return blocks(lines).map((block) => node(block, depth));
}

/** Shows a text in an element, which keeps what stayed the same. */
export function markdown(element, text) {
  const found = blocks(text.split(/\r?\n/));
  found.forEach((block, i) => {
    const source = block.kind + block.lines.join("\n");
    const old = element.children[i];
    if (old?.source === source) return;
    const fresh = node(block, 0);
    fresh.source = source;
    if (old) old.replaceWith(fresh);
    else element.append(fresh);
  });
  while (element.children.length > found.length) element.lastChild.remove();
}
