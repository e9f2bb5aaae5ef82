// The brush: gives pixels of an image another class. It keeps to the borders of a proposed mask
// unless it is told not to; what it would paint is shown before it is pressed.

import { correct, shown } from "../../classes.js";
import { button, choices, el, setText, slider } from "../../dom.js";
import { store } from "../../store.js";
import { disc, region, runs } from "./regions.js";

/**
 * @param picture returns the stage of the image
 * @param masks returns the proposals of the image at its size, or null while they come
 * @param image returns its number
 */
export function createBrush({ picture, masks, image }) {
  let on = false;
  let target = null; // id of the class that is painted
  let snap = true;
  let size = 24; // radius in pixels of the image
  let base = null; // the map as it is saved
  let of = -1; // the image that it is of
  let marked = null; // pixels of the stroke
  let ahead = ""; // the region that is shown as it would become
  let at = { x: 0.5, y: 0.5 };

  const cursor = el("div", { class: "cursor", hidden: true });
  const toggle = button("Correct with the brush", () => self.toggle(), { symbol: "brush", key: "B", "aria-pressed": "false" });
  const says = el("p", { class: "small muted", role: "status" });
  const radius = slider("Size", { id: "brush-size", min: 3, max: 160, step: 1, value: size, show: (value) => `${value} px`, input: (now) => {
    size = now;
    point();
  } });
  const how = choices("How the brush paints", [["snap", "Whole region"], ["free", "Freehand"]], "snap", (now) => {
    snap = now === "snap";
    radius.hidden = snap;
    forget();
    tell();
  });
  const options = el("div", { class: "stack tight", hidden: true }, how, radius);
  radius.hidden = true;
  const node = el("div", { class: "stack tight" }, toggle, options, says);

  const chosen = () => shown().find((one) => one.id === target) ?? shown().find((one) => !one.hidden);

  function tell() {
    const one = chosen();
    const words = one && (snap ? `Click a region, or press Space on it, to make it ${one.name}.` : `Paint what is ${one.name}.`);
    setText(says, on && one ? words : "");
  }

  /** Where the arrows came to, for those who do not see it. */
  function here() {
    if (!base) return;
    const { x, y } = pixelAt(at);
    const part = base.values[y * base.width + x];
    const one = shown().find(({ parts }) => parts.includes(part));
    if (one) setText(says, `Here is ${one.name}.${one.id === chosen().id ? "" : ` Space makes it ${chosen().name}.`}`);
  }

  /** The map with pixels of the chosen class, not saved. */
  function preview(pixels) {
    const values = base.values.slice();
    for (const pixel of pixels) values[pixel] = chosen().parts[0];
    picture().redrawMap({ ...base, values });
  }

  function forget() {
    if (ahead && base) picture().redrawMap(base);
    ahead = "";
  }

  const pixelAt = (place) => ({
    x: Math.min(base.width - 1, Math.max(0, Math.floor(place.x * base.width))),
    y: Math.min(base.height - 1, Math.max(0, Math.floor(place.y * base.height))),
  });
  const inside = (place) => place && place.x >= 0 && place.y >= 0 && place.x < 1 && place.y < 1;

  /** Pixels under the brush; a region is one of the masks, or of the classes where there is none. */
  function under(place) {
    const { x, y } = pixelAt(place);
    if (!snap) return disc(base, x, y, size);
    const proposed = masks();
    const fits = proposed && proposed.width === base.width && proposed.values[y * base.width + x] > 0;
    return region(fits ? proposed : base, x, y);
  }

  function point() {
    const { stage } = picture();
    cursor.hidden = !on || !stage.image;
    if (cursor.hidden) return;
    const place = stage.locate(at);
    const across = snap ? 14 : (2 * size * stage.scale()) / (base?.width ?? 1);
    cursor.style.left = `${place.x}px`;
    cursor.style.top = `${place.y}px`;
    cursor.style.width = cursor.style.height = `${across}px`;
  }

  /** Shows the region under the brush as it would become, once per region. */
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
    const { values } = picture().map;
    for (let i = 1; i <= steps; i += 1) {
      const place = { x: from.x + ((to.x - from.x) * i) / steps, y: from.y + ((to.y - from.y) * i) / steps };
      if (!inside(place)) continue;
      const { x, y } = pixelAt(place);
      if (snap && marked[y * base.width + x]) continue;
      for (const pixel of under(place)) {
        marked[pixel] = 1;
        values[pixel] = chosen().parts[0];
      }
    }
    picture().redrawMap(picture().map);
  }

  const tool = {
    start(place) {
      if (!base || !chosen()) return;
      forget();
      marked = new Uint8Array(base.values.length);
      picture().redrawMap({ ...base, values: base.values.slice() });
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
      marked = null;
      if (!found.length) return;
      base = { ...base, values: picture().map.values };
      correct(image(), chosen(), found).then((answer) => {
        if (!answer) store.set({ painted: { image: image() } }); // it was refused: show what is saved
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
      picture().stage.node.classList.toggle("pointing", on);
      if (on) self.wants();
      else forget();
      point();
      tell();
      self.changed();
    },
    choose(one) {
      target = one.id;
      if (!on) self.toggle();
      forget();
      tell();
      self.changed();
    },
    /** Another image, or what is saved of this one: a stroke goes on over it. */
    arrive(map) {
      if (of !== image()) marked = null;
      of = image();
      base = map;
      ahead = "";
      if (marked) preview([...marked.keys()].filter((pixel) => marked[pixel]));
      point();
    },
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
      { keys: ["ArrowLeft"], shown: "← ↑ → ↓", does: "with the brush: move it", when, act: walk(-1, 0) },
      { keys: ["ArrowRight"], shown: "", does: "", when, act: walk(1, 0) },
      { keys: ["ArrowUp"], shown: "", does: "", when, act: walk(0, -1) },
      { keys: ["ArrowDown"], shown: "", does: "", when, act: walk(0, 1) },
      { keys: [" ", "Enter"], shown: "Space", does: "paint there", when, act() {
        tool.start(at);
        tool.end();
      } },
      { keys: [",", "."], shown: ", .", does: "class that is painted: before, next", when, act: (event) => cycle(event.key === "." ? 1 : -1) },
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
