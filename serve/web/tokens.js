// An answer as what it is: a draw from probabilities, token after token.
import { get } from "./api.js";
import { h } from "./dom.js";

const share = (logprob) => Math.exp(logprob);

function percent(p) {
  if (p >= 0.9995) return "100 %";
  if (p < 0.0001) return "< 0.01 %";
  return `${(p * 100).toPrecision(p < 0.01 ? 1 : 3)} %`;
}

/** Whitespace that can be seen. */
const visible = (token) => token.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ +| +$/g, (s) => "·".repeat(s.length)) || "∅";

/** What isn't text: bytes of a part of a character, and tokens such as the end. */
const CONTROL = /^(\\x[0-9A-F]{2})+$|^<[|/]?[\w|]+>$/;

/** Tokens as text; null where they are no text yet. */
export function textOf(tokens) {
  const bytes = [];
  for (const token of tokens) {
    if (/^(\\x[0-9A-F]{2})+$/.test(token)) bytes.push(...token.split("\\x").slice(1).map((b) => Number.parseInt(b, 16)));
    else bytes.push(...new TextEncoder().encode(token));
  }
  try { return new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(bytes)); } catch { return null; }
}

/** How sure: 0 (hardly any other) to 5. */
const doubt = (p) => (p > 0.9 ? 0 : p > 0.6 ? 1 : p > 0.35 ? 2 : p > 0.15 ? 3 : p > 0.05 ? 4 : 5);

/** The tokens of a message; fetched where they aren't known. */
export async function tokensOf(message) {
  message.tokens ??= message.has_tokens ? await get(`/chat/messages/${message.id}/tokens`) : [];
  return message.tokens;
}

/** Alternatives at a place, as bars. `onpick` continues from one. */
function alternatives([token, logprob, top], index, onpick) {
  const rows = top.some(([other]) => other === token) ? top : [...top, [token, logprob]];
  const rest = 1 - rows.reduce((sum, [, l]) => sum + share(l), 0);
  const bar = (p) => {
    const fill = h("span", { class: "fill" });
    fill.style.width = `${Math.max(p * 100, 0.5)}%`;
    return h("span", { class: "bar" }, fill);
  };
  const row = ([other, l]) => {
    const chosen = other === token;
    const text = h("code", {}, visible(other));
    const pick = !chosen && onpick && !CONTROL.test(other) && h("button", { type: "button", class: "pick", title: "Continue from here with this token", onclick: () => onpick(index, other) }, text);
    return h("li", { class: chosen ? "chosen" : "", "aria-label": `${other}: ${percent(share(l))}${chosen ? ", chosen" : ""}` }, pick || text, bar(share(l)), h("span", { class: "share" }, percent(share(l))));
  };
  return h("ol", { class: "alternatives" }, rows.map(row),
    rest > 0.0005 && h("li", { class: "rest" }, h("span", {}, "all others"), bar(rest), h("span", { class: "share" }, percent(rest))));
}

/** A view that grows with its tokens. */
export class TokenView {
  constructor(message, onpick) {
    this.message = message;
    this.onpick = onpick;
    this.shown = 0;
    this.chips = h("div", { class: "chips", role: "group", "aria-label": "Tokens, arrow keys move between them" });
    this.detail = h("div", { class: "detail", role: "status" }, h("p", { class: "soft" }, "Point at a token, or tap it, to see what else could have stood there."));
    this.summary = h("p", { class: "soft summary" });
    this.element = h("div", { class: "tokens" }, this.summary, this.chips, this.detail);
    this.chips.addEventListener("mouseover", (e) => this.show(e.target.closest(".chip")));
    this.chips.addEventListener("focusin", (e) => this.show(e.target.closest(".chip")));
    this.chips.addEventListener("click", (e) => this.show(e.target.closest(".chip")));
    this.chips.addEventListener("keydown", (e) => this.key(e));
  }

  update() {
    const { begun } = this.message.asked ?? {};
    if (begun && !this.shown && !this.chips.firstChild) this.chips.append(h("span", { class: "given", title: "Given: the answer had to begin so" }, begun));
    const { tokens } = this.message;
    if (this.message.state !== "writing" && !tokens?.length) {
      this.summary.textContent = "The tokens of this answer aren't kept.";
      return;
    }
    const fresh = document.createDocumentFragment();
    for (; this.shown < (tokens?.length ?? 0); this.shown += 1) {
      const [token, logprob] = tokens[this.shown];
      const chip = h("button", { type: "button", class: `chip d${doubt(share(logprob))}`, tabindex: this.shown ? -1 : 0, "aria-label": `${token}, ${percent(share(logprob))}` }, visible(token));
      chip.index = this.shown;
      fresh.append(chip);
      if (token.includes("\n")) fresh.append(h("span", { class: "break" }));
    }
    this.chips.append(fresh);
    if (tokens?.length) {
      const bits = tokens.reduce((sum, [, l]) => sum - l, 0) / tokens.length / Math.LN2;
      this.summary.textContent = `${tokens.length} tokens, ${bits.toFixed(2)} bits of surprise each. The darker a token, the less likely it was.`;
    }
  }

  show(chip) {
    if (!chip) return;
    this.chips.querySelector(".at")?.classList.remove("at");
    chip.classList.add("at");
    const onpick = this.message.state === "writing" ? null : this.onpick;
    this.detail.replaceChildren(
      h("p", { class: "soft" }, `Token ${chip.index + 1}: after all that stands before it, the model gave these probabilities.${onpick ? " Click another one to go on from it." : ""}`),
      alternatives(this.message.tokens[chip.index], chip.index, onpick));
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const chips = [...this.chips.querySelectorAll(".chip")];
    const next = step && chips[chips.indexOf(event.target) + step];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    if (!next) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}
