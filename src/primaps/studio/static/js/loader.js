// Images, part maps and masks of images, kept while they are likely to be looked at again.

import { getLogits, getMap, getPhoto } from "./api.js";

/** Keeps the last `most` promises; a failed one is forgotten, so that it is tried again. */
function kept(most, load) {
  const found = new Map();
  const fetch = (key) => {
    let promise = found.get(key);
    found.delete(key);
    promise ??= load(key);
    found.set(key, promise);
    promise.catch(() => found.get(key) === promise && found.delete(key));
    if (found.size > most) found.delete(found.keys().next().value);
    return promise;
  };
  fetch.forget = (key) => (key === undefined ? found.clear() : found.delete(key));
  return fetch;
}

// Bitmaps are not closed when they leave: the one on the screen may be among them.
export const photo = kept(9, getPhoto);
export const parts = kept(24, (image) => getMap(`images/${image}/parts`));
export const logits = kept(24, (image) => getLogits(`images/${image}/logits`));
export const proposals = kept(80, (key) => {
  const [image, threshold, crf] = key.split(" ");
  return getMap(`images/${image}/proposals?threshold=${threshold}&crf=${crf}`);
});

export const proposalsKey = (image, threshold, crf) => `${image} ${threshold.toFixed(2)} ${crf ? 1 : 0}`;

/** Everything: numbers are those of another collection now, or the model is another one. */
export function forget() {
  for (const one of [photo, parts, logits, proposals]) one.forget();
}

/** Fetches what the next images need, so that they are there when they are asked for. */
export function prefetch(images, withParts) {
  for (const image of images) {
    photo(image).catch(() => {});
    if (withParts) parts(image).catch(() => {});
  }
}
