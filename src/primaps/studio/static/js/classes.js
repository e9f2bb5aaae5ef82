// The classes as they are shown now, and every way to change them. An edit shows at once; the
// server confirms it, or says why not, and then its word counts.

import { get, post } from "./api.js";
import * as loader from "./loader.js";
import { complain, tell } from "./notices.js";
import { store } from "./store.js";
import { classId, cutClasses } from "./tree.js";

/** Those under the slider while it moves, otherwise those that are saved. */
export function shown(state = store.state) {
  const { classes, cut } = state;
  if (!classes) return [];
  if (cut === null || cut === classes.classes.length) return classes.classes;
  if (classes !== under.of || cut !== under.cut) under = { of: classes, cut, found: cutClasses(classes, cut) };
  return under.found;
}
let under = { of: null, cut: null, found: [] };

export function byPart(classes, parts) {
  const found = new Array(parts).fill(null);
  for (const one of classes) for (const part of one.parts) found[part] = one;
  return found;
}

/** Share of all pixels, from the shares of the parts in the images that were looked at. */
export function shares(images) {
  if (images !== averaged.of) averaged = { of: images, mean: meanShares(images) };
  return averaged.mean;
}
let averaged = { of: null, mean: null };

function meanShares(images) {
  const rows = images?.shares.filter(Boolean) ?? [];
  if (!rows.length) return null;
  const mean = new Float64Array(rows[0].length);
  for (const row of rows) for (let part = 0; part < row.length; part += 1) mean[part] += row[part] / rows.length;
  return mean;
}

export function shareOf(one, parts) {
  return one.parts.reduce((sum, part) => sum + (parts[part] ?? 0), 0);
}

// Changes are sent one after the other, each with the revision that the last one left.
let queue = Promise.resolve();

/** Sends a change; `ahead` shows it before the server has answered. */
export function change(path, body, done = "", ahead = null) {
  if (ahead) store.set({ classes: ahead(store.state.classes) });
  store.set({ saving: store.state.saving + 1 });
  queue = queue.then(() => send(path, body, done));
  return queue;
}

async function send(path, body, done) {
  let kept = false;
  try {
    const answer = await post(path, { revision: store.state.classes?.revision, ...body });
    // A later change is shown already: its answer will bring everything.
    const latest = store.state.saving === 1;
    store.set({ classes: latest ? answer : { ...store.state.classes, revision: answer.revision } });
    if (done) tell(done);
    if (answer.image !== undefined) repainted(answer.image);
    kept = true;
    return answer;
  } catch (error) {
    complain(error);
    await reload();
    return null;
  } finally {
    store.set({ saving: store.state.saving - 1, ...(kept ? {} : { cut: null }) });
  }
}

/** A correction was made, undone or made again: the part map of its image is another one. */
function repainted(image) {
  loader.parts.forget(image);
  store.set({ painted: { image } });
}

export async function reload() {
  const collection = store.state.server?.collection;
  try {
    const classes = await get("classes");
    if (collection === store.state.server?.collection) store.set({ classes });
  } catch (error) {
    if (error.status !== 409 && error.status !== 404) complain(error);
  }
}

const replaced = (id, patch) => (found) => ({
  ...found,
  classes: found.classes.map((one) => (one.id === id ? { ...one, ...patch } : one)),
});

export function rename(one, name) {
  const to = name.trim();
  if (!to || to === one.name) return queue;
  return change("classes", { edits: [{ rename: one.id, to }] }, `${one.name} is now ${to}.`, replaced(one.id, { name: to, named: true }));
}

export function recolor(one, to) {
  return change("classes", { edits: [{ color: one.id, to }] }, "", replaced(one.id, { color: to }));
}

/** Shows a color that is still being chosen. */
export function tint(one, to) {
  store.set({ classes: replaced(one.id, { color: to })(store.state.classes) });
}

export function setHidden(one, hidden) {
  const edit = hidden ? { hide: one.id } : { show: one.id };
  return change("classes", { edits: [edit] }, `${one.name} is ${hidden ? "hidden" : "shown"}.`, replaced(one.id, { hidden }));
}

export function merge(one, into) {
  const join = (found) => ({
    ...found,
    classes: found.classes
      .filter((other) => other.id !== one.id)
      .map((other) => (other.id === into.id ? { ...other, parts: [...other.parts, ...one.parts], share: other.share + one.share } : other)),
  });
  // A name that somebody gave stays, and so does the color of the class that was dropped onto.
  const { classes, server } = store.state;
  const id = classId(classes, server.model.classes, [...into.parts, ...one.parts]);
  const edits = [{ merge: [into.id, one.id] }, { color: id, to: into.color }];
  const named = [into, one].find((either) => either.named);
  if (named) edits.push({ rename: id, to: named.name });
  return change("classes", { edits }, `${one.name} was merged into ${into.name}.`, join);
}

export function split(one) {
  return change("classes", { edits: [{ split: one.id }] }, `${one.name} was split in two.`);
}

export function commitCut(count) {
  if (!store.state.classes || count === store.state.classes.classes.length) {
    store.set({ cut: null });
    return queue;
  }
  return change("classes/cut", { classes: count }, `There are ${count} classes now.`).then((answer) => {
    // Another number may have been chosen meanwhile: it stays until it is saved itself.
    if (store.state.cut === count) store.set({ cut: null });
    return answer;
  });
}

/** Paints pixels of an image, given as runs `[start, length]` over its rows. */
export function correct(image, one, runs) {
  return change(`images/${image}/correction`, { class: one.id, runs }, `Corrected to ${one.name}.`);
}

export function undo() {
  const what = store.state.classes?.undo;
  return what ? change("undo", {}, `Undone: ${what}.`) : queue;
}

export function redo() {
  const what = store.state.classes?.redo;
  return what ? change("redo", {}, `Done again: ${what}.`) : queue;
}
