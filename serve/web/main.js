// The page: what its parts tell each other, addresses and keys.
import { ask, get } from "./api.js";
import { Chat } from "./chat.js";
import { $, dialog, h } from "./dom.js";
import { icon } from "./icons.js";
import { fillSettings } from "./settings.js";
import { Sidebar } from "./sidebar.js";

const EXAMPLES = ["Explain how rain forms, in three sentences.", "Write a haiku about a forest.", "What is 12 times 34?"];

const say = $("say");
for (const [id, name] of [["close-side", "close"], ["open-side", "menu"], ["export", "export"], ["theme", "theme"], ["help", "help"]]) $(id).append(icon(name));
$("new").prepend(icon("plus"));

const hooks = {
  /** Settings, sides or models are others. */
  changed() {
    showModels();
    fillSettings(chat, changed);
    $("compare").setAttribute("aria-pressed", String(chat.columns.length > 1));
  },
  title() {
    if (document.activeElement !== $("title")) $("title").textContent = chat.title;
    $("title").contentEditable = chat.id ? "plaintext-only" : "false";
    document.title = chat.id ? `${chat.title} · Homegrown` : "Homegrown";
  },
  opened() { history.pushState(null, "", `#${chat.id}`); },
  listed() { sidebar.load(); },
  running() {
    const running = chat.running.size > 0;
    $("send").replaceChildren(icon(running ? "stop" : "up"));
    $("send").setAttribute("aria-label", running ? "Stop" : "Send");
    $("send").classList.toggle("stop", running);
  },
  empty(column) {
    if (column.side) return h("p", { class: "soft empty" }, "Both sides get the same message.");
    const ask = (text) => h("button", { type: "button", class: "example", onclick: () => { say.value = text; submit(); } }, text);
    return h("div", { class: "welcome" }, h("img", { src: "/assets/icon.svg", alt: "", width: 52, height: 52 }),
      h("h2", {}, "What shall we talk about?"),
      h("p", { class: "soft" }, chat.models.length ? `${chat.models[0]} answers here. What you write stays on this server.` : "Looking for the model…"),
      h("div", { class: "examples" }, EXAMPLES.map(ask)),
      h("p", { class: "soft" }, h("strong", {}, "Tokens"), " shows each choice the model made, and what else it could have said."));
  },
};

const chat = new Chat({ changed() {}, title() {}, empty() {}, running() {}, opened() {}, listed() {} });
const sidebar = new Sidebar(chat);
chat.hooks = hooks;

/** Which model answers, in the composer or above each column. */
function showModels() {
  const pick = (of, label) => {
    const names = chat.models.includes(of.model) || !of.model ? chat.models : [...chat.models, of.model];
    const select = h("select", { "aria-label": label, onchange: () => { of.model = select.value; changed(); } }, names.map((name) => h("option", { value: name, selected: name === of.model }, name)));
    return select;
  };
  const { sides } = chat.settings;
  const two = sides.length > 1;
  $("models").replaceChildren(...(two ? [] : [pick(sides[0], "Model")]));
  chat.columns.forEach((column, i) => column.head.replaceChildren(...(two ? [
    pick(sides[i], i ? "Right model" : "Left model"),
    h("span", { class: "soft" }, `temperature ${sides[i].temperature ?? 1}`),
    h("button", { type: "button", class: "quiet", onclick: () => chat.compare(false, i) }, "Keep this"),
  ] : [])));
}

function changed() {
  chat.save();
  showModels();
}

chat.toggleSettings = (open) => {
  $("settings").hidden = !open;
  $("open-settings").setAttribute("aria-expanded", String(open));
  if (open) $("settings").querySelector("textarea").focus();
  else $("open-settings").focus();
};

/** The field grows with its text. */
function fit() {
  say.style.height = "auto";
  say.style.height = `${Math.min(say.scrollHeight, innerHeight * 0.4)}px`;
}

async function submit() {
  if (chat.running.size) return;
  const text = say.value;
  if (!text.trim()) return;
  say.value = "";
  fit();
  try { await chat.say(text); } catch (error) {
    // It was not kept: it goes back to who wrote it.
    if (!say.value) say.value = text;
    fit();
    chat.problem(error);
  }
}

