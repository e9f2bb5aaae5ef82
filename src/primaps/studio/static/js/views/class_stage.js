// A stage with the classes of an image: it follows every change of classes and looks by itself.

import { byPart, shareOf, shown } from "../classes.js";
import { confidence, groups } from "../confidence.js";
import { el, nothing, ratio, setText } from "../dom.js";
import { createStage } from "../draw/stage.js";
import { percent } from "../format.js";
import * as loader from "../loader.js";
import { complain } from "../notices.js";
import { palette } from "../palette.js";
import { store } from "../store.js";
import { owners } from "../tree.js";

const MOST = 8; // classes that a picture is described by

/** @param options of {@link createStage}; `arrive(map)` is told about each new part map */
export function createClassStage({ label, arrive = () => {}, hover = () => {}, ...options }) {
  const tag = el("div", { class: "tag", hidden: true });
  const swatch = el("span", { class: "swatch" });
  const text = el("span", { class: "cut" });
  tag.append(swatch, text);
  let image = -1;
  let map = null;
  let logits = null;
  let pointed = null;
  let known = [];

  const stage = createStage({
    label,
    look: () => store.state,
    hover(point, at) {
      say(point, at);
      hover(point, at);
    },
    ...options,
  });
  const trouble = nothing("warn", "This image cannot be shown", "");
  trouble.hidden = true;
  const waiting = el("div", { class: "waits", hidden: true }, "Looking at this image…");
  stage.node.append(tag, el("div", { role: "status" }, trouble, waiting));

  /** The picture in words: what is shown, and the classes in it, the largest first. */
  function describe() {
    const { names, shares } = store.state.images;
    const sized = shares[image] ? shown().map((one) => [one, shareOf(one, shares[image])]) : [];
    const words = sized.filter(([one, share]) => !one.hidden && share > 0.005).sort((a, b) => b[1] - a[1])
      .slice(0, MOST).map(([one, share]) => `${one.name} ${percent(share)}`);
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
    known = byPart(now, classes.parts);
    stage.palette("classes", palette(now, classes.parts + 1, pointed));
  }

  // Only a merge or a split changes how sure a cell is; and only a threshold asks for it.
  let measured = "";
  function measure() {
    const { classes, sure } = store.state;
    if (!logits || !classes || !sure) return;
    const group = groups(shown(), owners(classes));
    const key = `${image} ${group}`;
    if (key === measured) return;
    measured = key;
    stage.sure(confidence(logits, group));
  }

  async function fetchLogits() {
    const asked = image;
    if (!store.state.sure || logits) return;
    try {
      const found = await loader.logits(asked);
      if (asked !== image) return;
      logits = found;
      measure();
    } catch {
      if (asked === image) store.set({ sure: 0 }); // without them every class is shown
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
    store.on("sure", () => {
      fetchLogits();
      measure();
      stage.redraw();
    }),
    store.on("painted", ({ painted }) => painted.image === image && reload()),
  ];

  async function reload() {
    const asked = image;
    try {
      const found = await loader.parts(asked);
      if (asked !== image) return;
      map = found;
      stage.labels("classes", map);
      arrive(map);
    } catch (error) {
      if (asked === image) complain(error);
    }
  }

  /** @param near images that are likely to be next */
  async function open(next, near = [next + 1, next - 1]) {
    image = next;
    logits = null;
    measured = "";
    tag.hidden = true;
    describe();
    try {
      // The image is there first where the server has not looked at it yet.
      const coming = loader.parts(next);
      const bitmap = await loader.photo(next);
      if (image !== next) return;
      const wait = setTimeout(() => {
        if (image !== next) return;
        stage.clear("classes");
        stage.photo(bitmap);
        waiting.hidden = false;
      }, 120);
      const found = await coming.finally(() => clearTimeout(wait));
      if (image !== next) return;
      waiting.hidden = true;
      map = found;
      stage.photo(bitmap);
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
    /** Draws another class map in place of the one that is there: a correction before it is saved. */
    redrawMap(found) {
      map = found;
      stage.labels("classes", map);
    },
    /** What a screen reader calls the picture from now on. */
    call(now) {
      label = now;
      if (image >= 0) describe();
    },
    /** Sets every other class back; null for none. */
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
