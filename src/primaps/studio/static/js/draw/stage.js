// A canvas that shows an image with its layers: zoom, pan, side by side, swipe. webgl.js draws on
// computers with a graphics card, canvas2d.js on others.

import { el, iconButton, ratio } from "../dom.js";
import { pan, place, pointAt, WHOLE, zoomAt } from "./camera.js";
import { canvas2d } from "./canvas2d.js";
import { follow } from "./gestures.js";
import { webgl } from "./webgl.js";

/**
 * @param label accessible name of the canvas
 * @param overlay returns {opacity, outlines, minConfidence} for a frame
 * @param hover called with the point of the image under the pointer, as fractions, or null
 * @param moved called after the visible section changed
 * @param tool returns the tool that handles dragging, {start(point), move(point), end()}, or null to pan
 */
export function createStage({ label, overlay, hover = () => {}, moved = () => {}, tool = () => null, press = () => {} }) {
  const canvas = el("canvas", { tabindex: "0", role: "img", "aria-label": label });
  const node = el("div", { class: "stage" }, canvas);
  let drawing = null;
  let image = null;
  let camera = WHOLE;
  let layers = ["classes"];
  let swipe = null;
  let frame = 0;
  const fresh = new Map(); // layer name to label map, for the next frame

  const size = () => ({ left: 0, top: 0, width: canvas.width, height: canvas.height });

  /** Splits the canvas between the layers; with a swipe, both layers cover the same pane. */
  function panes() {
    const { width, height } = size();
    const gap = 2 * ratio();
    return layers.map((layer, i) => {
      if (swipe !== null) {
        const left = i === 0 ? 0 : Math.round(swipe * width);
        const right = i === 0 ? Math.round(swipe * width) : width;
        return { layer, clip: { left, top: 0, width: right - left, height }, pane: size() };
      }
      const each = Math.floor((width - gap * (layers.length - 1)) / layers.length);
      const clip = { left: i * (each + gap), top: 0, width: each, height };
      return { layer, clip, pane: clip };
    });
  }

  function paneAt(x) {
    const found = panes();
    return (found.find(({ clip }) => x < clip.left + clip.width) ?? found[found.length - 1]).pane;
  }

  function draw() {
    frame = 0;
    if (!image || !drawing || !canvas.width) return;
    const drawn = panes().map((one) => ({ ...one, rect: place(camera, image, one.pane) }));
    for (const [name, map] of fresh) drawing.labels(name, map);
    fresh.clear();
    drawing.draw(drawn, { ...overlay(), line: 1.25 * ratio() });
  }
  const redraw = () => {
    frame ||= requestAnimationFrame(draw);
  };

  // The context is created once, with the first content.
  function ready() {
    drawing ??= webgl(canvas) ?? canvas2d(canvas);
    return drawing;
  }

  const watch = new ResizeObserver(() => {
    const width = Math.round(canvas.clientWidth * ratio());
    const height = Math.round(canvas.clientHeight * ratio());
    if (width === canvas.width && height === canvas.height) return;
    Object.assign(canvas, { width, height });
    if (frame) cancelAnimationFrame(frame);
    draw();
    moved();
  });
  watch.observe(canvas);

  const zoom = (factor, at = { x: canvas.width / 2, y: canvas.height / 2 }) => {
    if (!image) return;
    look(zoomAt(camera, image, paneAt(at.x), at, factor));
  };
  const move = (dx, dy) => {
    if (!image) return;
    look(pan(camera, image, panes()[0].pane, dx, dy));
  };
  const whole = () => look(WHOLE);
  function look(now) {
    camera = now;
    redraw();
    moved();
  }
  const point = (at) => image && pointAt(camera, image, paneAt(at.x), at);

  follow(canvas, { ratio, zoom, move, point, tool, hover, press });
  canvas.addEventListener("keydown", (event) => {
    const step = 60 * ratio();
    const act = {
      "+": () => zoom(1.3), "=": () => zoom(1.3), "-": () => zoom(1 / 1.3), 0: whole,
      ArrowLeft: () => move(step, 0), ArrowRight: () => move(-step, 0),
      ArrowUp: () => move(0, step), ArrowDown: () => move(0, -step),
    }[event.key];
    if (!act || event.ctrlKey || event.metaKey) return;
    // The view handles the arrow keys when the whole image is visible or a tool is active.
    if (event.key.startsWith("Arrow") && (camera.zoom === 1 || tool())) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  });
  // The browser restores a lost context only if the default action is prevented.
  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => location.reload());

  node.append(
    el("div", { class: "corner" },
      iconButton("minus", "Zoom out", () => zoom(1 / 1.5), { key: "−" }),
      iconButton("plus", "Zoom in", () => zoom(1.5), { key: "+" }),
      iconButton("fit", "Show the whole image", whole, { key: "0" }),
    ),
  );

  return {
    node, canvas, redraw,
    show(bitmap) {
      if (!image || image.width !== bitmap.width || image.height !== bitmap.height) camera = WHOLE;
      image = bitmap;
      ready().image(bitmap);
      redraw();
    },
    /** Sets the label map of a layer, which is uploaded once per frame. */
    labels(name, map) {
      ready();
      fresh.set(name, map);
      redraw();
    },
    /** Removes the label map of a layer. */
    clear(name) {
      fresh.delete(name);
      ready().clear(name);
    },
    palette(name, table) {
      ready().palette(name, table);
      redraw();
    },
    confidence(map) {
      ready().confidence(map);
      redraw();
    },
    /** Sets the visible layers, null for the plain image; `at` is the position of the swipe, 0..1. */
    arrange(found, at = null) {
      layers = found;
      swipe = at;
      redraw();
      moved();
    },
    /** Returns the width of the image on the screen, in CSS pixels. */
    scale: () => (image ? place(camera, image, panes()[0].pane).width / ratio() : 1),
    /** Converts a point of the image, as fractions, to CSS pixels of the stage. */
    locate({ x, y }) {
      const rect = place(camera, image, panes()[0].pane);
      return { x: (rect.left + x * rect.width) / ratio(), y: (rect.top + y * rect.height) / ratio() };
    },
    get image() {
      return image;
    },
    end() {
      watch.disconnect();
      cancelAnimationFrame(frame);
      drawing?.end();
    },
  };
}
