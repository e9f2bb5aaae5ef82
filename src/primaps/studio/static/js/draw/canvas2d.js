// The same drawing where there is no graphics card, on which WebGL is slower than this. What a pane
// shows of the image and of the labels is kept at its pixels, so that a change of the palette
// is one pass over them.

/**
 * Pixels of a pane: the image with the colors of its labels and their outlines.
 *
 * @param view {width, base, labels, sure}: RGBA as one number, a label, and 0..255, of each pixel
 * @param look {opacity, line, sure}: `line` in pixels, 0 for none
 */
export function paint({ width, base, labels, sure }, palette, { opacity, line, sure: threshold }) {
  const { keep, redBlue, green, numbers } = inks(palette, opacity);
  const out = new Uint32Array(base.length);
  const shown = new Uint16Array(base.length);
  const least = threshold * 255;
  for (let i = 0; i < out.length; i += 1) {
    const label = labels[i];
    const pixel = base[i];
    if (!numbers[label] || (least && sure && sure[i] < least)) {
      out[i] = pixel;
      continue;
    }
    shown[i] = numbers[label];
    out[i] = mixed(pixel, keep[label], redBlue[label], green[label]);
  }
  const step = Math.round(line);
  if (!step) return out;
  const keptOfLine = Math.round(256 * 0.15);
  const white = 255 * (256 - keptOfLine);
  for (let i = 0; i < out.length; i += 1) {
    const right = (i % width) + step < width ? shown[i + step] : shown[i];
    const below = i + step * width < out.length ? shown[i + step * width] : shown[i];
    if (right !== shown[i] || below !== shown[i]) out[i] = mixed(out[i], keptOfLine, white * 0x10001, white << 8);
  }
  return out;
}

/** A pixel times `keep` of 256, plus what is laid over it; red and blue are computed at once. */
function mixed(pixel, keep, redBlue, green) {
  const both = ((Math.imul(pixel & 0xff00ff, keep) + redBlue) >>> 8) & 0xff00ff;
  const middle = ((Math.imul(pixel & 0xff00, keep) + green) >>> 8) & 0xff00;
  return both | middle | 0xff000000;
}

/** What each label lays over a pixel, and the number of its class; 0 where it is hidden. */
function inks({ width, data }, opacity) {
  const keep = new Int32Array(width);
  const redBlue = new Int32Array(width);
  const green = new Int32Array(width);
  const numbers = new Uint16Array(width);
  for (let label = 0; label < width; label += 1) {
    const [r, g, b, a] = data.subarray(label * 4, label * 4 + 4);
    const [low, high, back] = data.subarray((width + label) * 4, (width + label) * 4 + 3);
    numbers[label] = a ? low | (high << 8) : 0;
    const over = Math.round(256 * opacity * (back ? 0.15 : 1));
    keep[label] = 256 - over;
    redBlue[label] = (r | (b << 16)) * over;
    green[label] = (g << 8) * over;
  }
  return { keep, redBlue, green, numbers };
}

/** For pixels from `start` on: where they lie on an axis of `size` cells, 0 the middle of the first. */
function positions(start, count, place, length, size) {
  return Float32Array.from({ length: count }, (_, i) => ((start + i + 0.5 - place) / length) * size - 0.5);
}
const inside = (at, size) => Math.max(0, Math.min(size - 1, at));

function nearest({ width, height, values }, columns, rows) {
  const out = new values.constructor(columns.length * rows.length);
  const across = Int32Array.from(columns, (x) => inside(Math.round(x), width));
  let i = 0;
  for (const y of rows) {
    const row = inside(Math.round(y), height) * width;
    for (const x of across) out[i++] = values[row + x];
  }
  return out;
}

/** Calls back with the four cells around each pixel, and how near it is to the last of them. */
function around({ width, height }, columns, rows, tell) {
  let i = 0;
  for (const y of rows) {
    const top = inside(Math.floor(y), height) * width;
    const bottom = inside(Math.floor(y) + 1, height) * width;
    for (const x of columns) {
      const left = inside(Math.floor(x), width);
      const right = inside(Math.floor(x) + 1, width);
      tell(i++, top + left, top + right, bottom + left, bottom + right, x - Math.floor(x), y - Math.floor(y));
    }
  }
}

