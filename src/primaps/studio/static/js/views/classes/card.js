// A class in the gallery: what is typical of it, what is doubtful, its name, color and figures.

import { get, url } from "../../api.js";
import { recolor, rename, tint } from "../../classes.js";
import { el, iconButton, setText } from "../../dom.js";
import { count, percent } from "../../format.js";
import { store } from "../../store.js";

const TYPICAL = 4;
const DOUBTFUL = 2;

// Crops by class: the same class comes back whenever the slider does. `arrived` has those that are
// here, with the parts they show, for classes that exist under the slider only.
const known = new Map();
const arrived = new Map();
let collection = null; // that they are of

/** Crops of classes that share parts with one, those with the most of its parts first. */
function borrowed(one) {
  const parts = new Set(one.parts);
  const related = [...arrived.values()]
    .map((other) => ({ ...other, common: other.parts.filter((part) => parts.has(part)).length / other.parts.length }))
    .filter(({ common }) => common > 0)
    .sort((a, b) => b.common - a.common)
    .slice(0, 6);
  const most = TYPICAL + DOUBTFUL;
  const found = [];
  for (let i = 0; found.length < most && i < TYPICAL; i += 1) {
    for (const { typical } of related) if (typical[i] && found.length < most) found.push(typical[i]);
  }
  return found;
}

function crops(id) {
  if (!known.has(id)) {
    const promise = get(`classes/${encodeURIComponent(id)}/crops`);
    known.set(id, promise);
    // Not all images may have been looked at yet: ask again later if there was nothing.
    promise.then((found) => found.typical.length < TYPICAL && known.delete(id), () => known.delete(id));
  }
  return known.get(id);
}

function picture({ image, box }, kind) {
  const name = store.state.images?.names[image] ?? "";
  return el("img", { src: url.crop(image, box), alt: `${kind}: ${name}`, title: `${kind}: ${name}; click to see it whole`, loading: "lazy", draggable: "false", class: kind, data: { image } });
}

