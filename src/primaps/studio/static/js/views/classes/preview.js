// One image beside the gallery on which every change of the classes is seen at once.

import { el, ends } from "../../dom.js";
import { fileName } from "../../format.js";
import { store } from "../../store.js";
import { filmstrip } from "../filmstrip.js";
import { createClassStage } from "../class_stage.js";
import { lookPanel } from "../look.js";

export function createPreview() {
  const caption = el("div", { class: "caption cut", role: "status" });
  const picture = createClassStage({ label: "with its classes" });
  picture.stage.node.append(caption);
  const strip = filmstrip(open, true);
  const look = lookPanel();
  const node = el("section", { class: "preview", "aria-label": "Preview" }, picture.stage.node, strip.node, look.node);

  function open(image) {
    store.set({ image });
    const name = store.state.images.names[image];
    caption.replaceChildren(ends(fileName(name)));
    caption.title = name;
    picture.open(image);
  }
  // The cards are painted first: what draws the picture may take a second to make.
  let first = 0;
  const frame = requestAnimationFrame(() => {
    first = setTimeout(() => open(Math.min(store.state.image, store.state.images.names.length - 1)));
  });
  return {
    node,
    point: picture.point,
    step: strip.step,
    see: strip.choose,
    end() {
      cancelAnimationFrame(frame);
      clearTimeout(first);
      picture.end();
      strip.end();
      look.end();
    },
  };
}
