// Masks: the mask proposals of an image at any threshold, and similar regions of other images.

import { get, url } from "../api.js";
import { el, fileLabel, ratio, setText, slider } from "../dom.js";
import { createStage } from "../draw/stage.js";
import { count, fileName, percent } from "../format.js";
import { viewKeys } from "../keyboard.js";
import * as loader from "../loader.js";
import { notifyError } from "../notices.js";
import { maskPalette } from "../palette.js";
import { store } from "../store.js";
import { filmstrip } from "./filmstrip.js";

const HINT = "Point at a mask, or click to pin it.";
const REST = 350; // ms without a change of the threshold before the CRF refines the masks

let threshold = 0.4; // kept until the page is closed

function mount(root) {
  root.classList.add("filled");
  const page = el("div", { class: "masks" });
  const tag = el("div", { class: "tag", hidden: true });
  const caption = el("div", { class: "caption ellipsis", role: "status" });
  let map = null;
  let pointed = null;
  let pinned = null;
  // Numbers of masks change with the threshold: a point identifies the pinned and the hovered mask.
  let pin = null;
  let under = null;
  let shown = 0; // number of the last request: late answers are dropped
  let resting = null;

  const stage = createStage({
    label: "Image with its masks",
    overlay: () => ({ opacity: store.state.opacity, outlines: true, minConfidence: 0 }),
    hover: (point, at) => {
      under = point && { point, at };
      if (pinned === null) light(point && maskAt(point));
      label();
    },
    press: (point) => {
      const mask = point && maskAt(point);
      pinned = mask && mask !== pinned ? mask : null;
      pin = pinned && point;
      light(pinned ?? mask);
    },
  });
  stage.arrange(["masks"]);
  const waiting = el("div", { class: "waits", role: "status", hidden: true }, "Loading…");
  stage.node.append(tag, caption, waiting);

  const counts = el("p", { class: "muted", role: "status" });
  const similarList = el("ul", { class: "similar" });
  const hint = el("p", { class: "muted small", role: "status" });
  const control = slider("Threshold", {
    id: "threshold", min: 0.05, max: 0.95, step: 0.01, value: threshold, show: (value) => value.toFixed(2),
    input: (value) => {
      threshold = value;
      follow();
    },
  });
  const strength = slider("Opacity of the masks", {
    id: "mask-opacity", min: 0, max: 1, step: 0.05, value: store.state.opacity, show: percent,
    input: (opacity) => store.set({ opacity }),
  });
  const side = el("aside", { class: "side panel stack", "aria-label": "Threshold and similar regions" },
    control,
    el("div", { class: "row apart small muted" }, el("span", {}, "larger masks"), el("span", {}, "smaller masks")),
    counts, strength,
    el("section", { class: "stack tight", "aria-label": "Similar regions" }, el("h2", {}, "Similar regions"), hint, similarList));
  const strip = filmstrip(open);
  page.append(strip.node, stage.node, side);
  root.append(page);

  function maskAt({ x, y }) {
    if (!map || x < 0 || y < 0 || x >= 1 || y >= 1) return 0;
    return map.values[Math.floor(y * map.height) * map.width + Math.floor(x * map.width)];
  }

  /** Writes the number of the mask under the pointer beside it. */
  function label() {
    const mask = under && maskAt(under.point);
    tag.hidden = !mask;
    if (!mask) return;
    setText(tag, `mask ${mask}`);
    tag.style.left = `${under.at.x / ratio() + 14}px`;
    tag.style.top = `${under.at.y / ratio() + 14}px`;
  }

  /** Finds the pinned or hovered mask in a new map, and its similar regions. */
  function again() {
    if (pinned) pinned = maskAt(pin) || null;
    pointed = null;
    light(pinned ?? (under && maskAt(under.point)));
    if (!pointed) {
      similarRequest += 1;
      similarList.replaceChildren();
      setText(hint, HINT);
    }
    label();
  }

  function draw(found, refined) {
    stage.node.dataset.shown = `${store.state.image} ${threshold} ${refined}`;
    map = found;
    waiting.hidden = true;
    const present = new Set(found.values);
    present.delete(0);
    stage.labels("masks", found);
    again();
    paint();
    setText(counts, `${count(present.size, "mask")}${refined ? ", borders refined by the CRF" : ""}`);
  }

  function paint() {
    if (map) stage.palette("masks", maskPalette(map, pointed));
  }

  async function fetch(crf) {
    const mine = (shown += 1);
    const image = store.state.image;
    try {
      const found = await loader.proposals(loader.proposalsKey(image, threshold, crf));
      if (mine === shown && image === store.state.image) draw(found, crf);
    } catch (error) {
      if (mine !== shown) return;
      waiting.hidden = true;
      notifyError(error);
    }
  }

  // At most one request for live masks is open; the newest threshold follows.
  let busy = false;
  let newer = false;
  async function follow() {
    clearTimeout(resting);
    resting = setTimeout(() => fetch(true), REST);
    newer = true;
    if (busy) return;
    busy = true;
    while (newer) {
      newer = false;
      await fetch(false);
    }
    busy = false;
  }

  let similarRequest = 0;
  let asking = null;
  function light(mask) {
    mask = mask || null;
    if (mask === pointed) return;
    pointed = mask;
    paint();
    clearTimeout(asking);
    if (pointed) asking = setTimeout(() => similar(pointed), 120);
    else if (!similarList.childElementCount) setText(hint, HINT);
  }

  async function similar(mask) {
    const mine = (similarRequest += 1);
    try {
      const found = await get(`images/${store.state.image}/proposals/${mask}/similar?threshold=${threshold.toFixed(2)}`);
      if (mine !== similarRequest) return;
      const { names } = store.state.images;
      setText(hint, found.length ? `Regions similar to mask ${mask}, most similar first:` : "No similar regions yet: the other images are still being analyzed.");
      similarList.replaceChildren(...found.map((one) => el("li", {},
        el("button", { type: "button", title: names[one.image], "aria-label": `${names[one.image]}, similarity ${percent(one.similarity)}`, on: { click: () => strip.choose(one.image) } },
          el("img", { src: url.crop(one.image, one.box), alt: "", loading: "lazy" }),
          el("span", {}, percent(one.similarity))))));
    } catch (error) {
      if (mine === similarRequest) notifyError(error);
    }
  }

  async function open(image) {
    store.set({ image });
    pointed = pinned = pin = under = null;
    clearTimeout(asking);
    similarRequest += 1;
    tag.hidden = true;
    similarList.replaceChildren();
    setText(hint, HINT);
    const name = store.state.images.names[image];
    caption.replaceChildren(fileLabel(fileName(name)));
    caption.title = name;
    stage.canvas.setAttribute("aria-label", `${name} with its masks`);
    try {
      const bitmap = await loader.image(image);
      if (image !== store.state.image) return;
      stage.show(bitmap);
      stage.clear("masks");
      map = null;
      setText(counts, "");
      setTimeout(() => (waiting.hidden = map !== null || image !== store.state.image), 250);
    } catch (error) {
      notifyError(error);
    }
    follow();
  }

  const byKey = (step) => {
    control.set(Math.min(0.95, Math.max(0.05, threshold + step)));
    threshold = Number(control.range.value);
    follow();
  };
  const nextMask = (step) => {
    const present = [...new Set(map?.values ?? [])].filter(Boolean).sort((a, b) => a - b);
    if (!present.length) return;
    const place = present.indexOf(pinned ?? 0);
    pinned = present[(place + step + present.length) % present.length];
    const pixels = [...map.values.keys()].filter((pixel) => map.values[pixel] === pinned);
    const middle = pixels[pixels.length >> 1];
    pin = { x: ((middle % map.width) + 0.5) / map.width, y: (Math.floor(middle / map.width) + 0.5) / map.height };
    light(pinned);
    const share = pixels.length / map.values.length;
    setText(hint, `Pinned mask ${pinned} of ${present.length}: ${percent(share)} of the image.`);
  };
  viewKeys([
    { keys: ["j", "ArrowRight"], shown: "J →", does: "next image", act: () => strip.step(1) },
    { keys: ["k", "ArrowLeft"], shown: "K ←", does: "previous image", act: () => strip.step(-1) },
    { keys: [","], shown: ",", does: "lower threshold", act: () => byKey(-0.02) },
    { keys: ["."], shown: ".", does: "higher threshold", act: () => byKey(0.02) },
    { keys: ["m"], shown: "M", does: "next mask and similar regions", act: () => nextMask(1) },
    { keys: ["n"], shown: "N", does: "previous mask", act: () => nextMask(-1) },
  ]);

  const off = store.on("opacity", stage.redraw);
  open(Math.min(store.state.image, store.state.images.names.length - 1));
  return () => {
    off();
    clearTimeout(resting);
    clearTimeout(asking);
    shown += 1;
    strip.end();
    stage.end();
  };
}

export const masks = {
  title: "Masks",
  open: ({ images }) => Boolean(images?.names.length),
  guide: ({ server }) => ({
    text: "Each color is a proposed region. Set the threshold until regions match objects; point at one to see similar regions.",
    ...(server?.stage === "fitted" ? { to: "classes", label: "Classes" } : { to: "start", label: "Start" }),
  }),
  mount,
};

