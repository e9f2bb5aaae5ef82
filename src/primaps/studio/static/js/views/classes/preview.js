// The image beside the gallery, which shows every change of the classes.

import { el, fileLabel } from "../../dom.js";
import { fileName } from "../../format.js";
import { store } from "../../store.js";
import { filmstrip } from "../filmstrip.js";
import { createClassStage } from "../class_stage.js";
import { overlayPanel } from "../overlay.js";

export function createPreview() {
  const caption = el("div", { class: "caption ellipsis", role: "status" });
  const view = createClassStage({ label: "with its classes" });
  view.stage.node.append(caption);
  const strip = filmstrip(open, true);
  const overlay = overlayPanel();
  const node = el("section", { class: "preview", "aria-label": "Preview" }, view.stage.node, strip.node, overlay.node);

  function open(image) {
    store.set({ image });
    const name = store.state.images.names[image];
    caption.replaceChildren(fileLabel(fileName(name)));
    caption.title = name;
    view.open(image);
  }
  // The cards are painted first: creating the drawing context may take a second.
  let first = 0;
  const frame = requestAnimationFrame(() => {
    first = setTimeout(() => open(Math.min(store.state.image, store.state.images.names.length - 1)));
  });
  return {
    node,
    point: view.point,
    step: strip.step,
    see: strip.choose,
    end() {
      cancelAnimationFrame(frame);
      clearTimeout(first);
      view.end();
      strip.end();
      overlay.end();
    },
  };
}
