// Light or dark, before anything is drawn: what was chosen, or what the system says.
"use strict";
(() => {
  const key = "homegrown.theme";
  const read = () => {
    try { return localStorage.getItem(key); } catch { return null; }
  };
  const apply = () => {
    const chosen = read();
    if (chosen) document.documentElement.dataset.theme = chosen;
    else delete document.documentElement.dataset.theme;
  };
  apply();
  window.homegrownTheme = {
    dark: () => (read() ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark",
    toggle() {
      const next = this.dark() ? "light" : "dark";
      try { localStorage.setItem(key, next); } catch { /* It lasts as long as the page. */ }
      document.documentElement.dataset.theme = next;
    },
  };
})();
