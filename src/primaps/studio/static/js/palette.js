// From classes to what the drawing looks colors up in: every edit is a change of this table alone.

export function rgb(hex) {
  const number = Number.parseInt(hex.slice(1), 16);
  return [number >> 16, (number >> 8) & 255, number & 255];
}

/**
 * Two rows of RGBA over all label values: the color (alpha 0: not shown), and the number of the
 * class (red and green, so that no outline is drawn inside one) with 255 in blue where it stands
 * back because another class is pointed at.
 */
export function palette(classes, values, pointed = null) {
  const width = Math.max(256, values);
  const data = new Uint8Array(width * 8);
  classes.forEach((one, number) => {
    const [r, g, b] = rgb(one.color);
    const back = pointed !== null && one.id !== pointed ? 255 : 0;
    for (const part of one.parts) {
      data.set([r, g, b, one.hidden ? 0 : 255], part * 4);
      data.set([(number + 1) & 255, (number + 1) >> 8, back, 0], (width + part) * 4);
    }
  });
  return { width, data };
}

// Okabe and Ito's eight without black, then lighter and darker ones: masks have no color of
// their own.
const MASKS = [
  "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#ffd07a",
  "#a6dbf7", "#66d1b1", "#8a5f00", "#1f6f9c", "#a3ffe0", "#7a3600", "#f2b8d5", "#b8b8b8",
];

/** The masks of a map as classes, so that they are drawn the same way; 0 is of none. */
export function maskPalette({ values }, pointed = null) {
  const count = values.reduce((most, value) => Math.max(most, value), 0);
  const masks = Array.from({ length: count }, (_, i) => ({ id: i + 1, color: MASKS[i % MASKS.length], parts: [i + 1], hidden: false }));
  return palette(masks, count + 1, pointed);
}
