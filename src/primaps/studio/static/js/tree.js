// Cuts of the tree of classes, as primaps.classes.tree has them: nodes 0..L-1 are parts, merge i
// joins two nodes to node L+i, and undoing the last K-1 merges gives K classes.

/** Nodes of the cut with `count` classes, in the order of their first parts. */
export function cutNodes(tree, parts, count) {
  const done = parts - count;
  const gone = new Set(tree.merges.slice(0, done).flat());
  const left = [];
  for (let node = 0; node < parts + done; node += 1) if (!gone.has(node)) left.push(node);
  const first = (node) => Math.min(...tree.nodes[node].parts);
  return left.sort((one, other) => first(one) - first(other));
}

/** Classes as GET classes has them, of another cut: names, colors and what is hidden stay. */
export function cutClasses(found, count) {
  const hidden = new Set(found.classes.filter((one) => one.hidden).flatMap((one) => one.parts));
  const known = new Map(found.classes.map((one) => [one.id, one]));
  return cutNodes(found.tree, found.parts, count).map((node) => {
    const { id, name, color, parts } = found.tree.nodes[node];
    return known.get(id) ?? { id, name, color, parts, hidden: parts.every((part) => hidden.has(part)), preview: true };
  });
}

/** The id of a class with these parts: the largest nodes, at or below classes of the model, of them. */
export function classId(found, modelClasses, parts) {
  const left = new Set(parts);
  const used = [];
  const nodes = found.tree.nodes.slice(0, 2 * found.parts - modelClasses);
  for (const node of nodes.sort((a, b) => b.parts.length - a.parts.length)) {
    if (!node.parts.every((part) => left.has(part))) continue;
    used.push(node);
    node.parts.forEach((part) => left.delete(part));
  }
  return used.sort((a, b) => a.parts[0] - b.parts[0]).map((node) => node.id).join("+");
}

/** Whether the classes are those of the cut with as many. */
export function isCut(found) {
  const count = found.classes.length;
  if (count > found.parts) return false;
  const ids = new Set(found.classes.map((one) => one.id));
  return cutNodes(found.tree, found.parts, count).every((node) => ids.has(found.tree.nodes[node].id));
}

/** How much better each K is than K-1, 0..1: what the merge from K to K-1 classes costs. */
export function gains(found) {
  const cost = found.tree.cost;
  const gain = new Float64Array(found.parts + 1);
  for (let count = 2; count <= found.parts; count += 1) gain[count] = cost[found.parts - count];
  const most = Math.max(...gain, 1e-12);
  return gain.map((one) => Math.max(0, one) / most);
}

/** The class of the model that each part belongs to: the number before the first dot of its id. */
export function owners(found) {
  return found.tree.nodes.slice(0, found.parts).map((node) => Number.parseInt(node.id, 10));
}
