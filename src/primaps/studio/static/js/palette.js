// The palette, a table from label values to colors: every edit of the classes changes only this table.

export function rgb(hex) {
  const number = Number.parseInt(hex.slice(1), 16);
  return [number >> 16, (number >> 8) & 255, number & 255];
}

/**
 * Returns two rows of RGBA over all label values. The first has the color; alpha 0 hides the class.
 * The second has the class number in red and green, which prevents outlines inside a class, and 255 in
 * blue if the class is dimmed because the user points at another one.
 */
export function palette(classes, values, pointed = null) {
  const width = Math.max(256, values);
  const data = new Uint8Array(width * 8);
  classes.forEach((one, number) => {
    const [r, g, b] = rgb(one.color);
    const back = pointed !== null && one.id !== pointed ? 255 : 0;
    for (const leaf of one.leaves) {
      data.set([r, g, b, one.hidden ? 0 : 255], leaf * 4);
      data.set([(number + 1) & 255, (number + 1) >> 8, back, 0], (width + leaf) * 4);
    }
  });
  return { width, data };
}

// The colors of Okabe and Ito without black, then lighter and darker ones.
const MASKS = [
  "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#ffd07a",
  "#a6dbf7", "#66d1b1", "#8a5f00", "#1f6f9c", "#a3ffe0", "#7a3600", "#f2b8d5", "#b8b8b8",
];

/** Returns the palette of a mask map; 0 is no mask. */
export function maskPalette({ values }, pointed = null) {
  const count = values.reduce((most, value) => Math.max(most, value), 0);
  const masks = Array.from({ length: count }, (_, i) => ({ id: i + 1, color: MASKS[i % MASKS.length], leaves: [i + 1], hidden: false }));
  return palette(masks, count + 1, pointed);
}
