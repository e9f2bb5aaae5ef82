// How classes are laid over images: opacity, outlines, and from what confidence on.

import { el, slider } from "../dom.js";
import { percent } from "../format.js";
import { store } from "../store.js";

let made = 0;

export function lookPanel() {
  const id = `look${(made += 1)}`;
  const opacity = slider("Opacity", {
    id: `${id}-opacity`, min: 0, max: 1, step: 0.05, value: store.state.opacity, show: percent,
    input: (value) => store.set({ opacity: value }),
  });
  const sure = slider("Least confidence", {
    id: `${id}-sure`, min: 0, max: 0.99, step: 0.01, value: store.state.sure, show: percent,
    input: (value) => store.set({ sure: value }),
  });
  const outlines = el("input", {
    type: "checkbox", id: `${id}-outlines`, checked: store.state.outlines,
    on: { change: () => store.set({ outlines: outlines.checked }) },
  });
  const node = el("div", { class: "look" }, opacity, sure,
    el("label", { class: "pick", title: "Outlines (O)" }, outlines, "Outlines"));
  const off = store.on("opacity outlines sure", ({ opacity: now, outlines: lines, sure: least }) => {
    opacity.set(now);
    sure.set(least);
    outlines.checked = lines;
  });
  return { node, end: off };
}
