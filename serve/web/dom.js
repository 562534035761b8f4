// Elements are built, never parsed: text of a model can only ever be text.

/** An element: `on…` are listeners, `true` sets an attribute, `false` and null leave it out. */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "value") element.value = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

export const $ = (id) => document.getElementById(id);

/** What a screen reader says, once. */
export function announce(text) {
  const live = $("live");
  live.textContent = "";
  requestAnimationFrame(() => { live.textContent = text; });
}

/** Calls after things have been quiet for a while. */
export function later(ms, call) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...args), ms);
  };
}

/** What the browser keeps for this page; nothing where it may not. */
export const kept = {
  read(name, otherwise) {
    try { return JSON.parse(localStorage.getItem(`homegrown.${name}`)) ?? otherwise; } catch { return otherwise; }
  },
  write(name, value) {
    try { localStorage.setItem(`homegrown.${name}`, JSON.stringify(value)); } catch { /* It is a convenience. */ }
  },
};

/** Copies text, also where the page has no secure origin (another machine's address). */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = h("textarea", { class: "unseen", value: text });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** A dialog that is gone when it is closed. Returns it. */
export function dialog(title, ...content) {
  const box = h("dialog", { "aria-label": title, onclose: () => box.remove() }, h("h2", {}, title), ...content);
  document.body.append(box);
  box.showModal();
  return box;
}
