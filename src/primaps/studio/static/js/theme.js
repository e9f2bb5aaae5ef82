// Light, dark, or as the system has it; remembered in this browser.

const dark = matchMedia("(prefers-color-scheme: dark)");

function chosen() {
  return localStorage.getItem("theme") ?? (dark.matches ? "dark" : "light");
}

export function applyTheme() {
  document.documentElement.dataset.theme = chosen();
}

export function toggleTheme() {
  const next = chosen() === "dark" ? "light" : "dark";
  if (next === (dark.matches ? "dark" : "light")) localStorage.removeItem("theme");
  else localStorage.setItem("theme", next);
  applyTheme();
}

dark.addEventListener("change", applyTheme);
