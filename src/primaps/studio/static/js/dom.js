// Creates elements. Text is always a text node: a name cannot become markup.

const SVG = "http://www.w3.org/2000/svg";

/** Creates an element: `el("p", { class: "muted", on: { click } }, "text", child)`; skips null children. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) setProp(node, name, value);
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function setProp(node, name, value) {
  if (name.startsWith("aria-") && typeof value === "boolean") value = String(value); // ARIA needs an explicit "false"
  if (value === null || value === undefined || value === false) return;
  if (name === "on") {
    for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
  } else if (name === "style") {
    // The content security policy blocks style attributes, not the CSSOM.
    for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
  } else if (name === "data") {
    Object.assign(node.dataset, value);
  } else if (name === "value" || name === "checked" || name === "indeterminate") {
    node[name] = value;
  } else {
    node.setAttribute(name, value === true ? "" : value);
  }
}

/** Sets text only if it differs: a screen reader reads a replaced text again. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Returns the number of canvas pixels per CSS pixel. */
export const ratio = () => Math.min(window.devicePixelRatio || 1, 2);

const PATHS = {
  undo: ["M9 14 4 9l5-5", "M4 9h10a6 6 0 0 1 0 12h-3"],
  redo: ["m15 14 5-5-5-5", "M20 9H10a6 6 0 0 0 0 12h3"],
  help: ["M9 9a3 3 0 1 1 4.5 2.6c-1 .6-1.5 1.2-1.5 2.4", "M12 17.5v.1", "M3 12a9 9 0 1 0 18 0 9 9 0 0 0-18 0"],
  theme: ["M12 3a9 9 0 1 0 9 9", "M12 3a9 9 0 0 1 9 9 6.5 6.5 0 0 1-9-9z"],
  eye: ["M2 12s4-7 10-7 10 7 10 7-4 7-10 7S2 12 2 12z", "M9 12a3 3 0 1 0 6 0 3 3 0 0 0-6 0"],
  hidden: ["M3 3l18 18", "M10 5.3A9 9 0 0 1 12 5c6 0 10 7 10 7a17 17 0 0 1-3 3.7", "M6 7a17 17 0 0 0-4 5s4 7 10 7a9 9 0 0 0 4-1"],
  split: ["M12 21v-8", "M12 13 5 6", "m12 13 7-7", "M5 11V6h5", "M14 6h5v5"],
  merge: ["M12 3v8", "m12 11-6 8", "m12 11 6 8", "m8 7 4 4 4-4"],
  plus: ["M12 5v14", "M5 12h14"],
  minus: ["M5 12h14"],
  fit: ["M4 9V4h5", "M20 9V4h-5", "M4 15v5h5", "M20 15v5h-5"],
  next: ["M5 12h14", "m13 6 6 6-6 6"],
  back: ["M19 12H5", "m11 6-6 6 6 6"],
  brush: ["M14 4l6 6-8 8-6-6z", "M6 12c-2 1-1 4-4 6 3 2 7 2 10 0"],
  warn: ["M12 4 2.5 20h19z", "M12 10v4", "M12 17v.1"],
  image: ["M3 5h18v14H3z", "m3 16 5-5 4 4 3-3 6 5", "M15.5 9a1 1 0 1 0 2 0 1 1 0 0 0-2 0"],
  folder: ["M3 6h6l2 3h10v10H3z"],
  done: ["m5 12.5 4.5 4.5L19 7.5"],
  close: ["M6 6l12 12", "M18 6 6 18"],
  save: ["M12 3v12", "m7 10 5 5 5-5", "M4 20h16"],
  file: ["M6 3h8l4 4v14H6z", "M14 3v4h4"],
};

/** Creates a decorative icon. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon-svg");
  svg.setAttribute("aria-hidden", "true");
  for (const d of PATHS[name]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", d);
    svg.append(path);
  }
  return svg;
}

/** Creates a thumbnail, or an icon if the image cannot be read. */
export function thumbnail(src, alt, props = {}) {
  const failed = () => node.replaceWith(el("span", { class: "unreadable", role: "img", "aria-label": `${alt} cannot be read`.trim() }, icon("warn")));
  const node = el("img", { src, alt, ...props, on: { error: failed } });
  return node;
}

