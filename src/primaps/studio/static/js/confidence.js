// Confidence of the model in each cell of the feature grid.

/**
 * Returns the probability of the most likely class, 0..255. Probabilities of merged classes add up:
 * a merge increases the confidence, a split does not change it.
 *
 * @param logits {classes, height, width, values} of the K classes of the model
 * @param groups for each of the K classes, the group of classes that it was merged into
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

/** Returns for each class of the model the smallest class number that it was merged with. */
export function groups(classes, owners) {
  const count = Math.max(...owners) + 1;
  const group = Array.from({ length: count }, (_, k) => k);
  for (const one of classes) {
    const members = [...new Set(one.leaves.map((leaf) => group[owners[leaf]]))];
    const least = Math.min(...members);
    for (let k = 0; k < count; k += 1) if (members.includes(group[k])) group[k] = least;
  }
  return group;
}