async function route() {
  const id = /^#([0-9a-f]{32})$/.exec(location.hash)?.[1];
  if (id === (chat.id ?? undefined)) return;
  chat.problem("");
  try {
    if (id) await chat.open(id);
    else chat.fresh();
  } catch (error) {
    chat.fresh();
    chat.problem(error);
  }
  document.body.classList.remove("side-open");
  sidebar.render();
  if (matchMedia("(min-width: 800px)").matches) say.focus();
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (chat.running.size) chat.stop();
  else submit();
});
say.addEventListener("input", fit);
say.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
$("new").addEventListener("click", () => {
  if (location.hash) location.hash = "";
  else chat.fresh();
  document.body.classList.remove("side-open");
  say.focus();
});
$("show-tokens").addEventListener("click", () => {
  chat.setTokens(!chat.showTokens);
  $("show-tokens").setAttribute("aria-pressed", String(chat.showTokens));
});
$("compare").addEventListener("click", () => chat.compare(chat.columns.length < 2));
$("open-settings").addEventListener("click", () => chat.toggleSettings($("settings").hidden));
$("theme").addEventListener("click", () => window.homegrownTheme.toggle());
$("open-side").addEventListener("click", () => { document.body.classList.add("side-open"); $("search").focus(); });
$("close-side").addEventListener("click", () => { document.body.classList.remove("side-open"); $("open-side").focus(); });
$("title").addEventListener("blur", () => chat.rename($("title").textContent.trim().slice(0, 200) || chat.title).then(() => hooks.title(), (e) => chat.problem(e)));
$("title").addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === "Escape") { event.preventDefault(); event.target.blur(); }
});

$("help").addEventListener("click", () => {
  const keys = [["Enter", "send"], ["Shift Enter", "new line"], ["Esc", "stop, or close"], ["Ctrl K", "search"], ["Ctrl Shift O", "new chat"], ["↑ in the empty field", "edit the last message"], ["← → on a message", "its other versions"], ["← → on a token", "the tokens beside it"]];
  dialog("Keyboard", h("dl", { class: "keys" }, keys.flatMap(([key, what]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)])),
    h("form", { method: "dialog" }, h("button", { class: "main" }, "Close")));
});

$("export").addEventListener("click", () => {
  const save = async (form) => {
    try {
      const blob = await (await ask(`/chat/feedback.jsonl?form=${form}`)).blob();
      const url = URL.createObjectURL(blob);
      h("a", { href: url, download: form === "messages" ? "feedback.jsonl" : "preferences.jsonl" }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
    } catch (error) { chat.problem(error); }
  };
  dialog("Feedback for later learning", h("p", {}, "Answers with a thumb or a comment, a line of JSON each."),
    h("form", { method: "dialog" },
      h("button", { type: "button", onclick: () => save("messages") }, "Conversations with judgements"),
      h("button", { type: "button", onclick: () => save("preferences") }, "Pairs: chosen and rejected"),
      h("button", { class: "main" }, "Close")));
});

document.addEventListener("keydown", (event) => {
  const control = event.ctrlKey || event.metaKey;
  if (control && event.key.toLowerCase() === "k") {
    event.preventDefault();
    document.body.classList.add("side-open");
    $("search").focus();
    $("search").select();
  } else if (control && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    $("new").click();
  } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (chat.running.size) chat.stop();
    else if (!$("settings").hidden) chat.toggleSettings(false);
    else document.body.classList.remove("side-open");
  } else if (event.key === "ArrowUp" && document.activeElement === say && !say.value) {
    const last = chat.columns[0].path().findLast((message) => message.role === "user");
    if (last) { event.preventDefault(); chat.columns[0].views.get(last.id)?.edit(); }
  }
});
addEventListener("hashchange", route);
addEventListener("popstate", route);

$("show-tokens").setAttribute("aria-pressed", String(chat.showTokens));
hooks.running();
try {
  const [models, about] = await Promise.all([get("/v1/models"), get("/chat/about")]);
  chat.models = models.data.map((model) => model.id);
  chat.about = about;
  chat.fresh();
  await Promise.all([route(), sidebar.load()]);
} catch (error) { chat.problem(error); }