export function button(text, click, { kind = "", symbol = null, key = "", ...props } = {}) {
  const title = key ? `${props.title ?? text} (${key})` : props.title;
  // The accessible description adds only the key: the tooltip repeats the name.
  if (key) props = { "aria-description": `Key ${key}`, ...props };
  return el(
    "button",
    { type: "button", class: `button ${kind}`, ...props, title, on: { click } },
    symbol && icon(symbol),
    text || null,
  );
}

/** Creates a button with an icon; its text is the accessible name and the tooltip. */
export function iconButton(symbol, label, click, { key = "", kind = "plain", ...props } = {}) {
  return button("", click, { kind: `icon ${kind}`, symbol, key, title: label, "aria-label": label, ...props });
}

/** Replaces the children of a node; a focus inside moves to the new heading. */
export function refill(node, ...children) {
  const held = node.contains(document.activeElement);
  node.replaceChildren(...children);
  const heading = held && !node.contains(document.activeElement) && node.querySelector("h2");
  if (!heading) return;
  heading.tabIndex = -1;
  heading.focus({ preventScroll: true });
}

/** Creates a file name that is shortened before its last characters, in which neighbors differ. */
export function fileLabel(name) {
  const at = Math.max(0, name.length - 11);
  const seen = [el("span", { class: "ellipsis", "aria-hidden": true }, name.slice(0, at)), el("span", { "aria-hidden": true }, name.slice(at))];
  return el("span", { class: "file-label", dir: "auto" }, el("span", { class: "visually-hidden" }, name), seen);
}

/** Creates the content of an empty or failed view. */
export function emptyState(symbol, title, sentence, ...actions) {
  return el("div", { class: "empty-state" }, icon(symbol), el("h2", {}, title), el("p", {}, sentence), ...actions);
}

export function message(sentence, bad = false) {
  return el("div", { class: bad ? "message bad" : "message", role: bad ? "alert" : "note" }, icon("warn"), el("div", {}, sentence));
}

/** Creates a radio group of buttons with arrow keys. */
export function choices(label, options, chosen, choose) {
  const group = el("div", { class: "choices", role: "radiogroup", "aria-label": label });
  const buttons = options.map(([value, text, title]) =>
    el("button", { type: "button", role: "radio", title, data: { value }, on: { click: () => pick(value) } }, text),
  );
  const mark = (value) => {
    for (const one of buttons) {
      const on = one.dataset.value === String(value);
      one.setAttribute("aria-checked", on);
      one.tabIndex = on ? 0 : -1;
    }
  };
  const pick = (value) => {
    mark(value);
    choose(value);
  };
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const open = buttons.filter((one) => !one.disabled);
    const now = open.findIndex((one) => one.getAttribute("aria-checked") === "true");
    const then = open[(now + step + open.length) % open.length];
    then.click();
    then.focus();
  });
  group.append(...buttons);
  mark(chosen);
  group.mark = mark;
  return group;
}

/** Creates a progress bar; `set(share)` takes 0..1. */
export function meter(label) {
  const bar = el("div", {});
  const node = el("div", { class: "bar", role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 }, bar);
  const set = (share) => {
    bar.style.width = `${100 * share}%`;
    node.setAttribute("aria-valuenow", Math.round(100 * share));
  };
  return Object.assign(node, { set });
}

/** Creates a range input with a label and its value. */
export function slider(label, { id, min, max, step, value, show = String, input, change, ...props }) {
  // The output is hidden from screen readers, which read the value of the range.
  const output = el("output", { for: id, "aria-hidden": true }, show(value));
  const range = el("input", {
    type: "range", id, min, max, step, ...props,
    on: {
      input: () => {
        set(Number(range.value));
        input?.(Number(range.value));
      },
      change: () => change?.(Number(range.value)),
    },
  });
  const set = (now) => {
    range.value = now;
    setText(output, show(now));
    range.setAttribute("aria-valuetext", show(now));
  };
  set(value);
  const node = el("div", { class: "slider" }, el("label", { class: "label", for: id }, label), output, range);
  return Object.assign(node, { set, range });
}
