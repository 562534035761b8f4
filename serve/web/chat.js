// The conversation that is open: its tree, its branches on the page, and everything that adds to it.
import { get, post, send } from "./api.js";
import { Column } from "./column.js";
import { $, announce, kept, later } from "./dom.js";
import { side } from "./settings.js";
import { answer, request } from "./stream.js";
import { results, run } from "./tools.js";
import { textOf } from "./tokens.js";
import { Tree } from "./tree.js";

/** Calls that are run one after the other before the person is asked. */
const ROUNDS = 8;

export class Chat {
  constructor(hooks) {
    this.hooks = hooks;
    this.models = [];
    this.about = {};
    this.showTokens = kept.read("tokens", false);
    this.running = new Map();
    this.save = later(300, () => this.saveNow());
    this.fresh();
  }

  /** An empty conversation, with the settings of the last one. */
  fresh() {
    this.stop();
    const last = kept.read("settings", {});
    const model = this.models[0];
    const known = (of) => ({ ...side(model), ...of, model: this.models.includes(of?.model) ? of.model : model });
    Object.assign(this, { id: null, title: "New chat", tree: new Tree([]), settings: { system: "", tools: [], ...last, sides: [known(last.sides?.[0])], leaves: [null] } });
    this.layout();
  }

  async open(id) {
    this.stop();
    const { messages, title, settings } = await get(`/chat/conversations/${id}`);
    const leaves = settings.leaves ?? [];
    Object.assign(this, { id, title, tree: new Tree(messages) });
    this.settings = { system: "", tools: [], ...settings, sides: settings.sides?.length ? settings.sides : [side(this.models[0])], leaves };
    // Where a leaf isn't known, or something came after it: the newest end.
    this.settings.leaves = this.settings.sides.map((_, i) => {
      const leaf = this.tree.get(leaves[i]) ? leaves[i] : this.tree.children(null).at(-1)?.id ?? null;
      return leaf && this.tree.end(leaf);
    });
    this.layout();
    for (const column of this.columns) column.scroller.scrollTop = column.scroller.scrollHeight;
    for (const message of messages) if (message.state === "writing") this.watch(message);
  }

  /** Follows an answer that somebody else's page is reading. */
  async watch(message) {
    const { id } = this;
    while (message.state === "writing" && this.id === id) {
      await new Promise((wake) => { setTimeout(wake, 1000); });
      if (this.running.size || this.id !== id) return;
      try { message = await get(`/chat/messages/${message.id}`); } catch { return; }
      this.tree.add(message);
      this.render();
    }
  }

  /** Makes the columns anew. */
  layout() {
    this.columns = this.settings.sides.map((_, i) => new Column(this, i));
    $("columns").replaceChildren(...this.columns.map((column) => column.element));
    $("columns").classList.toggle("two", this.columns.length > 1);
    this.render();
    this.hooks.changed();
  }

  render() {
    for (const column of this.columns) column.render(this.hooks.empty(column));
    this.hooks.title();
  }

  problem(error) {
    if (error?.name === "AbortError") return;
    const text = error?.message ?? String(error ?? "");
    $("problem").textContent = text;
    $("problem").hidden = !text;
  }

  async saveNow() {
    kept.write("settings", { system: this.settings.system, tools: this.settings.tools, sides: this.settings.sides });
    if (!this.id) return;
    try { await send("PATCH", `/chat/conversations/${this.id}`, { settings: this.settings }); } catch (error) { this.problem(error); }
  }

  async rename(title) {
    if (!this.id || title === this.title) return;
    await send("PATCH", `/chat/conversations/${this.id}`, { title });
    this.title = title;
    this.hooks.listed();
  }

  /** Sends what a person wrote to each side. It throws if it could not be kept: nothing is shown then. */
  async say(text) {
    this.problem("");
    if (!this.id) {
      const title = text.trim().split("\n")[0].slice(0, 80) || "Chat";
      const made = await post("/chat/conversations", { title, settings: this.settings });
      Object.assign(this, { id: made.id, title });
      this.hooks.opened();
    }
    const said = new Map();
    const asked = [];
    for (const column of this.columns) {
      const parent = column.leaf;
      // Sides that stand at the same message share what follows it.
      if (!said.has(parent)) said.set(parent, await this.add({ parent, role: "user", content: text }));
      column.leaf = said.get(parent).id;
      column.sticky = true;
      asked.push(column);
    }
    this.render();
    this.hooks.listed();
    await this.answerAll(asked);
  }

  async add(message) {
    const made = await post(`/chat/conversations/${this.id}/messages`, message);
    this.tree.add(made);
    return made;
  }

  answerAll(columns) { return Promise.all(columns.map((column) => this.answer(column))); }

