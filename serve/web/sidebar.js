// The list of conversations, and the search in them.
import { get, send } from "./api.js";
import { $, dialog, h, later } from "./dom.js";
import { icon } from "./icons.js";

const DAY = 86_400_000;

function group(changed) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (changed >= today) return "Today";
  if (changed >= today - DAY) return "Yesterday";
  if (changed >= today - 7 * DAY) return "Last seven days";
  return new Date(changed).toLocaleDateString(undefined, { month: "long", year: "numeric" });
}

/** Found words are between two characters that nobody types. */
function found(text) {
  return text.split("\u0002").flatMap((part, i) => {
    if (i === 0) return [part];
    const [word, rest = ""] = part.split("\u0003");
    return [h("mark", {}, word), rest];
  });
}

export class Sidebar {
  constructor(chat) {
    this.chat = chat;
    this.items = [];
    $("search").addEventListener("input", later(120, () => this.load()));
    $("search").addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.target.value = ""; this.load(); }
      if (event.key === "ArrowDown" || event.key === "Enter") { event.preventDefault(); $("list").querySelector("a")?.focus(); }
    });
    $("list").addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      const links = [...$("list").querySelectorAll("a")];
      const next = step && links[links.indexOf(document.activeElement) + step];
      if (step) event.preventDefault();
      if (next) next.focus();
      else if (step === -1) $("search").focus();
    });
  }

  /** Reads the list anew. Answers to earlier words come too late. */
  async load() {
    const words = $("search").value.trim();
    const turn = (this.turn = (this.turn ?? 0) + 1);
    try {
      const { data } = await get(`/chat/conversations${words ? `?search=${encodeURIComponent(words)}` : ""}`);
      if (turn !== this.turn) return;
      this.items = data;
      this.words = words;
      this.more = !words && data.length >= 100;
      this.render();
    } catch (error) { this.chat.problem(error); }
  }

  async older() {
    const { data } = await get(`/chat/conversations?before=${this.items.at(-1).changed}`);
    this.items.push(...data);
    this.more = data.length >= 100;
    this.render();
  }

  render() {
    const parts = [];
    let last;
    for (const item of this.items) {
      const of = this.words ? "Found" : group(item.changed);
      if (of !== last) parts.push(h("h2", {}, of));
      last = of;
      parts.push(this.item(item));
    }
    if (!this.items.length) parts.push(h("p", { class: "soft empty" }, this.words ? `Nothing holds “${this.words}”.` : "Conversations appear here. They stay on this server."));
    if (this.more) parts.push(h("button", { type: "button", class: "wide quiet", onclick: () => this.older() }, "Older"));
    $("list").replaceChildren(...parts);
  }

  item(item) {
    const here = item.id === this.chat.id;
    const link = h("a", { href: `#${item.id}`, "aria-current": here ? "page" : null }, h("span", { class: "name" }, item.title), item.found && h("span", { class: "found" }, found(item.found)));
    return h("div", { class: "item" }, link,
      h("button", { type: "button", class: "icon", "aria-label": `Delete “${item.title}”`, title: "Delete", onclick: () => this.remove(item) }, icon("trash")));
  }

  remove(item) {
    const yes = async () => {
      box.close();
      try {
        await send("DELETE", `/chat/conversations/${item.id}`);
        if (item.id === this.chat.id) location.hash = "";
        await this.load();
      } catch (error) { this.chat.problem(error); }
    };
    const box = dialog("Delete this conversation?", h("p", {}, `“${item.title}”, all its branches, thumbs and comments. It can't be undone.`),
      h("div", { class: "row" }, h("button", { type: "button", onclick: () => box.close() }, "Keep it"), h("button", { type: "button", class: "danger", onclick: yes }, "Delete")));
  }
}
