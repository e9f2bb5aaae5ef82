// The displayed classes, and all edits. An edit is displayed at once. If the server rejects it, the
// saved classes are loaded again, and a notice says which edit was lost.

import { get, post } from "./api.js";
import { count as number, isolated } from "./format.js";
import * as loader from "./loader.js";
import { notifyChoice, notifyError, notifyLost, notify } from "./notices.js";
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

// Changes are sent one after the other, each with the revision after the one before. Until the server
// confirms a change, it stays in `unsent`: after a lost connection it is sent again, under the same id, which
// the server makes once. A tab that is reloaded finds it in the session storage.
const unsent = [];
let sending = false;
let answers = 0; // number of confirmed changes
const stored = () => `unsent ${store.state.server?.collection}`;

function keep() {
  const kept = unsent.map(({ id, path, body, done, revision }) => ({ id, path, body, done, revision }));
  try {
    if (kept.length) sessionStorage.setItem(stored(), JSON.stringify(kept));
    else sessionStorage.removeItem(stored());
  } catch {
    // The storage is full or disabled: the changes stay in this page.
  }
  store.set({ saving: unsent.length, unsaved: unsent.map(({ done }) => done.replace(/[.]$/, "")) });
}

/**
 * Sends a change.
 *
 * @param done sentence of the notice when the change is saved
 * @param ahead computes the classes to show before the server answers
 * @param what sentence about a change that is not saved
 */
export function change(path, body, done = "", ahead = null, what = done) {
  if (ahead) store.set({ classes: ahead(store.state.classes) });
  // The first change is based on the displayed revision; the others on that after the one before.
  const revision = unsent.length ? null : (store.state.classes?.revision ?? null);
  return new Promise((resolve) => {
    unsent.push({ id: newId(), path, body, done: what, notice: done, revision, ahead, resolve });
    keep();
    flush();
  });
}

const newId = () => [...crypto.getRandomValues(new Uint32Array(4))].map((word) => word.toString(36)).join("");

/** Sends the changes that the server has not confirmed, unless the connection is lost. */
async function flush() {
  const open = () => !store.state.disconnected && (store.state.server?.stage ?? "fitted") === "fitted";
  if (sending) return;
  sending = true;
  while (unsent.length && open()) await send(unsent[0]);
  sending = false;
}
store.on("disconnected server", flush);

async function send(entry) {
  const { path, body, notice, id } = entry;
  try {
    const revision = entry.revision ?? store.state.classes?.revision;
    const answer = await post(path, { revision, ...body, change: id });
    answers += 1;
    unsent.shift();
    if (unsent.length) unsent[0].revision = answer.revision;
    // If a later change is already displayed, its answer has all classes.
    store.set({ classes: unsent.length ? { ...store.state.classes, revision: answer.revision } : answer });
    keep();
    if (notice) notify(notice);
    if (answer.image !== undefined) repainted(answer.image);
    entry.resolve(answer);
  } catch (error) {
    // Without an answer, or with a new token, the change waits for the connection.
    if (error.status === 0 || error.status === 403) return store.set({ disconnected: error.message });
    unsent.shift();
    store.set({ cut: null });
    notifyLost(entry.done, error);
    await reload();
    if (unsent.length) unsent[0].revision = store.state.classes?.revision ?? null;
    keep();
    entry.resolve(null);
  }
}

/** Sends the changes that this tab had not sent before it was reloaded. */
export function restoreUnsent() {
  let kept = [];
  try {
    kept = JSON.parse(sessionStorage.getItem(stored()) ?? "[]");
  } catch {
    return;
  }
  const known = new Set(unsent.map(({ id }) => id));
  unsent.push(...kept.filter(({ id }) => !known.has(id)).map((one) => ({ ...one, notice: `Saved after a lost connection: ${one.done}`, resolve() {} })));
  keep();
  flush();
}

// The browser asks before it closes a page with changes that are not saved.
addEventListener("beforeunload", (event) => unsent.length && store.state.disconnected && event.preventDefault());

/** Drops the leaf map of an image whose corrections changed. */
function repainted(image) {
  loader.leaves.forget(image);
  store.set({ painted: { image } });
}

export async function reload() {
  const collection = store.state.server?.collection;
  const before = answers;
  try {
    const classes = await get("classes");
    if (answers !== before) return; // the answer of a later change is newer
    // Changes that are not sent yet stay displayed.
    const now = unsent.reduce((shown, { ahead }) => (ahead ? ahead(shown) : shown), classes);
    if (collection === store.state.server?.collection) store.set({ classes: now });
  } catch (error) {
    if (error.status !== 409 && error.status !== 404) notifyError(error);
  }
}

const replaced = (id, patch) => (found) => ({
  ...found,
  classes: found.classes.map((one) => (one.id === id ? { ...one, ...patch } : one)),
});

/** Renames a class; null if another class has the name, which a notice offers to merge with. */
export function rename(one, name) {
  const to = name.trim();
  if (!to || to === one.name) return Promise.resolve(null);
  const other = shown().find((found) => found.named && found.name === to && found.id !== one.id);
  if (other) {
    notifyChoice(`${isolated(to)} already exists.`, "Merge", () => merge(one, other));
    return null;
  }
  return change("classes", { edits: [{ rename: one.id, to }] }, `Renamed ${isolated(one.name)} to ${isolated(to)}.`, replaced(one.id, { name: to, named: true }));
}

export function recolor(one, to) {
  return change("classes", { edits: [{ color: one.id, to }] }, "", replaced(one.id, { color: to }), `Changed the color of ${isolated(one.name)}.`);
}

/** Previews a color while the color picker is open. */
export function tint(one, to) {
  store.set({ classes: replaced(one.id, { color: to })(store.state.classes) });
}

export function setHidden(one, hidden) {
  const edit = hidden ? { hide: one.id } : { show: one.id };
  return change("classes", { edits: [edit] }, `${hidden ? "Hid" : "Showed"} ${isolated(one.name)}.`, replaced(one.id, { hidden }));
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
  return change("classes", { edits }, `Merged ${isolated(one.name)} into ${isolated(into.name)}.`, join);
}

export function split(one) {
  return change("classes", { edits: [{ split: one.id }] }, `Split ${isolated(one.name)}.`);
}

export function commitCut(count) {
  if (!store.state.classes || count === store.state.classes.classes.length) {
    store.set({ cut: null });
    return Promise.resolve(null);
  }
  return change("classes/cut", { classes: count }, `${number(count, "class", "classes")}.`).then((answer) => {
    // The user may have chosen another number meanwhile, which is saved later.
    if (store.state.cut === count) store.set({ cut: null });
    return answer;
  });
}

/** Assigns pixels of an image, given as runs `[start, length]` in row-major order of its map, to a class. */
export function correct(image, { key, digest }, one, runs) {
  return change(`images/${image}/correction`, { class: one.id, key, digest, runs }, `Corrected to ${isolated(one.name)}.`);
}

export function undo() {
  const what = store.state.classes?.undo;
  return what ? change("undo", {}, `Undone: ${what}.`) : Promise.resolve(null);
}

export function redo() {
  const what = store.state.classes?.redo;
  return what ? change("redo", {}, `Redone: ${what}.`) : Promise.resolve(null);
}
