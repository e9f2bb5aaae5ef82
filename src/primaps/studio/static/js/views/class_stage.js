// A stage with the classes of an image, which follows all changes of the classes and the overlay.

import { byLeaf, shareOf, shown } from "../classes.js";
import { confidence, groups } from "../confidence.js";
import { el, emptyState, ratio, setText } from "../dom.js";
import { createStage } from "../draw/stage.js";
import { percent } from "../format.js";
import * as loader from "../loader.js";
import { notifyError } from "../notices.js";
import { palette } from "../palette.js";
import { store } from "../store.js";
import { owners } from "../tree.js";

const MAX_DESCRIBED = 8; // maximum number of classes in the description of an image

/** @param options of {@link createStage}; `arrive(map)` is called with each new leaf map */
export function createClassStage({ label, arrive = () => {}, hover = () => {}, ...options }) {
  const tag = el("div", { class: "tag", hidden: true });
  const swatch = el("span", { class: "swatch" });
  const text = el("span", { class: "ellipsis", dir: "auto" });
  tag.append(swatch, text);
  let image = -1;
  let map = null;
  let logits = null;
  let pointed = null;
  let known = [];

  const stage = createStage({
    label,
    overlay: () => store.state,
    hover(point, at) {
      say(point, at);
      hover(point, at);
    },
    ...options,
  });
  const trouble = emptyState("warn", "This image cannot be shown", "");
  trouble.hidden = true;
  const waiting = el("div", { class: "waits", hidden: true }, "Analyzing this image…");
  stage.node.append(tag, el("div", { role: "status" }, trouble, waiting));

  /** Describes the canvas for a screen reader: image, mode, and classes by share. */
  function describe() {
    const { names, shares } = store.state.images;
    const sized = shares[image] ? shown().map((one) => [one, shareOf(one, shares[image])]) : [];
    const words = sized.filter(([one, share]) => !one.hidden && share > 0.005).sort((a, b) => b[1] - a[1])
      .slice(0, MAX_DESCRIBED).map(([one, share]) => `${one.name} ${percent(share)}`);
    stage.canvas.setAttribute("aria-label", [names[image], label, ...words].join(", "));
  }

  function classAt(point) {
    if (!map || !point || point.x < 0 || point.y < 0 || point.x >= 1 || point.y >= 1) return null;
    return known[map.values[Math.floor(point.y * map.height) * map.width + Math.floor(point.x * map.width)]] ?? null;
  }

  function say(point, at) {
    const one = classAt(point);
    tag.hidden = !one;
    if (!one) return;
    const x = Math.min(at.x / ratio() + 14, stage.node.clientWidth - tag.offsetWidth - 8);
    tag.style.left = `${x}px`;
    tag.style.top = `${at.y / ratio() + 14}px`;
    swatch.style.background = one.color;
    setText(text, one.hidden ? `${one.name} (hidden)` : one.name);
  }

  function paint() {
    const { classes } = store.state;
    if (!classes) return;
    const now = shown();
    known = byLeaf(now, classes.leaves);
    stage.palette("classes", palette(now, classes.leaves + 1, pointed));
  }

  // The confidence depends on merges and splits only, and is needed for a minimum confidence only.
  let measured = ""; // key of the current confidence map
  function measure() {
    const { classes, minConfidence } = store.state;
    if (!logits || !classes || !minConfidence) return;
    const group = groups(shown(), owners(classes));
    const key = `${image} ${group}`;
    if (key === measured) return;
    measured = key;
    stage.confidence(confidence(logits, group));
  }

  async function fetchLogits() {
    const requested = image;
    if (!store.state.minConfidence || logits) return;
    try {
      const found = await loader.logits(requested);
      if (requested !== image) return;
      logits = found;
      measure();
    } catch {
      if (requested === image) store.set({ minConfidence: 0 }); // without logits, show every class
    }
  }

  const offs = [
    store.on("classes cut images", ({ cut }, changed) => {
      if (image >= 0 && cut === null) describe();
      if (changed.length === 1 && changed[0] === "images") return;
      paint();
      measure();
    }),
    store.on("opacity outlines", stage.redraw),
    store.on("minConfidence", () => {
      fetchLogits();
      measure();
      stage.redraw();
    }),
    store.on("painted", ({ painted }) => painted.image === image && reload()),
  ];

  async function reload() {
    const requested = image;
    try {
      const found = await loader.leaves(requested);
      if (requested !== image) return;
      map = found;
      stage.labels("classes", map);
      arrive(map);
    } catch (error) {
      if (requested === image) notifyError(error);
    }
  }

  /** @param near images that the user is likely to open next */
  async function open(next, near = [next + 1, next - 1]) {
    image = next;
    logits = null;
    measured = "";
    tag.hidden = true;
    describe();
    try {
      // Show the plain image first if the server has not analyzed it yet.
      const coming = loader.leaves(next);
      const bitmap = await loader.image(next);
      if (image !== next) return;
      const wait = setTimeout(() => {
        if (image !== next) return;
        stage.clear("classes");
        stage.show(bitmap);
        waiting.hidden = false;
      }, 120);
      const found = await coming.finally(() => clearTimeout(wait));
      if (image !== next) return;
      waiting.hidden = true;
      map = found;
      stage.show(bitmap);
      stage.labels("classes", map);
      paint();
      stage.node.dataset.shown = next;
      arrive(map);
      trouble.hidden = true;
    } catch (error) {
      if (image !== next) return;
      map = null;
      waiting.hidden = true;
      trouble.hidden = false;
      setText(trouble.querySelector("p"), error.message);
      return;
    }
    fetchLogits();
    const { length } = store.state.images.names;
    loader.prefetch(near.filter((one) => one >= 0 && one < length), true);
  }

  return {
    stage, open,
    get map() {
      return map;
    },
    /** Shows another leaf map: a correction before it is saved. */
    redrawMap(found) {
      map = found;
      stage.labels("classes", map);
    },
    /** Sets the mode in the description. */
    call(now) {
      label = now;
      if (image >= 0) describe();
    },
    /** Dims all other classes; null dims none. */
    point(id) {
      if (id === pointed) return;
      pointed = id;
      paint();
    },
    end() {
      offs.forEach((off) => off());
      image = -1;
      stage.end();
    },
  };
}
