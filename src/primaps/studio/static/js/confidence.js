// How sure the model is of the class of each cell of the feature grid.

/**
 * The probability of the most likely class, 0..255, as classes are now: those of the model that
 * were merged count together, so a merge makes a picture surer and a split leaves it as it is.
 *
 * @param logits {classes, height, width, values} of the model's own K classes
 * @param groups of each of the K, which of the classes now it is in
 */
export function confidence(logits, groups) {
  const { classes, height, width, values } = logits;
  const cells = height * width;
  const found = new Uint8Array(cells);
  const sums = new Float64Array(Math.max(...groups) + 1);
  for (let cell = 0; cell < cells; cell += 1) {
    let most = -Infinity;
    for (let k = 0; k < classes; k += 1) most = Math.max(most, values[k * cells + cell]);
    let total = 0;
    sums.fill(0);
    for (let k = 0; k < classes; k += 1) {
      const weight = Math.exp(values[k * cells + cell] - most);
      sums[groups[k]] += weight;
      total += weight;
    }
    found[cell] = Math.round((255 * Math.max(...sums)) / total);
  }
  return { width, height, values: found };
}

/** Which classes of the model share one now: the smallest of those that do stands for all. */
export function groups(classes, owners) {
  const count = Math.max(...owners) + 1;
  const group = Array.from({ length: count }, (_, k) => k);
  for (const one of classes) {
    const members = [...new Set(one.parts.map((part) => group[owners[part]]))];
    const least = Math.min(...members);
    for (let k = 0; k < count; k += 1) if (members.includes(group[k])) group[k] = least;
  }
  return group;
}
