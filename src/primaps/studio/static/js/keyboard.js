// The keys of the page and of the open view, in the table that "?" shows.

import { button, el } from "./dom.js";

const typing = (target) =>
  target.isContentEditable || (target.matches("input, select, textarea") && target.type !== "range" && target.type !== "checkbox");

let ofView = [];
let ofPage = [];

/** Sets the keys of the open view: `[{ keys: ["y"], shown: "Y", does: "answer yes", act }]`. */
export function viewKeys(keys) {
  ofView = keys;
}

export function pageKeys(keys) {
  ofPage = keys;
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
    const command = event.ctrlKey || event.metaKey;
    if (typing(event.target) && !command) return;
    if (command && event.altKey) return; // AltGr types characters
    // With Alt, some keyboards give another character than that on the key.
    const key = event.altKey ? event.code.replace(/^Key/, "") : event.key;
    const name = `${command ? "mod+" : ""}${event.altKey ? "alt+" : ""}${event.shiftKey && command ? "shift+" : ""}${key.length === 1 ? key.toLowerCase() : key}`;
    // Inside a field, the browser handles undo.
    if (typing(event.target) && name.endsWith("+z")) return;
    // A focused button or slider handles its own keys.
    if ([" ", "Enter"].includes(event.key) && event.target.closest("button, a, summary")) return;
    if (event.key.startsWith("Arrow") && event.target.matches('[type="range"]')) return;
    const found = [...ofView, ...ofPage].find((one) => one.keys.includes(name) && (one.when?.() ?? true));
    if (!found) return;
    event.preventDefault();
    found.act(event);
  });
}

/** Opens the dialog with all keys. */
export function showKeys() {
  const list = (title, keys) =>
    el("section", {},
      el("h3", {}, title),
      el("dl", {}, keys.filter((one) => one.does).flatMap((one) => [
        el("dt", {}, one.shown.split(" ").flatMap((key) => [el("kbd", {}, key), " "])),
        el("dd", {}, one.does),
      ])),
    );
  const dialog = el("dialog", { "aria-label": "Keys", on: { close: () => dialog.remove() } });
  const close = button("Close", () => dialog.close(), { autofocus: true });
  dialog.append(
    el("div", { class: "row apart" }, el("h2", {}, "Keys"), close),
    el("div", { class: "keys" }, ofView.length ? list("In this view", ofView) : null, list("Everywhere", ofPage)),
    el("p", { class: "muted small keys-note" }, "With a screen reader, use its focus mode for these keys."),
  );
  document.body.append(dialog);
  dialog.showModal();
}
