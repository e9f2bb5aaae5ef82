// Events of the server: states, previews during a fit, edits in other tabs, exports.

import { get } from "./api.js";
import { reload } from "./classes.js";
import * as loader from "./loader.js";
import { notifyError, notify } from "./notices.js";
import { store } from "./store.js";

const previews = new Set();
const exports = new Set();

/** Calls a listener with each `{image}` that has a preview; returns the function that unsubscribes. */
export function onPreview(listener) {
  previews.add(listener);
  return () => previews.delete(listener);
}

/** Calls a listener with the progress of an export; returns the function that unsubscribes. */
export function onExport(listener) {
  exports.add(listener);
  return () => exports.delete(listener);
}

const RETRY = 2000; // ms between two attempts to connect
let events = null;

export function listen() {
  events?.close();
  events = new EventSource("/api/events");
  const on = (name, act) => events.addEventListener(name, (event) => act(JSON.parse(event.data)));
  on("state", arrive);
  on("image", (preview) => previews.forEach((listener) => listener(preview)));
  on("export", (job) => exports.forEach((listener) => listener(job)));
  on("classes", ({ revision }) => {
    // The event also announces changes of this tab; only changes of others have to be loaded.
    setTimeout(() => {
      if (!store.state.saving && store.state.classes?.revision !== revision) followEdit();
    }, 150);
  });
  const mine = events;
  mine.addEventListener("error", () => {
    setTimeout(() => mine === events && mine.readyState !== EventSource.OPEN && connect(), 1500);
  });
}

/** Asks for the state until the server answers, and listens again. */
async function connect() {
  if (connecting) return;
  connecting = true;
  for (;;) {
    try {
      const server = await get("state");
      await arrive(server);
      break;
    } catch (error) {
      store.set({ disconnected: error.status === 403 ? MOVED : error.message });
      await new Promise((resolve) => setTimeout(resolve, RETRY));
    }
  }
  connecting = false;
  if (events.readyState !== EventSource.OPEN) listen();
  store.set({ disconnected: "" });
}
let connecting = false;
const MOVED = "The server was started with a new address. Open the address that the terminal printed.";
store.on("disconnected", ({ disconnected }) => disconnected && connect());

async function followEdit() {
  loader.leaves.forget();
  await reload();
  store.set({ painted: { image: store.state.image } }); // the edit may be a correction
}

/** Handles a new state; loads images and classes when the stage or the collection changes. */
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
  if (fitted && !other && before?.stage === "fitting") notify("The classes are ready.");
  if (fitted && (moved || analyzing() || (before?.progress && !server.progress))) again();
}

store.on("painted", () => loadImages());

export async function loadImages() {
  const { collection } = store.state.server;
  try {
    const images = await get("images");
    if (collection === store.state.server.collection) store.set({ images });
  } catch (error) {
    notifyError(error);
  }
}

/** Counts the analyzed images, and those still to analyze; unreadable ones are neither. */
export function analyzed({ uncertainty, unreadable }) {
  const done = uncertainty.filter((one) => one !== null).length;
  return { done, left: Math.max(0, uncertainty.length - done - unreadable.length) };
}

// Uncertainty and shares arrive while the server analyzes the images.
const analyzing = () => store.state.server.progress && store.state.images && analyzed(store.state.images).left > 0;
let waiting = null;
function again() {
  waiting ??= setTimeout(async () => {
    waiting = null;
    await loadImages();
    if (analyzing()) again();
  }, store.state.images?.names.length > 200 ? 5000 : 2000); // the answer for a thousand images has about 500 kB
}
