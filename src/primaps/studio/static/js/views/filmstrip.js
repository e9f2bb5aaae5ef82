// The images of the collection as a strip to choose from: a column, or a row on narrow screens.

import { url } from "../api.js";
import { el, thumbnail } from "../dom.js";
import { fileName } from "../format.js";
import { store } from "../store.js";
import { createGrid } from "../virtual.js";

const narrow = matchMedia("(max-width: 900px)");

export function filmstrip(choose, across = narrow.matches) {
  const { names } = store.state.images;
  const grid = createGrid({
    label: "Images", width: across ? 96 : 120, height: 92, across, choose,
    cell: (image) =>
      el("figure", { title: names[image] }, thumbnail(url.thumb(image), fileName(names[image]), { draggable: "false" })),
  });
  grid.node.classList.add("filmstrip");
  const order = names.map((_, image) => image);
  grid.show(order, Math.min(store.state.image, names.length - 1));
  return { node: grid.node, choose: (image) => grid.pick(image), step: grid.step, end: grid.end };
}
