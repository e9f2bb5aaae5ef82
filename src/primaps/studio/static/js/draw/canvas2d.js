// Draws without a graphics card, where this is faster than WebGL in software. The pixels and labels of
// each pane are cached at the size of the screen, and a new palette takes one pass over them.

/**
 * Returns the pixels of a pane: the image, the colors of its labels and their outlines.
 *
 * @param view {width, base, labels, confidence}: per pixel, RGBA as one number, a label, and 0..255
 * @param overlay {opacity, line, minConfidence}: `line` is the outline width in pixels
 */
export function paint({ width, base, labels, confidence }, palette, { opacity, line, minConfidence }) {
  const { keep, redBlue, green, numbers } = inks(palette, opacity);
  const out = new Uint32Array(base.length);
  const shown = new Uint16Array(base.length);
  const least = minConfidence * 255;
  for (let i = 0; i < out.length; i += 1) {
    const label = labels[i];
    const pixel = base[i];
    if (!numbers[label] || (least && confidence && confidence[i] < least)) {
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

/** Blends a color over a pixel, which keeps `keep` of 256; red and blue are computed together. */
function mixed(pixel, keep, redBlue, green) {
  const both = ((Math.imul(pixel & 0xff00ff, keep) + redBlue) >>> 8) & 0xff00ff;
  const middle = ((Math.imul(pixel & 0xff00, keep) + green) >>> 8) & 0xff00;
  return both | middle | 0xff000000;
}

/** Returns the color of each label, weighted by its opacity, and its class number; 0 if hidden. */
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

/** Returns the positions of pixels on an axis of `size` cells; 0 is the center of the first cell. */
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

/** Calls back with the four cells around each pixel, and the bilinear weights of the last one. */
function around({ width, height }, columns, rows, visit) {
  let i = 0;
  for (const y of rows) {
    const top = inside(Math.floor(y), height) * width;
    const bottom = inside(Math.floor(y) + 1, height) * width;
    for (const x of columns) {
      const left = inside(Math.floor(x), width);
      const right = inside(Math.floor(x) + 1, width);
      visit(i++, top + left, top + right, bottom + left, bottom + right, x - Math.floor(x), y - Math.floor(y));
    }
  }
}

/** Enlarges a coarse label map with smooth borders: the label with the largest bilinear weight. */
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

/** Expands a rectangle to integer pixels, which avoids half transparent borders. */
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
  const views = []; // cached pixels of each pane
  let image = null;
  let confidence = null;

  /** Returns the pixels of the image in a pane, cached while the image does not move. */
  function viewOf(number, { rect: exact }) {
    const rect = onPixels(exact);
    const left = Math.max(0, rect.left);
    const top = Math.max(0, rect.top);
    const width = Math.min(canvas.width, rect.left + rect.width) - left;
    const height = Math.min(canvas.height, rect.top + rect.height) - top;
    const key = [left, top, width, height, ...Object.values(rect)].join(" ");
    if (views[number]?.key === key && views[number].image === image) return views[number];
    if (width < 1 || height < 1) return null;
    const scaled = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    scaled.imageSmoothingQuality = "high";
    scaled.drawImage(image, rect.left - left, rect.top - top, rect.width, rect.height);
    const base = new Uint32Array(scaled.getImageData(0, 0, width, height).data.buffer);
    const axes = (map) => [positions(left, width, rect.left, rect.width, map.width), positions(top, height, rect.top, rect.height, map.height)];
    return (views[number] = { key, image, left, top, width, height, base, axes });
  }

  return {
    image(bitmap) {
      image = bitmap;
    },
    labels(name, map) {
      layerOf(name).map = { ...map }; // a copy: the brush changes the values in place
    },
    clear(name) {
      layerOf(name).map = null;
    },
    palette(name, palette) {
      layerOf(name).palette = palette;
    },
    confidence(map) {
      confidence = { ...map };
    },
    draw(panes, overlay) {
      context.clearRect(0, 0, canvas.width, canvas.height);
      views.length = Math.min(views.length, panes.length);
      panes.forEach((pane, number) => {
        const view = image && viewOf(number, pane);
        if (!view) return;
        const { map, palette } = layerOf(pane.layer);
        let pixels = view.base;
        if (map && palette) {
          if (view.map !== map) {
            view.map = map;
            view.labels = (map.width * 3 < image.width ? smoothed : nearest)(map, ...view.axes(map));
          }
          const threshold = pane.layer === "classes" && confidence ? overlay.minConfidence : 0;
          if (threshold && view.confidenceMap !== confidence) {
            view.confidenceMap = confidence;
            view.confidence = interpolated(confidence, ...view.axes(confidence));
          }
          pixels = paint(view, palette, { opacity: overlay.opacity, line: overlay.outlines ? overlay.line : 0, minConfidence: threshold });
        }
        const pixelData = new ImageData(new Uint8ClampedArray(pixels.buffer), view.width, view.height);
        const { left, top, width, height } = pane.clip;
        context.putImageData(pixelData, view.left, view.top, left - view.left, top - view.top, width, height);
      });
    },
    end() {},
  };
}
