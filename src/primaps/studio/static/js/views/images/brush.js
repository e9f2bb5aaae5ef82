// The brush assigns pixels of an image to another class: whole proposed regions, or freehand. It shows
// the result before the user presses.

import { correct, shown } from "../../classes.js";
import { button, choices, el, setText, slider } from "../../dom.js";
import { isolated } from "../../format.js";
import { store } from "../../store.js";
import { disc, region, runs } from "./regions.js";

/**
 * @param view returns the class stage
 * @param masks returns the mask proposals at the displayed size, or null while they load
 * @param image returns the number of the image
 */
export function createBrush({ view, masks, image }) {
  let on = false;
  let target = null; // id of the painted class
  let snap = true;
  let size = 24; // radius in pixels of the image
  let base = null; // the saved leaf map; null while that of another image loads
  let of = -1; // number of its image
  let marked = null; // 1 for the pixels of the current stroke
  let ahead = ""; // pixels of the region that is previewed
  let at = { x: 0.5, y: 0.5 };

  const cursor = el("div", { class: "cursor", hidden: true });
  const toggle = button("Correct with brush", () => self.toggle(), { symbol: "brush", key: "B", "aria-pressed": "false" });
  const says = el("p", { class: "small muted", role: "status" });
  const radius = slider("Size", { id: "brush-size", min: 3, max: 160, step: 1, value: size, show: (value) => `${value} px`, input: (now) => {
    size = now;
    point();
  } });
  const how = choices("How the brush paints", [["snap", "Whole region"], ["free", "Freehand"]], "snap", (now) => {
    snap = now === "snap";
    radius.hidden = snap;
    forget();
    describe();
  });
  const options = el("div", { class: "stack tight", hidden: true }, how, radius);
  radius.hidden = true;
  const node = el("div", { class: "stack tight" }, toggle, options, says);

  const chosen = () => shown().find((one) => one.id === target) ?? shown().find((one) => !one.hidden);

  function describe() {
    const one = chosen();
    const words = one && (snap ? `Click a region, or press Space, to assign it to ${isolated(one.name)}.` : `Paint the pixels of ${isolated(one.name)}.`);
    setText(says, on && one ? (base ? words : "The image is loading…") : "");
  }

  /** Describes the place that the arrow keys reached, for a screen reader. */
  function here() {
    if (!base) return;
    const { x, y } = pixelAt(at);
    const leaf = base.values[y * base.width + x];
    const one = shown().find(({ leaves }) => leaves.includes(leaf));
    if (one) setText(says, `At the cursor: ${isolated(one.name)}.${one.id === chosen().id ? "" : ` Space assigns it to ${isolated(chosen().name)}.`}`);
  }

  /** Shows the map with these pixels in the chosen class, without saving it. */
  function preview(pixels) {
    const values = base.values.slice();
    for (const pixel of pixels) values[pixel] = chosen().leaves[0];
    view().redrawMap({ ...base, values });
  }

  function forget() {
    if (ahead && base) view().redrawMap(base);
    ahead = "";
  }

  const pixelAt = (place) => ({
    x: Math.min(base.width - 1, Math.max(0, Math.floor(place.x * base.width))),
    y: Math.min(base.height - 1, Math.max(0, Math.floor(place.y * base.height))),
  });
  const inside = (place) => place && place.x >= 0 && place.y >= 0 && place.x < 1 && place.y < 1;

  /** Returns the pixels under the brush; a region is a mask, or a connected region of one leaf. */
  function under(place) {
    const { x, y } = pixelAt(place);
    if (!snap) return disc(base, x, y, size);
    const proposed = masks();
    const fits = proposed && proposed.width === base.width && proposed.values[y * base.width + x] > 0;
    return region(fits ? proposed : base, x, y);
  }

  function point() {
    const { stage } = view();
    cursor.hidden = !on || !stage.image || !base;
    if (cursor.hidden) return;
    const place = stage.locate(at);
    const across = snap ? 14 : (2 * size * stage.scale()) / (base?.width ?? 1);
    cursor.style.left = `${place.x}px`;
    cursor.style.top = `${place.y}px`;
    cursor.style.width = cursor.style.height = `${across}px`;
  }

  /** Previews the region under the brush, once per region. */
  function show() {
    point();
    if (!base || !snap || marked) return;
    if (!inside(at)) return forget();
    const { x, y } = pixelAt(at);
    const pixel = y * base.width + x;
    if (ahead && ahead.has?.(pixel)) return;
    const pixels = under(at);
    ahead = new Set(pixels);
    preview(pixels);
  }

  function stroke(from, to) {
    const steps = snap ? 1 : Math.max(1, Math.ceil((Math.hypot(to.x - from.x, to.y - from.y) * base.width) / (size / 2)));
    const { values } = view().map;
    for (let i = 1; i <= steps; i += 1) {
      const place = { x: from.x + ((to.x - from.x) * i) / steps, y: from.y + ((to.y - from.y) * i) / steps };
      if (!inside(place)) continue;
      const { x, y } = pixelAt(place);
      if (snap && marked[y * base.width + x]) continue;
      for (const pixel of under(place)) {
        marked[pixel] = 1;
        values[pixel] = chosen().leaves[0];
      }
    }
    view().redrawMap(view().map);
  }

  const tool = {
    start(place) {
      if (!base || !chosen()) return;
      forget();
      marked = new Uint8Array(base.values.length);
      view().redrawMap({ ...base, values: base.values.slice() });
      at = place;
      stroke(place, place);
    },
    move(place) {
      if (!marked) return;
      stroke(at, place);
      at = place;
    },
    end() {
      if (!marked) return;
      const found = runs(marked);
      const painted = of;
      marked = null;
      if (!found.length) return;
      base = { ...base, values: view().map.values };
      correct(painted, base, chosen(), found).then((answer) => {
        if (!answer) store.set({ painted: { image: painted } }); // rejected: show the saved map
      });
    },
  };

  const walk = (x, y) => () => {
    const step = snap ? 0.02 : Math.max(0.004, size / 2 / (base?.width ?? 500));
    at = { x: Math.min(0.999, Math.max(0, at.x + x * step)), y: Math.min(0.999, Math.max(0, at.y + y * step)) };
    show();
    here();
  };
  const cycle = (step) => {
    const all = shown().filter((one) => !one.hidden);
    const place = all.findIndex((one) => one.id === chosen()?.id);
    self.choose(all[(place + step + all.length) % all.length]);
  };
  const when = () => on;

  const self = {
    node, cursor, chosen,
    wants() {},
    changed() {},
    get on() {
      return on;
    },
    tool: () => (on && base ? tool : null),
    toggle() {
      on = !on;
      toggle.setAttribute("aria-pressed", on);
      options.hidden = !on;
      view().stage.node.classList.toggle("pointing", on);
      if (on) self.wants();
      else forget();
      point();
      describe();
      self.changed();
    },
    choose(one) {
      target = one.id;
      if (!on) self.toggle();
      forget();
      describe();
      self.changed();
    },
    /** Stops painting until the map of another image arrives. */
    leave() {
      marked = null;
      base = null;
      ahead = "";
      point();
      describe();
    },
    /** Sets the saved leaf map; a stroke in the same image continues on it. */
    arrive(map) {
      if (of !== image()) marked = null;
      of = image();
      base = map;
      ahead = "";
      if (marked) preview([...marked.keys()].filter((pixel) => marked[pixel]));
      point();
      describe();
    },
    /** Places the ring again after a zoom. */
    place: point,
    hover(place) {
      if (!on) return;
      if (place) at = place;
      if (place) show();
      else {
        forget();
        cursor.hidden = true;
      }
    },
    keys: [
      { keys: ["b"], shown: "B", does: "brush", act: () => self.toggle() },
      { keys: ["ArrowLeft"], shown: "← ↑ → ↓", does: "move the brush", when, act: walk(-1, 0) },
      { keys: ["ArrowRight"], shown: "", does: "", when, act: walk(1, 0) },
      { keys: ["ArrowUp"], shown: "", does: "", when, act: walk(0, -1) },
      { keys: ["ArrowDown"], shown: "", does: "", when, act: walk(0, 1) },
      { keys: [" ", "Enter"], shown: "Space", does: "paint at the cursor", when, act() {
        tool.start(at);
        tool.end();
      } },
      { keys: [",", "."], shown: ", .", does: "previous or next class to paint", when, act: (event) => cycle(event.key === "." ? 1 : -1) },
      { keys: ["f"], shown: "F", does: "whole region or freehand", when, act: () => how.querySelector('[aria-checked="false"]').click() },
      { keys: ["[", "]"], shown: "[ ]", does: "smaller or larger brush", when, act: (event) => {
        size = Math.min(160, Math.max(3, Math.round(size * (event.key === "]" ? 1.25 : 0.8))));
        radius.set(size);
        point();
      } },
    ],
  };
  return self;
}
