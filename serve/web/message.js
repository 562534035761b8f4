// A message on the page: what is said, how it came, and what can be done with it.
import { send } from "./api.js";
import { announce, copy, h } from "./dom.js";
import { icon } from "./icons.js";
import { markdown } from "./markdown.js";
import { TokenView, tokensOf } from "./tokens.js";
import { callView, results } from "./tools.js";

const ENDS = {
  length: "It came to the longest length that was asked for.",
  stopped: "You stopped it here.",
  cut: "The server went away while this was written. What was written is kept.",
};

function button(name, label, onclick, props = {}) {
  return h("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick, ...props }, icon(name));
}

export class MessageView {
  /** `chat` does what the buttons ask; `column` is where it stands. */
  constructor(chat, column, message) {
    Object.assign(this, { chat, column, message });
    this.body = h("div", { class: "md" });
    this.thought = h("div", { class: "md" });
    this.thinking = h("details", { class: "thinking" }, h("summary", {}, "Thinking"), this.thought);
    this.calls = h("div");
    this.tokenBox = h("div");
    this.note = h("p", { class: "note" });
    this.foot = h("footer", { class: "actions" });
    this.who = h("h2", { class: "who" });
    this.comment = h("form", { class: "comment", hidden: true });
    this.element = h("article", { class: `message ${message.role}`, tabindex: 0, onkeydown: (e) => this.key(e) },
      this.who, this.thinking, this.body, this.tokenBox, this.calls, this.note, this.foot, this.comment);
    this.element.dataset.id = message.id;
    this.update();
  }

  update() {
    const { message, chat } = this;
    const writing = message.state === "writing";
    this.element.classList.toggle("writing", writing);
    this.who.textContent = message.role === "user" ? "You" : (message.model ?? (message.role === "assistant" ? "Written by you" : "Tool"));
    this.thinking.hidden = !message.reasoning_content;
    if (message.reasoning_content) markdown(this.thought, message.reasoning_content);
    const tokens = message.role === "assistant" && message.model && chat.showTokens;
    this.body.hidden = Boolean(tokens);
    if (!tokens) {
      if (message.role === "user") this.body.textContent = message.content;
      else markdown(this.body, message.content);
    }
    this.showTokens(tokens);
    this.showCalls();
    const why = message.error ?? ENDS[message.state] ?? "";
    this.note.hidden = !why;
    this.note.textContent = why;
    this.note.classList.toggle("bad", message.state === "failed");
    if (!this.editing) this.actions(writing);
  }

  async showTokens(wanted) {
    if (!wanted) {
      this.tokenBox.replaceChildren();
      this.tokens = null;
      return;
    }
    if (!this.tokens) {
      // What was thought stands before the text that could be continued.
      const onpick = this.message.reasoning_content ? null : (index, token) => this.chat.continueFrom(this.column, this.message, index, token);
      this.tokens = new TokenView(this.message, onpick);
      this.tokenBox.replaceChildren(this.tokens.element);
    }
    if (!this.message.tokens) await tokensOf(this.message).catch((e) => this.chat.problem(e));
    this.tokens?.update();
  }

  showCalls() {
    const { message, chat, column } = this;
    if (!message.tool_calls?.length || message.state === "writing") return this.calls.replaceChildren();
    const found = results(message, column.path());
    const open = message.tool_calls.findIndex((_, i) => !found[i]);
    this.calls.replaceChildren(...message.tool_calls.map((call, i) =>
      callView(call, found[i], i === open ? (content) => chat.toolResult(column, message, call, content) : null)));
  }

  actions(writing) {
    const { message, chat, column } = this;
    if (writing) return this.foot.replaceChildren(h("span", { class: "soft" }, this.speed() || "Reading…"));
    const answer = message.role === "assistant";
    const parts = [];
    const siblings = chat.tree.siblings(message);
    if (siblings.length > 1) {
      const at = siblings.indexOf(message);
      parts.push(h("span", { class: "branches", role: "group", "aria-label": `Version ${at + 1} of ${siblings.length}` },
        button("left", "Previous version", () => chat.walk(column, message, -1), { disabled: at === 0 }),
        h("span", {}, `${at + 1}/${siblings.length}`),
        button("right", "Next version", () => chat.walk(column, message, 1), { disabled: at === siblings.length - 1 })));
    }
    const copied = button("copy", "Copy", async () => {
      await copy(message.content);
      copied.replaceChildren(icon("check"));
      announce("Copied");
      setTimeout(() => copied.replaceChildren(icon("copy")), 1500);
    });
    parts.push(copied, button("edit", answer ? "Write what it should have said" : "Edit", () => this.edit()));
    if (answer) {
      parts.push(button("again", "Answer again", () => chat.regenerate(column, message)));
      if (message.state !== "failed") {
        const thumb = (value, name, label) => button(name, label, () => this.judge(message.thumb === value ? 0 : value), { "aria-pressed": String(message.thumb === value) });
        parts.push(thumb(1, "good", "Good answer"), thumb(-1, "bad", "Bad answer"),
          button("note", message.comment ? "Comment: " + message.comment : "Comment", () => this.commentForm(), { "aria-pressed": String(Boolean(message.comment)) }));
      }
      parts.push(h("span", { class: "stats soft" }, this.stats()));
    }
    this.foot.replaceChildren(...parts);
  }

  speed() {
    const times = this.message.times ?? [];
    const count = this.message.tokens?.length ?? 0;
    const seconds = (times.at(-1) - times[1]) / 1000;
    return count > 1 && seconds > 0.05 ? `${count} tokens · ${((count - 1) / seconds).toFixed(0)}/s` : count ? `${count} tokens` : "";
  }

  stats() {
    const { message } = this;
    const made = this.speed() || (message.usage?.completion_tokens ? `${message.usage.completion_tokens} tokens` : "");
    return [made, message.seed !== undefined && message.seed !== null && `seed ${message.seed}`].filter(Boolean).join(" · ");
  }

  async judge(thumb, comment = this.message.comment) {
    const { message, chat } = this;
    try {
      await send("PUT", `/chat/messages/${message.id}/feedback`, { thumb, comment });
      Object.assign(message, { thumb, comment });
      announce(thumb > 0 ? "Kept as good" : thumb < 0 ? "Kept as bad" : "Kept");
    } catch (error) { chat.problem(error); }
    this.update();
  }

  commentForm() {
    if (!this.comment.hidden) { this.comment.hidden = true; return; }
    const field = h("textarea", { rows: 2, value: this.message.comment, placeholder: "What is good or bad about it? It is kept for later learning.", "aria-label": "Comment" });
    this.comment.replaceChildren(field, h("button", { type: "submit", class: "main" }, "Keep"));
    this.comment.onsubmit = (event) => {
      event.preventDefault();
      this.comment.hidden = true;
      this.judge(this.message.thumb, field.value.trim());
    };
    this.comment.hidden = false;
    field.focus();
  }

  edit() {
    const { message, chat, column } = this;
    const answer = message.role === "assistant";
    const field = h("textarea", { class: "editor", value: message.content, "aria-label": "Edit the message" });
    const end = () => {
      this.editing = false;
      form.remove();
      this.body.hidden = false;
      this.update();
      this.element.focus();
    };
    const submit = (event) => {
      event.preventDefault();
      if (!field.value.trim()) return;
      end();
      chat.edit(column, message, field.value);
    };
    const key = (event) => {
      event.stopPropagation();
      if (event.key === "Escape") { event.preventDefault(); end(); }
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !answer) submit(event);
    };
    field.addEventListener("keydown", key);
    const form = h("form", { class: "edit", onsubmit: submit }, field, h("div", { class: "row" },
      h("span", { class: "soft" }, answer ? "It becomes another version, by you." : "It becomes a branch; this one stays."),
      h("button", { type: "button", onclick: end }, "Cancel"), h("button", { type: "submit", class: "main" }, answer ? "Keep" : "Send")));
    this.editing = true;
    this.body.hidden = true;
    this.foot.replaceChildren();
    this.body.after(form);
    field.style.height = `${Math.min(field.scrollHeight + 4, 400)}px`;
    field.focus();
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.target.closest("textarea, input, pre, .chips")) return;
    event.preventDefault();
    this.chat.walk(this.column, this.message, step);
  }
}
