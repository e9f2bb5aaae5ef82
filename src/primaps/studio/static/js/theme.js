// Light or dark theme: the choice of the user, stored in the browser, or of the system.

const dark = matchMedia("(prefers-color-scheme: dark)");

function chosen() {
  return localStorage.getItem("theme") ?? (dark.matches ? "dark" : "light");
}

const listeners = [];

export function applyTheme() {
  document.documentElement.dataset.theme = chosen();
  for (const listener of listeners) listener(chosen());
}

/** Calls a listener with "light" or "dark", now and at every change. */
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
