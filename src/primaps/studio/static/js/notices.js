// What happened, in a sentence: seen for a while, and read out by a screen reader.

import { el, iconButton } from "./dom.js";

const PLACE = () => document.getElementById("notices");

function show(sentence, bad, seconds) {
  const notice = el("div", { class: bad ? "notice bad" : "notice" }, el("span", {}, sentence));
  const end = () => notice.remove();
  if (bad) notice.append(iconButton("close", "Close", end));
  const place = PLACE();
  while (place.children.length > 1) place.firstChild.remove();
  place.append(notice);
  setTimeout(end, seconds * 1000);
}

export function tell(sentence) {
  show(sentence, false, 3.5);
}

/** An error as the server says it; a request that was called off is none. */
export function complain(error) {
  if (error.name === "AbortError") return;
  const text = error.message || String(error);
  show(text[0].toUpperCase() + text.slice(1), true, 15);
}
