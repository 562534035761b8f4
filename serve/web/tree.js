// A conversation is a tree of messages: editing and asking again make siblings, nothing is lost.

export class Tree {
  constructor(messages) {
    this.byId = new Map();
    this.after = new Map();
    for (const message of messages) this.add(message);
  }

  add(message) {
    if (!this.byId.has(message.id)) {
      const key = message.parent ?? null;
      if (!this.after.has(key)) this.after.set(key, []);
      this.after.get(key).push(message.id);
    }
    this.byId.set(message.id, message);
  }

  get(id) { return this.byId.get(id); }

  /** Messages that answer or follow one; null: the beginnings. */
  children(id) { return (this.after.get(id ?? null) ?? []).map((child) => this.byId.get(child)); }

  siblings(message) { return this.children(message.parent); }

  /** From the beginning to a message. */
  path(leaf) {
    const path = [];
    for (let at = this.byId.get(leaf); at; at = this.byId.get(at.parent)) path.push(at);
    return path.reverse();
  }

  /** The newest end below a message. */
  end(id) {
    for (let next = this.children(id).at(-1); next; next = this.children(id).at(-1)) id = next.id;
    return id;
  }
}