  /** The next message of a column, and of its tools, until it is the person's turn. `prefix`: how it has to begin. */
  async answer(column, prefix) {
    for (let round = 0; round < ROUNDS; round += 1) {
      const message = await this.one(column, prefix);
      prefix = undefined;
      if (message?.state !== "tool_calls" || !(await this.runTools(column, message))) return;
    }
  }

  async one(column, prefix) {
    const stop = new AbortController();
    const parent = column.leaf;
    const conversation = this.id;
    this.running.set(column, stop);
    this.hooks.running();
    const body = request(this.tree.path(parent), this.settings, this.settings.sides[column.side]);
    if (prefix !== undefined) {
      body.messages.push({ role: "assistant", content: prefix });
      body.continue_final_message = true;
    }
    const onstart = (message) => {
      this.tree.add(message);
      column.leaf = message.id;
      this.render();
      announce("Answering");
    };
    try {
      const onpiece = (message) => column.grow(message);
      const message = await answer({ conversation, parent, body, signal: stop.signal, onstart, onpiece });
      if (this.id !== conversation) return null;
      announce(message.error ?? (message.content || "Answered"));
      this.render();
      this.save();
      return message;
    } catch (error) {
      if (this.id === conversation) {
        this.problem(error);
        this.render();
      }
      return null;
    } finally {
      if (this.running.get(column) === stop) this.running.delete(column);
      this.hooks.running();
    }
  }

  stop() {
    for (const stop of this.running?.values() ?? []) stop.abort();
  }

  /** Runs the calls of a message that can be run here; whether all are done. */
  async runTools(column, message) {
    const known = (this.about.tools ?? []).map((tool) => tool.function.name);
    for (const [i, call] of message.tool_calls.entries()) {
      if (results(message, column.path())[i]) continue;
      try {
        const content = await run(call, known);
        if (content === null) { this.render(); return false; }
        await this.addResult(column, call, content);
      } catch (error) {
        this.problem(error);
        return false;
      }
    }
    this.render();
    return true;
  }

  async addResult(column, call, content) {
    const made = await this.add({ parent: column.leaf, role: "tool", content, tool_call_id: call.id });
    column.leaf = made.id;
  }

  /** What a person says that a tool returned. */
  async toolResult(column, message, call, content) {
    try {
      await this.addResult(column, call, content);
      this.render();
      if (await this.runTools(column, message)) await this.answer(column);
    } catch (error) { this.problem(error); }
  }

  /** Another version of what a person said, answered; or of an answer, kept. */
  async edit(column, message, text) {
    this.problem("");
    try {
      const made = await this.add({ parent: message.parent, role: message.role, content: text });
      column.leaf = made.id;
      this.render();
      this.save();
      if (message.role === "user") await this.answer(column);
    } catch (error) { this.problem(error); }
  }

  async regenerate(column, message) {
    if (this.running.has(column)) return;
    this.problem("");
    column.leaf = message.parent;
    column.sticky = true;
    this.render();
    await this.answer(column);
    // It may not have begun.
    if (column.leaf === message.parent) {
      column.leaf = this.tree.end(message.id);
      this.render();
    }
  }

  /** The same answer up to a token, another token there, and on from it. */
  async continueFrom(column, message, index, token) {
    if (this.running.has(column)) return;
    const begun = textOf([...message.tokens.slice(0, index).map(([text]) => text), token]);
    this.problem(begun === null ? new Error("This is in the middle of a character: pick a token after it.") : "");
    if (begun === null) return;
    column.leaf = message.parent;
    await this.answer(column, (message.asked?.begun ?? "") + begun);
    if (column.leaf === message.parent) {
      column.leaf = message.id;
      this.render();
    }
  }

  /** To another version of a message. */
  walk(column, message, step) {
    const siblings = this.tree.siblings(message);
    const next = siblings[siblings.indexOf(message) + step];
    if (!next || this.running.has(column)) return;
    column.leaf = this.tree.end(next.id);
    column.sticky = false;
    column.render();
    column.views.get(next.id)?.element.focus({ preventScroll: false });
    announce(`Version ${siblings.indexOf(next) + 1} of ${siblings.length}`);
    this.save();
  }

  /** Two sides, or one; `keep`: which stays. */
  compare(two, keep = 0) {
    this.stop();
    const { sides, leaves } = this.settings;
    if (two) {
      const other = this.models.find((model) => model !== sides[0].model) ?? sides[0].model;
      this.settings.sides = [sides[0], { ...sides[0], model: other }];
      this.settings.leaves = [leaves[0], leaves[0]];
    } else {
      this.settings.sides = [sides[keep]];
      this.settings.leaves = [leaves[keep]];
    }
    this.layout();
    this.save();
  }

  setTokens(on) {
    this.showTokens = on;
    kept.write("tokens", on);
    for (const column of this.columns) {
      for (const view of column.views.values()) view.update();
      column.follow();
    }
  }
}
