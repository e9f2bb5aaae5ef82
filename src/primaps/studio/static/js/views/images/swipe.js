// The handle of the swipe between the image and its classes.

import { el } from "../../dom.js";

export function createSwipe(moved) {
  let at = 0.5;
  const node = el("button", {
    type: "button", class: "handle", role: "slider", "aria-label": "Border between image and classes",
    "aria-valuemin": 0, "aria-valuemax": 100, hidden: true,
    on: {
      pointerdown: (event) => node.setPointerCapture(event.pointerId),
      pointermove: (event) => {
        if (!node.hasPointerCapture(event.pointerId)) return;
        const box = node.parentElement.getBoundingClientRect();
        set((event.clientX - box.left) / box.width);
      },
      keydown: (event) => {
        const step = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
        if (!step) return;
        event.preventDefault();
        event.stopPropagation();
        set(at + step);
      },
    },
  });
  function place() {
    node.style.left = `${100 * at}%`;
    node.setAttribute("aria-valuenow", Math.round(100 * at));
    node.setAttribute("aria-valuetext", `${Math.round(100 * at)}% image`);
  }
  function set(now) {
    at = Math.min(1, Math.max(0, now));
    place();
    moved(at);
  }
  place();
  return {
    node,
    get at() {
      return at;
    },
  };
}
