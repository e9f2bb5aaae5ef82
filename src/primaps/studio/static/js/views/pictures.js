// A wall of small pictures: a sample of the images, with their masks as they come.

import { url } from "../api.js";
import { el, thumbnail } from "../dom.js";
import { canvas2d } from "../draw/canvas2d.js";
import { onPicture } from "../live.js";
import * as loader from "../loader.js";
import { maskPalette } from "../palette.js";
import { store } from "../store.js";

const MOST = 24;

export function createPictures({ masks }) {
  const node = el("ul", { class: "wall" });
  const shown = new Map();

  function add(image, first) {
    const item = el("li", {}, thumbnail(url.thumb(image), store.state.images?.names[image] ?? "", { loading: "lazy" }));
    shown.set(image, item);
    if (first) node.prepend(item);
    else node.append(item);
    if (shown.size > MOST) {
      const [oldest, old] = shown.entries().next().value;
      old.remove();
      shown.delete(oldest);
    }
    return item;
  }

  const off = onPicture(async ({ image }) => {
    if (!masks) return;
    const item = shown.get(image) ?? add(image, true);
    try {
      const map = await loader.proposals(loader.proposalsKey(image, 0.4, false));
      const picture = item.firstChild;
      await picture.decode();
      if (!item.querySelector("canvas")) item.append(overlay(await createImageBitmap(picture), map));
    } catch {
      // A picture of progress that does not come is no error: the next one will.
    }
  });

  return {
    node,
    /** Spread over the collection, so that one sees what there is. */
    sample(total) {
      if (shown.size) return;
      const most = Math.min(total, masks ? 12 : MOST);
      for (let i = 0; i < most; i += 1) add(Math.floor((i * total) / most), false);
    },
    end: off,
  };
}

function overlay(bitmap, map) {
  const { width, height } = bitmap;
  const canvas = el("canvas", { width, height, class: "arriving" });
  const drawing = canvas2d(canvas);
  drawing.photo(bitmap);
  drawing.labels("masks", map);
  drawing.palette("masks", maskPalette(map));
  const whole = { left: 0, top: 0, width, height };
  drawing.draw([{ clip: whole, rect: whole, layer: "masks" }], { opacity: 0.6, outlines: false, sure: 0 });
  return canvas;
}