/** Labels of a coarse map with smooth borders: the one with the largest bilinear weight. */
function smoothed(map, columns, rows) {
  const { values } = map;
  const out = new values.constructor(columns.length * rows.length);
  around(map, columns, rows, (i, a, b, c, d, x, y) => {
    out[i] = values[a];
    if (values[b] === out[i] && values[c] === out[i] && values[d] === out[i]) return;
    const found = [values[a], values[b], values[c], values[d]];
    const weights = [(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y];
    let most = -1;
    for (const one of found) {
      const sum = weights.reduce((all, weight, k) => all + (found[k] === one ? weight : 0), 0);
      if (sum > most) [most, out[i]] = [sum, one];
    }
  });
  return out;
}

function interpolated(map, columns, rows) {
  const { values } = map;
  const out = new Uint8Array(columns.length * rows.length);
  around(map, columns, rows, (i, a, b, c, d, x, y) => {
    const top = values[a] + (values[b] - values[a]) * x;
    out[i] = Math.round(top + (values[c] + (values[d] - values[c]) * x - top) * y);
  });
  return out;
}

/** A rectangle of whole pixels: those at the rim would be half transparent. */
function onPixels({ left, top, width, height }) {
  const [x, y] = [Math.floor(left), Math.floor(top)];
  return { left: x, top: y, width: Math.ceil(left + width) - x, height: Math.ceil(top + height) - y };
}

export function canvas2d(canvas) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const layers = new Map();
  const layerOf = (name) => {
    if (!layers.has(name)) layers.set(name, {});
    return layers.get(name);
  };
  const views = []; // of each pane, what it shows
  let photo = null;
  let certainty = null;

  /** The pixels of the image where it lies on the canvas; kept while it lies there. */
  function viewOf(number, { rect: exact }) {
    const rect = onPixels(exact);
    const left = Math.max(0, rect.left);
    const top = Math.max(0, rect.top);
    const width = Math.min(canvas.width, rect.left + rect.width) - left;
    const height = Math.min(canvas.height, rect.top + rect.height) - top;
    const key = [left, top, width, height, ...Object.values(rect)].join(" ");
    if (views[number]?.key === key && views[number].photo === photo) return views[number];
    if (width < 1 || height < 1) return null;
    const scaled = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    scaled.imageSmoothingQuality = "high";
    scaled.drawImage(photo, rect.left - left, rect.top - top, rect.width, rect.height);
    const base = new Uint32Array(scaled.getImageData(0, 0, width, height).data.buffer);
    const axes = (map) => [positions(left, width, rect.left, rect.width, map.width), positions(top, height, rect.top, rect.height, map.height)];
    return (views[number] = { key, photo, left, top, width, height, base, axes });
  }

  return {
    photo(bitmap) {
      photo = bitmap;
    },
    labels(name, map) {
      layerOf(name).map = { ...map }; // another one each time: a brush changes the values in place
    },
    clear(name) {
      layerOf(name).map = null;
    },
    palette(name, palette) {
      layerOf(name).palette = palette;
    },
    sure(map) {
      certainty = { ...map };
    },
    draw(panes, look) {
      context.clearRect(0, 0, canvas.width, canvas.height);
      views.length = Math.min(views.length, panes.length);
      panes.forEach((pane, number) => {
        const view = photo && viewOf(number, pane);
        if (!view) return;
        const { map, palette } = layerOf(pane.layer);
        let pixels = view.base;
        if (map && palette) {
          if (view.map !== map) {
            view.map = map;
            view.labels = (map.width * 3 < photo.width ? smoothed : nearest)(map, ...view.axes(map));
          }
          const threshold = pane.layer === "classes" && certainty ? look.sure : 0;
          if (threshold && view.certainty !== certainty) {
            view.certainty = certainty;
            view.sure = interpolated(certainty, ...view.axes(certainty));
          }
          pixels = paint(view, palette, { opacity: look.opacity, line: look.outlines ? look.line : 0, sure: threshold });
        }
        const image = new ImageData(new Uint8ClampedArray(pixels.buffer), view.width, view.height);
        const { left, top, width, height } = pane.clip;
        context.putImageData(image, view.left, view.top, left - view.left, top - view.top, width, height);
      });
    },
    end() {},
  };
}
