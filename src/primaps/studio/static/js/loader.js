// Cached images, leaf maps, logits and mask proposals.

import { getLogits, getMap, getImage } from "./api.js";

/** Caches the last `size` promises; a failed one is removed and tried again. */
function cached(size, load) {
  const found = new Map();
  const fetch = (key) => {
    let promise = found.get(key);
    found.delete(key);
    promise ??= load(key);
    found.set(key, promise);
    promise.catch(() => found.get(key) === promise && found.delete(key));
    if (found.size > size) found.delete(found.keys().next().value);
    return promise;
  };
  fetch.forget = (key) => (key === undefined ? found.clear() : found.delete(key));
  return fetch;
}

// Removed bitmaps are not closed: the screen may still show one.
export const image = cached(9, getImage);
export const leaves = cached(24, (image) => getMap(`images/${image}/leaves`));
export const logits = cached(24, (image) => getLogits(`images/${image}/logits`));
export const proposals = cached(80, (key) => {
  const [image, threshold, crf] = key.split(" ");
  return getMap(`images/${image}/proposals?threshold=${threshold}&crf=${crf}`);
});

export const proposalsKey = (image, threshold, crf) => `${image} ${threshold.toFixed(2)} ${crf ? 1 : 0}`;

/** Clears all caches, for another collection or model. */
export function forget() {
  for (const one of [image, leaves, logits, proposals]) one.forget();
}

/** Loads images that the user is likely to open next. */
export function prefetch(images, withParts) {
  for (const number of images) {
    image(number).catch(() => {});
    if (withParts) leaves(number).catch(() => {});
  }
}
