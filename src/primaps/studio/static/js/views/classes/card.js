// A class in the gallery: typical and uncertain crops, name, color, share and number of images.

import { get, url } from "../../api.js";
import { recolor, rename, tint } from "../../classes.js";
import { el, iconButton, setText } from "../../dom.js";
import { count, percent } from "../../format.js";
import { store } from "../../store.js";

const TYPICAL = 4;
const UNCERTAIN = 2;

// Crops by class id: the slider often returns to a class. `arrived` has the loaded ones with their
// leaves, which stand in for classes that exist only while the slider moves.
const known = new Map();
const arrived = new Map();
let collection = null; // collection of the crops

/** Returns crops of the classes that share leaves with a class, the largest common fraction first. */
function borrowed(one) {
  const leaves = new Set(one.leaves);
  const related = [...arrived.values()]
    .map((other) => ({ ...other, common: other.leaves.filter((leaf) => leaves.has(leaf)).length / other.leaves.length }))
    .filter(({ common }) => common > 0)
    .sort((a, b) => b.common - a.common)
    .slice(0, 6);
  const most = TYPICAL + UNCERTAIN;
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
    // The analysis may still be running: load the crops again if there are few.
    promise.then((found) => found.typical.length < TYPICAL && known.delete(id), () => known.delete(id));
  }
  return known.get(id);
}

function cropImage({ image, box }, kind) {
  const name = store.state.images?.names[image] ?? "";
  return el("img", { src: url.crop(image, box), alt: `${kind}: ${name}`, title: `${kind}: ${name}; click to show the whole image`, loading: "lazy", draggable: "false", class: kind, data: { image } });
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
  let drawn = {}; // arguments of the last update
  let last = -1; // index of the crop whose image was shown last
  let few = null; // images at the time when few crops were loaded: other images load them again
  const cropBox = el("div", { class: "crops", title: "Drag onto another class to merge" });
  const swatch = el("input", {
    type: "color", class: "color", title: "Color (Alt+C)", "aria-description": "Key Alt+C",
    on: { input: () => tint(one, swatch.value), change: () => recolor(one, swatch.value) },
  });
  const name = el("input", {
    class: "name", dir: "auto", "aria-label": "Name", maxlength: 60, spellcheck: "false", autocomplete: "off",
    on: {
      change: () => {
        const typed = name.value;
        if (!typed.trim() || typed.trim() === one.name) name.value = one.name;
        else if (!rename(one, typed)) name.value = one.name;
      },
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
  const counts = el("p", { class: "counts small muted ellipsis" });
  const share = el("div", {});
  const shareText = el("span", { class: "small" });
  const hide = iconButton("eye", "Hide", () => act.hide(one), { key: "Alt+H" });
  const shownIcon = hide.firstChild;
  const hiddenIcon = iconButton("hidden", "", () => {}).firstChild;
  const split = iconButton("split", "Split in two", () => act.split(one), { key: "Alt+S" });
  const merge = iconButton("merge", "Merge with another class", () => act.join(one), { key: "Alt+M" });
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
    cropBox,
    el("div", { class: "row title" }, swatch, name),
    el("div", { class: "row measure" }, el("div", { class: "bar thin" }, share), shareText),
    el("div", { class: "row apart" }, counts,
      el("div", { class: "row actions" }, hide, split, merge)),
  );

  const watch = new IntersectionObserver((entries) => {
    visible = entries.some((entry) => entry.isIntersecting);
    if (visible) fill();
  }, { rootMargin: "300px" });
  watch.observe(node);

  function put(found) {
    cropBox.replaceChildren(...found);
    cropBox.dataset.count = found.length;
  }

  async function fill() {
    const id = one.id;
    // A class of a moving slider does not exist on the server.
    if (one.preview) {
      if (!filled && !cropBox.childElementCount) put(borrowed(one).map((crop) => cropImage(crop, "typical")));
      return;
    }
    if (filled === id) return;
    // Wait in case the next change removes the class: quick undos load crops once.
    await new Promise((resolve) => setTimeout(resolve, 200));
    const { saving, classes, images } = store.state;
    if (id !== one.id || filled === id || saving || !classes.classes.some((other) => other.id === id)) return;
    filled = id;
    try {
      const { typical, uncertain } = await crops(id);
      if (id !== one.id) return;
      const uncertainCrops = uncertain.slice(0, UNCERTAIN);
      const found = [...typical.slice(0, TYPICAL + UNCERTAIN - uncertainCrops.length).map((crop) => cropImage(crop, "typical")), ...uncertainCrops.map((crop) => cropImage(crop, "uncertain"))];
      put(found);
      if (typical.length) arrived.set(id, { leaves: one.leaves, typical });
      few = typical.length < TYPICAL ? images : null;
    } catch {
      filled = ""; // the class or the connection is gone, which is reported elsewhere
    }
  }

  return {
    node,
    update(now, fraction, relative) {
      one = now;
      if (few && few !== store.state.images) filled = few = null;
      if (filled !== one.id && visible) fill();
      if (document.activeElement !== name && name.value !== one.name) name.value = one.name;
      // Every card receives every change, which concerns one or two of them.
      if (drawn.one === one && drawn.fraction === fraction && drawn.relative === relative) return;
      drawn = { one, fraction, relative };
      name.title = one.name;
      if (swatch.value !== one.color) swatch.value = one.color;
      share.style.width = `${Math.max(1, 100 * relative)}%`;
      share.style.background = one.color;
      node.classList.toggle("is-hidden", one.hidden);
      const symbol = one.hidden ? hiddenIcon : shownIcon;
      if (hide.firstChild !== symbol) hide.replaceChildren(symbol);
      hide.title = one.hidden ? "Show (Alt+H)" : "Hide (Alt+H)";
      hide.setAttribute("aria-pressed", one.hidden);
      // The accessible name of a button includes the class.
      hide.setAttribute("aria-label", `Hide ${one.name}`);
      split.setAttribute("aria-label", `Split ${one.name} in two`);
      merge.setAttribute("aria-label", `Merge ${one.name} with another class`);
      swatch.setAttribute("aria-label", `Color of ${one.name}`);
      split.disabled = one.leaves.length < 2;
      const stable = one.stability == null ? "" : one.stability > 0.75 ? " · stable" : one.stability < 0.5 ? " · unstable" : "";
      const places = one.images ? count(one.images, "image") : "";
      const text = `${percent(fraction)} of all pixels${places && ` · ${places}`}${stable}`;
      setText(shareText, percent(fraction));
      setText(counts, places);
      counts.title = one.stability == null ? text : `${text} (stability ${percent(one.stability)} under resampling of the images)`;
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
    /** Shows the whole image of the next crop. */
    see() {
      const found = [...cropBox.children];
      if (!found.length) return;
      last = (last + 1) % found.length;
      act.see(Number(found[last].dataset.image));
    },
    end: () => watch.disconnect(),
  };
}
