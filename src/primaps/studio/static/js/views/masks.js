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
  let shown = 0; // number of the last request: late answers are dropped
  let resting = null;

  const stage = createStage({
    label: "Image with its masks",
    overlay: () => ({ opacity: store.state.opacity, outlines: true, minConfidence: 0 }),
    hover: (point, at) => {
      if (pinned === null) light(point && maskAt(point));
      tag.hidden = !point || !maskAt(point);
      if (tag.hidden) return;
      setText(tag, `mask ${maskAt(point)}`);
      tag.style.left = `${at.x / ratio() + 14}px`;
      tag.style.top = `${at.y / ratio() + 14}px`;
    },
    press: (point) => {
      const mask = point && maskAt(point);
      pinned = mask && mask !== pinned ? mask : null;
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

  function draw(found, refined) {
    stage.node.dataset.shown = `${store.state.image} ${threshold} ${refined}`;
    map = found;
    waiting.hidden = true;
    const present = new Set(found.values);
    present.delete(0);
    if (pinned && !present.has(pinned)) pinned = null;
    stage.labels("masks", found);
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
  let again = false;
  async function follow() {
    clearTimeout(resting);
    resting = setTimeout(() => fetch(true), REST);
    again = true;
    if (busy) return;
    busy = true;
    while (again) {
      again = false;
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
    else if (!similarList.childElementCount) setText(hint, "Point at a mask, or click to pin it.");
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
    pointed = pinned = null;
    clearTimeout(asking);
    similarRequest += 1;
    tag.hidden = true;
    similarList.replaceChildren();
    setText(hint, "Point at a mask, or click to pin it.");
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
    light(pinned);
    const share = map.values.reduce((sum, value) => sum + (value === pinned), 0) / map.values.length;
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

