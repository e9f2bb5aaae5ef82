// Cuts of the class tree, as in primaps.classes.tree: nodes 0..L-1 are leaves, merge i joins two nodes
// into node L+i, and undoing the last K-1 merges gives K classes.

/** Returns the nodes of the cut with `count` classes, in the order of their first leaves. */
export function cutNodes(tree, leaves, count) {
  const done = leaves - count;
  const gone = new Set(tree.merges.slice(0, done).flat());
  const left = [];
  for (let node = 0; node < leaves + done; node += 1) if (!gone.has(node)) left.push(node);
  const first = (node) => Math.min(...tree.nodes[node].leaves);
  return left.sort((one, other) => first(one) - first(other));
}

/** Returns the classes of a cut, as in GET classes; names, colors and hidden leaves stay. */
export function cutClasses(found, count) {
  const hidden = new Set(found.classes.filter((one) => one.hidden).flatMap((one) => one.leaves));
  const known = new Map(found.classes.map((one) => [one.id, one]));
  return cutNodes(found.tree, found.leaves, count).map((node) => {
    const { id, name, named, color, leaves } = found.tree.nodes[node];
    return known.get(id) ?? { id, name, named, color, leaves, hidden: leaves.every((leaf) => hidden.has(leaf)), preview: true };
  });
}

/** Returns the id of a class with these leaves: the ids of the largest nodes below classes of the model. */
export function classId(found, modelClasses, leaves) {
  const left = new Set(leaves);
  const used = [];
  const nodes = found.tree.nodes.slice(0, 2 * found.leaves - modelClasses);
  for (const node of nodes.sort((a, b) => b.leaves.length - a.leaves.length)) {
    if (!node.leaves.every((leaf) => left.has(leaf))) continue;
    used.push(node);
    node.leaves.forEach((leaf) => left.delete(leaf));
  }
  return used.sort((a, b) => a.leaves[0] - b.leaves[0]).map((node) => node.id).join("+");
}

/** Returns whether the classes are a cut of the tree. */
export function isCut(found) {
  const count = found.classes.length;
  if (count > found.leaves) return false;
  const ids = new Set(found.classes.map((one) => one.id));
  return cutNodes(found.tree, found.leaves, count).every((node) => ids.has(found.tree.nodes[node].id));
}

/** Returns the gain of K over K-1 classes, 0..1: the cost of the merge from K to K-1 classes. */
export function gains(found) {
  const cost = found.tree.cost;
  const gain = new Float64Array(found.leaves + 1);
  for (let count = 2; count <= found.leaves; count += 1) gain[count] = cost[found.leaves - count];
  const most = Math.max(...gain, 1e-12);
  return gain.map((one) => Math.max(0, one) / most);
}

/** Returns the model class of each leaf: the number before the first dot of its id. */
export function owners(found) {
  return found.tree.nodes.slice(0, found.leaves).map((node) => Number.parseInt(node.id, 10));
}
