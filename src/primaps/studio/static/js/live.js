// What the server tells by itself: states, pictures of progress, edits of other tabs.

import { get } from "./api.js";
import { reload } from "./classes.js";
import * as loader from "./loader.js";
import { complain, tell } from "./notices.js";
import { store } from "./store.js";

const pictures = new Set();
const exports = new Set();

/** Called with each `{image, kind}` that can be fetched; returns the function that ends it. */
export function onPicture(listener) {
  pictures.add(listener);
  return () => pictures.delete(listener);
}

/** Called with each state of an export. */
export function onExport(listener) {
  exports.add(listener);
  return () => exports.delete(listener);
}

export function listen() {
  const events = new EventSource("/api/events");
  const on = (name, act) => events.addEventListener(name, (event) => act(JSON.parse(event.data)));
  on("state", arrive);
  on("image", (picture) => pictures.forEach((listener) => listener(picture)));
  on("export", (job) => exports.forEach((listener) => listener(job)));
  on("classes", ({ revision }) => {
    // Our own change comes back too; only one of another tab has to be fetched.
    setTimeout(() => {
      if (!store.state.saving && store.state.classes?.revision !== revision) followEdit();
    }, 150);
  });
  events.addEventListener("open", () => store.set({ lost: "" }));
  events.addEventListener("error", () => {
    setTimeout(() => {
      if (events.readyState !== EventSource.OPEN) store.set({ lost: "The studio's program does not answer." });
    }, 1500);
  });
}

async function followEdit() {
  loader.parts.forget();
  await reload();
  store.set({ painted: { image: store.state.image } }); // it may be a correction
}

/** A new state; images and classes are fetched when the stage says that there are new ones. */
export async function arrive(server) {
  const before = store.state.server;
  const other = before?.collection !== server.collection;
  const moved = other || before?.stage !== server.stage;
  const fitted = server.stage === "fitted";
  if (other || (moved && fitted)) loader.forget();
  store.set(other ? { server, images: null, classes: null, audit: null, cut: null, image: 0 } : { server });
  if (moved && server.stage !== "empty") {
    await Promise.all([loadImages(), fitted ? reload() : null]);
  }
  if (fitted && !other && before?.stage === "fitting") tell("The classes are there.");
  if (fitted && (moved || looking() || (before?.progress && !server.progress))) again();
}

store.on("painted", () => loadImages());

export async function loadImages() {
  const { collection } = store.state.server;
  try {
    const images = await get("images");
    if (collection === store.state.server.collection) store.set({ images });
  } catch (error) {
    complain(error);
  }
}

/** How many images were looked at, and how many will be: those that cannot be read are neither. */
export function looks({ doubt, lost }) {
  const done = doubt.filter((one) => one !== null).length;
  return { done, left: Math.max(0, doubt.length - done - lost.length) };
}

// Doubt and shares fill up while the server looks at the images.
const looking = () => store.state.server.progress && store.state.images && looks(store.state.images).left > 0;
let waiting = null;
function again() {
  waiting ??= setTimeout(async () => {
    waiting = null;
    await loadImages();
    if (looking()) again();
  }, store.state.images?.names.length > 200 ? 5000 : 2000); // an answer of a thousand images has some 500 kB
}
