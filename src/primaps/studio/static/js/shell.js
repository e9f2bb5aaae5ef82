// The frame of the page: the steps, undo and redo, and the sentence about the next step.

import { el, icon, iconButton, setText } from "./dom.js";
import { redo, undo } from "./classes.js";
import { count } from "./format.js";
import { showKeys } from "./keyboard.js";
import { store } from "./store.js";
import { onTheme, toggleTheme } from "./theme.js";

/** @param views `{ name: { title, open(state), guide(state) } }`, in the order of the steps. */
export function createShell(views) {
  const folder = el("span", { class: "folder ellipsis", dir: "auto" });
  const saved = el("span", { class: "saved", role: "status" });
  const tools = {
    undo: iconButton("undo", "Undo", undo, { key: "Ctrl+Z" }),
    redo: iconButton("redo", "Redo", redo, { key: "Ctrl+Shift+Z" }),
    theme: iconButton("theme", "", toggleTheme),
  };
  const links = Object.entries(views).map(([name, view]) =>
    el("a", { href: `#${name}`, data: { view: name } }, view.title),
  );
  document.getElementById("top").append(
    el("div", { class: "brand" }, el("img", { src: "/static/icon.svg", alt: "" }), el("span", {}, "primaps"), folder),
    el("nav", { class: "steps", "aria-label": "Steps" }, links),
    el("div", { class: "tools" }, saved, tools.undo, tools.redo,
      tools.theme, iconButton("help", "Keys", showKeys, { key: "?", "aria-haspopup": "dialog" })),
  );
  onTheme((theme) => {
    const does = theme === "dark" ? "Light colors" : "Dark colors";
    tools.theme.title = does;
    tools.theme.setAttribute("aria-label", does);
  });

  const title = el("h1", { id: "title" });
  const sentence = el("p", {});
  const next = el("a", { class: "button primary" });
  document.getElementById("guide").append(title, sentence, next);

  function refresh() {
    const { state } = store;
    const { classes, server, saving, unsaved, view, disconnected } = state;
    setText(folder, server?.folder ?? "");
    folder.title = server?.folder ?? "";
    setText(saved, disconnected ? (saving ? "Not saved" : "Disconnected") : saving ? "Saving…" : classes ? "Saved" : "");
    saved.classList.toggle("bad", Boolean(disconnected && saving));
    for (const [name, what] of [["undo", classes?.undo], ["redo", classes?.redo]]) {
      tools[name].disabled = !what;
      const does = name === "undo" ? "Undo" : "Redo";
      tools[name].title = what ? `${does}: ${what}` : `Nothing to ${name}`;
      tools[name].setAttribute("aria-label", what ? `${does}: ${what}` : does);
    }
    for (const link of links) {
      const name = link.dataset.view;
      if (name === view) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
      const open = views[name].open(state);
      link.setAttribute("aria-disabled", !open);
      link.title = open ? "" : "Opens when the classes are found";
    }
    setText(title, views[view].title);
    document.title = `${views[view].title} · ${server?.folder || "primaps studio"}`;
    const { text, to, label } = views[view].open(state)
      ? views[view].guide(state)
      : { text: "This view opens when the classes are found.", to: "start", label: "Start" };
    sentence.classList.toggle("disconnected", Boolean(disconnected));
    sentence.setAttribute("aria-live", disconnected ? "assertive" : "off"); // a screen reader reads a lost connection at once
    const waiting = saving ? ` ${count(saving, "change is", "changes are")} not saved and will be sent then: ${unsaved.slice(-3).join("; ")}.` : "";
    setText(sentence, disconnected ? disconnected + waiting : text);
    next.hidden = !to;
    if (to && next.dataset.to !== `${to} ${label}`) {
      next.dataset.to = `${to} ${label}`;
      next.setAttribute("href", `#${to}`);
      next.replaceChildren(label, icon("next"));
    }
  }
  store.on("server classes images audit saving unsaved view disconnected", refresh);
  return refresh;
}
