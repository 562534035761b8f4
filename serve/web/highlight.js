// Colours of code: comments, strings, numbers and words that many languages share. A hint for the eye, no parser.
import { h } from "./dom.js";

const WORDS = new Set(`abstract and as async await bool break case catch char class const continue crate def default del do
  double elif else end enum except export extends extern false False final finally float fn for from func function global go
  if impl import in int interface is lambda let long loop match mod module move mut namespace new nil None nonlocal not null
  or package pass private protected pub public raise ref return select self Self short signed sizeof static string struct
  super switch this throw trait true True try type typedef undefined union unsafe unsigned use using var void when where
  while with yield SELECT FROM WHERE INSERT INTO VALUES UPDATE DELETE CREATE TABLE JOIN ON AND OR NOT NULL ORDER BY GROUP`.split(/\s+/));
const HASH = new Set(["", "bash", "sh", "shell", "zsh", "python", "py", "ruby", "rb", "toml", "yaml", "yml", "r", "perl", "make", "makefile", "dockerfile", "console"]);
/** Longer code stays plain. */
const MOST = 40_000;

export function highlight(code, language) {
  if (code.length > MOST || ["text", "txt", "plain", "markdown", "md"].includes(language)) return [code];
  const hash = HASH.has(language) ? "|#[^\\n]*" : "";
  const dashes = ["sql", "lua", "haskell", "hs"].includes(language) ? "|--[^\\n]*" : "";
  const pattern = new RegExp(
    `(?<c>//[^\\n]*|/\\*[\\s\\S]*?(?:\\*/|$)${hash}${dashes})` +
    '|(?<s>"(?:[^"\\\\\\n]|\\\\.)*"?|\'(?:[^\'\\\\\\n]|\\\\.)*\'|`(?:[^`\\\\]|\\\\.)*`)' +
    "|(?<n>\\b\\d[\\w.]*)|(?<w>[A-Za-z_]\\w*)", "g");
  const nodes = [];
  let at = 0;
  for (const found of code.matchAll(pattern)) {
    const kind = Object.entries(found.groups).find(([, text]) => text !== undefined)[0];
    if (kind === "w" && !WORDS.has(found[0])) continue;
    nodes.push(code.slice(at, found.index), h("span", { class: `hl-${kind}` }, found[0]));
    at = found.index + found[0].length;
  }
  nodes.push(code.slice(at));
  return nodes;
}
