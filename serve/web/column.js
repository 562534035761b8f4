// A branch of the conversation, from its beginning to a leaf, with the model that answers it.
import { h } from "./dom.js";
import { MessageView } from "./message.js";

export class Column {
  constructor(chat, side) {
    Object.assign(this, { chat, side, views: new Map(), sticky: true });
    this.thread = h("div", { class: "thread", role: "log", "aria-live": "off", "aria-label": side ? "Second conversation" : "Conversation" });
    this.head = h("div", { class: "head" });
    this.scroller = h("div", { class: "scroller", onscroll: () => this.scrolled(), onwheel: (e) => { if (e.deltaY < 0) this.sticky = false; } }, this.thread);
    this.element = h("section", { class: "column", "aria-label": side ? "Second answer" : "Answer" }, this.head, this.scroller);
  }

  get leaf() { return this.chat.settings.leaves[this.side] ?? null; }

  set leaf(id) { this.chat.settings.leaves[this.side] = id; }

  path() { return this.chat.tree.path(this.leaf); }

  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.sticky = scrollHeight - scrollTop - clientHeight < 48;
  }

  follow() {
    if (this.sticky) this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  /** Shows the path; views of messages that were there stay. */
  render(empty) {
    const path = this.path();
    const views = path.map((message) => {
      const old = this.views.get(message.id);
      if (old) {
        old.message = message;
        old.update();
        return old;
      }
      return new MessageView(this.chat, this, message);
    });
    // Results of tools are shown with their calls.
    const shown = views.filter((view) => view.message.role !== "tool");
    this.views = new Map(views.map((view) => [view.message.id, view]));
    const elements = shown.length ? shown.map((view) => view.element) : [empty].filter(Boolean);
    elements.forEach((element, i) => {
      if (this.thread.children[i] !== element) this.thread.insertBefore(element, this.thread.children[i] ?? null);
    });
    while (this.thread.children.length > elements.length) this.thread.lastChild.remove();
    this.follow();
  }

  /** Shows more of a message that is written, once a frame. */
  grow(message) {
    this.due ??= requestAnimationFrame(() => {
      this.due = null;
      this.views.get(message.id)?.update();
      this.follow();
    });
  }
}
