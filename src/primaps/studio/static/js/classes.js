// The displayed classes, and all edits. An edit is displayed at once. If the server rejects it, the
// saved classes are loaded again.

import { get, post } from "./api.js";
import { count as number } from "./format.js";
import * as loader from "./loader.js";
import { notifyError, notify } from "./notices.js";
import { store } from "./store.js";
import { classId, cutClasses } from "./tree.js";

/** Returns the classes under the moving slider, or the saved ones. */
export function shown(state = store.state) {
  const { classes, cut } = state;
  if (!classes) return [];
  if (cut === null || cut === classes.classes.length) return classes.classes;
  if (classes !== under.of || cut !== under.cut) under = { of: classes, cut, found: cutClasses(classes, cut) };
  return under.found;
}
let under = { of: null, cut: null, found: [] };

export function byLeaf(classes, leaves) {
  const found = new Array(leaves).fill(null);
  for (const one of classes) for (const leaf of one.leaves) found[leaf] = one;
  return found;
}

/** Returns the mean share of each leaf over the analyzed images. */
export function shares(images) {
  if (images !== averaged.of) averaged = { of: images, mean: meanShares(images) };
  return averaged.mean;
}
let averaged = { of: null, mean: null };

function meanShares(images) {
  const rows = images?.shares.filter(Boolean) ?? [];
  if (!rows.length) return null;
  const mean = new Float64Array(rows[0].length);
  for (const row of rows) for (let leaf = 0; leaf < row.length; leaf += 1) mean[leaf] += row[leaf] / rows.length;
  return mean;
}

export function shareOf(one, leaves) {
  return one.leaves.reduce((sum, leaf) => sum + (leaves[leaf] ?? 0), 0);
}

// Changes are sent one after the other, each with the revision after the one before.
let queue = Promise.resolve();

/** Sends a change; `ahead` computes the classes to show before the server answers. */
export function change(path, body, done = "", ahead = null) {
  if (ahead) store.set({ classes: ahead(store.state.classes) });
  store.set({ saving: store.state.saving + 1 });
  queue = queue.then(() => send(path, body, done));
  return queue;
}

async function send(path, body, done) {
  let saved = false;
  try {
    const answer = await post(path, { revision: store.state.classes?.revision, ...body });
    // If a later change is already displayed, its answer has all classes.
    const latest = store.state.saving === 1;
    store.set({ classes: latest ? answer : { ...store.state.classes, revision: answer.revision } });
    if (done) notify(done);
    if (answer.image !== undefined) repainted(answer.image);
    saved = true;
    return answer;
  } catch (error) {
    notifyError(error);
    await reload();
    return null;
  } finally {
    store.set({ saving: store.state.saving - 1, ...(saved ? {} : { cut: null }) });
  }
}

/** Drops the leaf map of an image whose corrections changed. */
function repainted(image) {
  loader.leaves.forget(image);
  store.set({ painted: { image } });
}

export async function reload() {
  const collection = store.state.server?.collection;
  try {
    const classes = await get("classes");
    if (collection === store.state.server?.collection) store.set({ classes });
  } catch (error) {
    if (error.status !== 409 && error.status !== 404) notifyError(error);
  }
}

const replaced = (id, patch) => (found) => ({
  ...found,
  classes: found.classes.map((one) => (one.id === id ? { ...one, ...patch } : one)),
});

export function rename(one, name) {
  const to = name.trim();
  if (!to || to === one.name) return queue;
  return change("classes", { edits: [{ rename: one.id, to }] }, `Renamed ${one.name} to ${to}.`, replaced(one.id, { name: to, named: true }));
}

export function recolor(one, to) {
  return change("classes", { edits: [{ color: one.id, to }] }, "", replaced(one.id, { color: to }));
}

/** Previews a color while the color picker is open. */
export function tint(one, to) {
  store.set({ classes: replaced(one.id, { color: to })(store.state.classes) });
}

export function setHidden(one, hidden) {
  const edit = hidden ? { hide: one.id } : { show: one.id };
  return change("classes", { edits: [edit] }, `${hidden ? "Hid" : "Showed"} ${one.name}.`, replaced(one.id, { hidden }));
}

export function merge(one, into) {
  const join = (found) => ({
    ...found,
    classes: found.classes
      .filter((other) => other.id !== one.id)
      .map((other) => (other.id === into.id ? { ...other, leaves: [...other.leaves, ...one.leaves], share: other.share + one.share } : other)),
  });
  // The merged class keeps a name given by the user, and the color of the class that it merges into.
  const { classes, server } = store.state;
  const id = classId(classes, server.model.classes, [...into.leaves, ...one.leaves]);
  const edits = [{ merge: [into.id, one.id] }, { color: id, to: into.color }];
  const named = [into, one].find((either) => either.named);
  if (named) edits.push({ rename: id, to: named.name });
  return change("classes", { edits }, `Merged ${one.name} into ${into.name}.`, join);
}

export function split(one) {
  return change("classes", { edits: [{ split: one.id }] }, `Split ${one.name}.`);
}

export function commitCut(count) {
  if (!store.state.classes || count === store.state.classes.classes.length) {
    store.set({ cut: null });
    return queue;
  }
  return change("classes/cut", { classes: count }, `${number(count, "class", "classes")}.`).then((answer) => {
    // The user may have chosen another number meanwhile, which is saved later.
    if (store.state.cut === count) store.set({ cut: null });
    return answer;
  });
}

/** Assigns pixels of an image, given as runs `[start, length]` in row-major order, to a class. */
export function correct(image, one, runs) {
  return change(`images/${image}/correction`, { class: one.id, runs }, `Corrected to ${one.name}.`);
}

export function undo() {
  const what = store.state.classes?.undo;
  return what ? change("undo", {}, `Undone: ${what}.`) : queue;
}

export function redo() {
  const what = store.state.classes?.redo;
  return what ? change("redo", {}, `Redone: ${what}.`) : queue;
}
