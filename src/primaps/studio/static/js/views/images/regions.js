// Pixels of a stroke: pure functions on label maps in row-major order.

/** Returns the connected pixels with the value of a pixel. */
export function region({ width, height, values }, x, y) {
  const wanted = values[y * width + x];
  const seen = new Uint8Array(width * height);
  const found = [];
  const open = [y * width + x];
  seen[open[0]] = 1;
  while (open.length) {
    const at = open.pop();
    found.push(at);
    const column = at % width;
    for (const next of [column > 0 ? at - 1 : -1, column < width - 1 ? at + 1 : -1, at - width, at + width]) {
      if (next < 0 || next >= values.length || seen[next] || values[next] !== wanted) continue;
      seen[next] = 1;
      open.push(next);
    }
  }
  return found;
}

/** Returns the pixels in a disc, clipped to the image. */
export function disc({ width, height }, x, y, radius) {
  const found = [];
  for (let row = Math.max(0, Math.ceil(y - radius)); row <= Math.min(height - 1, y + radius); row += 1) {
    const half = Math.sqrt(Math.max(0, radius ** 2 - (row - y) ** 2));
    const last = Math.min(width - 1, Math.floor(x + half));
    for (let column = Math.max(0, Math.ceil(x - half)); column <= last; column += 1) found.push(row * width + column);
  }
  return found;
}

/** Encodes marked pixels as runs `[start, length]`. */
export function runs(marked) {
  const found = [];
  let start = -1;
  for (let at = 0; at <= marked.length; at += 1) {
    if (at < marked.length && marked[at]) {
      if (start < 0) start = at;
    } else if (start >= 0) {
      found.push([start, at - start]);
      start = -1;
    }
  }
  return found;
}
