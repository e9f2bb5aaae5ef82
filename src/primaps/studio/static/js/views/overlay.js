// Settings of the overlay: opacity, outlines and minimum confidence.

import { el, slider } from "../dom.js";
import { percent } from "../format.js";
import { store } from "../store.js";

let made = 0;

export function overlayPanel() {
  const id = `overlay${(made += 1)}`;
  const opacity = slider("Opacity", {
    id: `${id}-opacity`, min: 0, max: 1, step: 0.05, value: store.state.opacity, show: percent,
    input: (value) => store.set({ opacity: value }),
  });
  const minConfidence = slider("Minimum confidence", {
    id: `${id}-minConfidence`, min: 0, max: 0.99, step: 0.01, value: store.state.minConfidence, show: percent,
    input: (value) => store.set({ minConfidence: value }),
  });
  const outlines = el("input", {
    type: "checkbox", id: `${id}-outlines`, checked: store.state.outlines,
    on: { change: () => store.set({ outlines: outlines.checked }) },
  });
  const node = el("div", { class: "overlay-settings" }, opacity, minConfidence,
    el("label", { class: "pick", title: "Outlines (O)" }, outlines, "Outlines"));
  const off = store.on("opacity outlines minConfidence", ({ opacity: now, outlines: lines, minConfidence: minimum }) => {
    opacity.set(now);
    minConfidence.set(minimum);
    outlines.checked = lines;
  });
  return { node, end: off };
}
