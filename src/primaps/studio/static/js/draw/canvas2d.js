// The same drawing where there is no WebGL2: labels are coloured once per change, at their size.

/** Colours of a label map as RGBA, outlines included: what the shader does, pixel by pixel. */
export function coloured(map, palette, { opacity, outlines, sure, confidence }) {
  const { width, height, values } = map;
  const { width: across, data } = palette;
  const out = new Uint8ClampedArray(width * height * 4);
  const pixels = new Uint32Array(out.buffer);
  const inks = inksOf(palette, opacity);
  const numbers = new Uint16Array(width * height);
  for (let i = 0; i < values.length; i += 1) {
    const value = values[i];
    if (data[value * 4 + 3] === 0) continue;
    if (sure > 0 && confidence && confidenceAt(confidence, i % width, Math.floor(i / width), map) < sure) continue;
    const row = (across + value) * 4;
    numbers[i] = data[row] | (data[row + 1] << 8);
    pixels[i] = inks[value];
  }
  if (!outlines) return out;
  const [line] = new Uint32Array(new Uint8Array([255, 255, 255, 217]).buffer);
  for (let i = 0; i < numbers.length; i += 1) {
    const right = (i + 1) % width ? numbers[i + 1] : numbers[i];
    const below = i + width < numbers.length ? numbers[i + width] : numbers[i];
    if (right !== numbers[i] || below !== numbers[i]) pixels[i] = line;
  }
  return out;
}

/** The four bytes of each label value as one number, which is written at once. */
function inksOf({ width, data }, opacity) {
  const bytes = new Uint8ClampedArray(data.subarray(0, width * 4));
  for (let value = 0; value < width; value += 1) bytes[value * 4 + 3] = 255 * opacity * (data[(width + value) * 4 + 2] ? 0.15 : 1);
  return new Uint32Array(bytes.buffer);
}

function confidenceAt(confidence, x, y, map) {
  const column = Math.min(confidence.width - 1, Math.floor((x / map.width) * confidence.width));
  const row = Math.min(confidence.height - 1, Math.floor((y / map.height) * confidence.height));
  return confidence.values[row * confidence.width + column] / 255;
}

export function canvas2d(canvas) {
  const context = canvas.getContext("2d");
  const layers = new Map();
  const layerOf = (name) => {
    if (!layers.has(name)) layers.set(name, { canvas: document.createElement("canvas"), look: "" });
    return layers.get(name);
  };
  let photo = null;
  let confidence = null;

  function drawn(name, look) {
    const layer = layerOf(name);
    if (!layer.map || !layer.palette) return null;
    const sure = name === "classes" ? look.sure : 0;
    const key = `${look.opacity} ${look.outlines} ${sure}`;
    if (layer.look !== key) {
      layer.look = key;
      const { width, height } = layer.map;
      Object.assign(layer.canvas, { width, height });
      const pixels = coloured(layer.map, layer.palette, { ...look, sure, confidence });
      layer.canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
    }
    return layer.canvas;
  }

  return {
    photo(bitmap) {
      photo = bitmap;
    },
    labels(name, map) {
      Object.assign(layerOf(name), { map, look: "" });
    },
    clear(name) {
      layerOf(name).map = null;
    },
    palette(name, palette) {
      Object.assign(layerOf(name), { palette, look: "" });
    },
    sure(map) {
      confidence = map;
      layerOf("classes").look = "";
    },
    draw(panes, look) {
      context.clearRect(0, 0, canvas.width, canvas.height);
      for (const { clip, rect, layer } of panes) {
        context.save();
        context.beginPath();
        context.rect(clip.left, clip.top, clip.width, clip.height);
        context.clip();
        const where = [rect.left, rect.top, rect.width, rect.height];
        if (photo) context.drawImage(photo, ...where);
        const over = layer && drawn(layer, look);
        if (over) context.drawImage(over, ...where);
        context.restore();
      }
    },
    end() {},
  };
}
