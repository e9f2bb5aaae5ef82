// The number of classes: a slider over the cuts of the class tree. It previews every cut and saves the
// one on which it is released.

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
    // Every key press is a change; a few quick ones are saved once.
    change: () => save(),
  });
  const node = el("div", { class: "panel cut-panel" }, control, note);
  control.insertBefore(chart, control.range);

  function save() {
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
      control.range.max = classes.leaves;
      const gain = gains(classes);
      chart.replaceChildren(...[...gain].slice(1).map((height, i) =>
        el("div", { data: { k: i + 1 }, style: { height: `${i ? 8 + 92 * Math.sqrt(height) : 0}%` } })));
    }
    control.set(now);
    for (const bar of chart.children) bar.classList.toggle("in", Number(bar.dataset.k) <= now);
    setText(note, cut === null && !isCut(classes)
      ? "You merged or split classes. The slider returns to the class tree; undo restores your classes."
      : "Bars show the gain of each further class. Stop where they become low.");
  }
  refresh();
  const off = store.on("classes cut", refresh);
  return {
    node,
    set(cut) {
      store.set({ cut });
      save();
    },
    end() {
      off();
      // Save the previewed cut when the view is closed.
      if (store.state.cut !== null) commitCut(store.state.cut);
      clearTimeout(resting);
    },
  };
}
