// The number of classes: a slider over the tree. It shows every cut at once and keeps the one on
// which it is let go.

import { commitCut, shown } from "../../classes.js";
import { el, setText, slider } from "../../dom.js";
import { count } from "../../format.js";
import { store } from "../../store.js";
import { gains, isCut } from "../../tree.js";

export function createCutSlider() {
  const chart = el("div", { class: "gains", "aria-hidden": "true" });
  const note = el("p", { class: "muted small" });
  let resting = null;
  const control = slider("Number of classes", {
    id: "cut", min: 1, max: 2, step: 1, value: 1, show: (classes) => count(classes, "class", "classes"),
    input: (cut) => {
      clearTimeout(resting);
      store.set({ cut });
    },
    // Keys let go after every step; a few quick ones are one change.
    change: () => keep(),
  });
  const node = el("div", { class: "panel cut-panel" }, control, note);
  control.insertBefore(chart, control.range);

  function keep() {
    clearTimeout(resting);
    resting = setTimeout(() => store.state.cut !== null && commitCut(store.state.cut), 250);
  }

  let drawn = null;
  function refresh() {
    const { classes, cut } = store.state;
    if (!classes) return;
    const now = shown().length;
    if (drawn !== classes.tree) {
      drawn = classes.tree;
      control.range.max = classes.parts;
      const gain = gains(classes);
      chart.replaceChildren(...[...gain].slice(1).map((height, i) =>
        el("div", { data: { k: i + 1 }, style: { height: `${i ? 8 + 92 * Math.sqrt(height) : 0}%` } })));
    }
    control.set(now);
    for (const bar of chart.children) bar.classList.toggle("in", Number(bar.dataset.k) <= now);
    setText(note, cut === null && !isCut(classes)
      ? "Merged and split by hand. Moving the slider starts from the tree again; undo brings this back."
      : "Bars show how much each further class explains: stop where they become low.");
  }
  refresh();
  const off = store.on("classes cut", refresh);
  return {
    node,
    set(cut) {
      store.set({ cut });
      keep();
    },
    end() {
      off();
      // What was seen when the page was left is what is kept.
      if (store.state.cut !== null) commitCut(store.state.cut);
      clearTimeout(resting);
    },
  };
}
