// The estimated accuracy and its confidence interval.

import { el, setText } from "../../dom.js";

export function createInterval() {
  const value = el("p", { class: "accuracy" });
  const range = el("p", { class: "muted", role: "status" });
  const span = el("div", { class: "span" });
  const dot = el("div", { class: "dot" });
  const scale = el("div", { class: "scale", "aria-hidden": "true" }, [0, 25, 50, 75, 100].map((mark) => el("span", {}, `${mark}`)));
  const node = el("section", { class: "interval", "aria-label": "Accuracy" },
    el("h2", {}, "Pixel accuracy"), value,
    el("div", { class: "track", "aria-hidden": "true" }, span, dot), scale, range);
  return {
    node,
    show(estimate) {
      const low = 100 * (estimate?.low ?? 0);
      const high = 100 * (estimate?.high ?? 1);
      span.style.left = `${low}%`;
      span.style.width = `${high - low}%`;
      dot.hidden = !estimate;
      if (!estimate) {
        setText(value, "—");
        setText(range, "The estimate appears after a few answers.");
        return;
      }
      dot.style.left = `${100 * estimate.accuracy}%`;
      setText(value, `${Math.round(100 * estimate.accuracy)}%`);
      setText(range, `Between ${Math.round(low)}% and ${Math.round(high)}% (95% confidence interval).`);
    },
  };
}