export function createCard(first, act) {
  if (collection !== store.state.server.collection) {
    collection = store.state.server.collection;
    known.clear();
    arrived.clear();
  }
  let one = first;
  let filled = "";
  let visible = false;
  let drawn = {}; // what the last update was about
  let seen = -1; // the crop whose image was shown last
  let few = null; // the images as they were known when there were few crops: asked again with others
  const pictures = el("div", { class: "crops", title: "Drag onto another class to merge" });
  const swatch = el("input", {
    type: "color", class: "color", title: "Color (C)", "aria-description": "Key C",
    on: { input: () => tint(one, swatch.value), change: () => recolor(one, swatch.value) },
  });
  const name = el("input", {
    class: "name", "aria-label": "Name", maxlength: 60, spellcheck: "false", autocomplete: "off",
    on: {
      change: () => rename(one, name.value),
      keydown: (event) => {
        if (event.key === "Enter") {
          name.blur();
          node.focus();
        } else if (event.key === "Escape") {
          name.value = one.name;
          node.focus();
        }
        event.stopPropagation();
      },
    },
  });
  const figures = el("p", { class: "figures small muted cut" });
  const share = el("div", {});
  const part = el("span", { class: "small" });
  const hide = iconButton("eye", "Hide", () => act.hide(one), { key: "H" });
  const shownIcon = hide.firstChild;
  const hiddenIcon = iconButton("hidden", "", () => {}).firstChild;
  const split = iconButton("split", "Split in two", () => act.split(one), { key: "S" });
  const merge = iconButton("merge", "Merge with another class", () => act.join(one), { key: "M" });
  const node = el("li", {
    class: "card", tabindex: "0", data: { id: one.id },
    on: {
      pointerenter: () => act.point(one.id),
      pointerleave: () => act.point(null),
      focusin: () => act.point(one.id),
      focusout: () => act.point(null),
      click: (event) => {
        if (event.target.closest("input, button")) return;
        if (act.take(one)) event.preventDefault();
        else if (event.target.dataset.image) act.see(Number(event.target.dataset.image));
      },
    },
  },
    pictures,
    el("div", { class: "row title" }, swatch, name),
    el("div", { class: "row measure" }, el("div", { class: "bar thin" }, share), part),
    el("div", { class: "row apart" }, figures,
      el("div", { class: "row actions" }, hide, split, merge)),
  );

  const watch = new IntersectionObserver((entries) => {
    visible = entries.some((entry) => entry.isIntersecting);
    if (visible) fill();
  }, { rootMargin: "300px" });
  watch.observe(node);

  function put(found) {
    pictures.replaceChildren(...found);
    pictures.dataset.count = found.length;
  }

  async function fill() {
    const id = one.id;
    // A class of the slider's way exists on the server once it is let go.
    if (one.preview) {
      if (!filled && !pictures.childElementCount) put(borrowed(one).map((crop) => picture(crop, "typical")));
      return;
    }
    if (filled === id) return;
    // Not for a class that the next change takes away: a few quick undos ask once.
    await new Promise((resolve) => setTimeout(resolve, 200));
    const { saving, classes, images } = store.state;
    if (id !== one.id || filled === id || saving || !classes.classes.some((other) => other.id === id)) return;
    filled = id;
    try {
      const { typical, doubtful } = await crops(id);
      if (id !== one.id) return;
      const doubts = doubtful.slice(0, DOUBTFUL);
      const found = [...typical.slice(0, TYPICAL + DOUBTFUL - doubts.length).map((crop) => picture(crop, "typical")), ...doubts.map((crop) => picture(crop, "doubtful"))];
      put(found);
      if (typical.length) arrived.set(id, { parts: one.parts, typical });
      few = typical.length < TYPICAL ? images : null;
    } catch {
      filled = ""; // the class is gone, or the studio is: both are said elsewhere
    }
  }

  return {
    node,
    update(now, fraction, relative) {
      one = now;
      if (few && few !== store.state.images) filled = few = null;
      if (filled !== one.id && visible) fill();
      if (document.activeElement !== name && name.value !== one.name) name.value = one.name;
      // Every change comes to every card, and is about one or two of them.
      if (drawn.one === one && drawn.fraction === fraction && drawn.relative === relative) return;
      drawn = { one, fraction, relative };
      name.title = one.name;
      if (swatch.value !== one.color) swatch.value = one.color;
      share.style.width = `${Math.max(1, 100 * relative)}%`;
      share.style.background = one.color;
      node.classList.toggle("is-hidden", one.hidden);
      const symbol = one.hidden ? hiddenIcon : shownIcon;
      if (hide.firstChild !== symbol) hide.replaceChildren(symbol);
      hide.title = one.hidden ? "Show (H)" : "Hide (H)";
      hide.setAttribute("aria-pressed", one.hidden);
      // Every card has these: out of its card, each says whose it is.
      hide.setAttribute("aria-label", `Hide ${one.name}`);
      split.setAttribute("aria-label", `Split ${one.name} in two`);
      merge.setAttribute("aria-label", `Merge ${one.name} with another class`);
      swatch.setAttribute("aria-label", `Color of ${one.name}`);
      split.disabled = one.parts.length < 2;
      const steady = one.stability == null ? "" : one.stability > 0.75 ? " · steady" : one.stability < 0.5 ? " · unsteady" : "";
      const places = one.images ? count(one.images, "image") : "";
      const text = `${percent(fraction)} of all pixels${places && ` · ${places}`}${steady}`;
      setText(part, percent(fraction));
      setText(figures, places);
      figures.title = one.stability == null ? text : `${text}: found again to ${percent(one.stability)} when images are drawn anew`;
      node.setAttribute("aria-label", `${one.name}${one.hidden ? ", hidden" : ""}, ${text}`);
    },
    mark(joining, waiting) {
      node.classList.toggle("joining", joining);
      node.classList.toggle("waiting", waiting && !joining);
    },
    type() {
      name.focus();
      name.select();
    },
    color: () => swatch.click(),
    /** The whole image of the next of its crops. */
    see() {
      const found = [...pictures.children];
      if (!found.length) return;
      seen = (seen + 1) % found.length;
      act.see(Number(found[seen].dataset.image));
    },
    end: () => watch.disconnect(),
  };
}
