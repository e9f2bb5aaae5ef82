// Light, dark, or as the system has it; remembered in this browser.

const dark = matchMedia("(prefers-color-scheme: dark)");

function chosen() {
  return localStorage.getItem("theme") ?? (dark.matches ? "dark" : "light");
}

const listeners = [];

export function applyTheme() {
  document.documentElement.dataset.theme = chosen();
  for (const listener of listeners) listener(chosen());
}

/** Called with "light" or "dark" at once and at every change. */
export function onTheme(listener) {
  listeners.push(listener);
  listener(chosen());
}

export function toggleTheme() {
  const next = chosen() === "dark" ? "light" : "dark";
  if (next === (dark.matches ? "dark" : "light")) localStorage.removeItem("theme");
  else localStorage.setItem("theme", next);
  applyTheme();
}

dark.addEventListener("change", applyTheme);
