// A wall of thumbnails: a sample of the images, with previews of their masks during a fit.

import { url } from "../api.js";
import { el, thumbnail } from "../dom.js";
import { canvas2d } from "../draw/canvas2d.js";
import { onPreview } from "../live.js";
import * as loader from "../loader.js";
import { maskPalette } from "../palette.js";
import { store } from "../store.js";

const MOST = 24;

export function createWall({ masks }) {
  const node = el("ul", { class: "wall" });
  const shown = new Map();

  function add(image, first) {
    const item = el("li", {}, thumbnail(url.thumbnail(image), store.state.images?.names[image] ?? "", { loading: "lazy" }));
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

  const off = onPreview(async ({ image }) => {
    if (!masks) return;
    const item = shown.get(image) ?? add(image, true);
    try {
      const map = await loader.proposals(loader.proposalsKey(image, 0.4, false));
      const thumb = item.firstChild;
      await thumb.decode();
      if (!item.querySelector("canvas")) item.append(overlay(await createImageBitmap(thumb), map));
    } catch {
      // A missing preview is not an error: the next one follows.
    }
  });

  return {
    node,
    /** Shows images at even distances in the collection. */
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
  drawing.image(bitmap);
  drawing.labels("masks", map);
  drawing.palette("masks", maskPalette(map));
  const whole = { left: 0, top: 0, width, height };
  drawing.draw([{ clip: whole, rect: whole, layer: "masks" }], { opacity: 0.6, outlines: false, minConfidence: 0 });
  return canvas;
}
