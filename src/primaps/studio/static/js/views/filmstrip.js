// A strip of all images to choose from: a column, or a row on narrow screens.

import { url } from "../api.js";
import { el, thumbnail } from "../dom.js";
import { fileName } from "../format.js";
import { store } from "../store.js";
import { createGrid } from "../virtual.js";

const narrow = matchMedia("(max-width: 900px)");

/** @param row whether it is a row on wide screens as well */
export function filmstrip(choose, row = false) {
  const { names } = store.state.images;
  const form = () => [row || narrow.matches, row || narrow.matches ? 96 : 120];
  const [across, width] = form();
  const grid = createGrid({
    label: "Images", width, height: 92, across, choose,
    cell: (image) =>
      el("figure", { title: names[image] }, thumbnail(url.thumbnail(image), fileName(names[image]), { draggable: "false" })),
  });
  grid.node.classList.add("filmstrip");
  const order = names.map((_, image) => image);
  grid.show(order, Math.min(store.state.image, names.length - 1));
  const turn = () => grid.turn(...form()); // after the rotation of a tablet
  narrow.addEventListener("change", turn);
  function end() {
    narrow.removeEventListener("change", turn);
    grid.end();
  }
  return { node: grid.node, choose: (image) => grid.pick(image), step: grid.step, end };
}
