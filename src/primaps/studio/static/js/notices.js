// Notices: sentences that are shown for a few seconds and read by a screen reader.

import { button, el, iconButton } from "./dom.js";
import { sentence } from "./format.js";

const PLACE = () => document.getElementById("notices");

function show(text, bad, seconds) {
  const notice = el("div", { class: bad ? "notice bad" : "notice" }, el("span", {}, text));
  notice.classList.toggle("lost", !seconds);
  const end = () => {
    if (notice.contains(document.activeElement)) document.getElementById("view").focus({ preventScroll: true });
    notice.remove();
  };
  if (bad) notice.append(iconButton("close", "Close this message", end));
  const place = PLACE();
  for (const other of [...place.children]) if (other.textContent === text) other.remove();
  // Notices of lost changes stay until they are closed.
  const passing = [...place.children].filter((other) => !other.classList.contains("lost"));
  for (const other of passing.slice(0, -1)) other.remove();
  place.append(notice);
  if (seconds) setTimeout(end, seconds * 1000);
  return notice;
}

/** Shows a sentence with a button. */
export function notifyChoice(text, label, act) {
  const notice = show(text, true, 15);
  notice.lastChild.before(button(label, () => {
    notice.remove();
    act();
  }));
}

export function notify(text) {
  show(text, false, 3.5);
}

/** Shows the error of a request, unless the request was aborted. */
export function notifyError(error) {
  if (error.name === "AbortError") return;
  show(sentence(error.message || String(error)), true, 15);
}

/** Shows that a change was lost, and its content, until the user closes the notice. */
export function notifyLost(what, error) {
  show(`Not saved: ${what.replace(/[.]$/, "")}. ${sentence(error.message)}`, true, 0);
}
