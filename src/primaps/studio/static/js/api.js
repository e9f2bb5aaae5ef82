// The server's address space (docs/studio.md): one function per kind of answer.

import { store } from "./store.js";

export class ApiError extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

const ask = (path, options) => fetched(`/api/${path}`, options);

async function fetched(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The studio's program does not answer: start it again in the terminal. Nothing is lost.");
  }
  if (answer.ok) return answer;
  const found = await answer.json().catch(() => ({}));
  throw new ApiError(answer.status, found.error || `The studio answered with an error (${answer.status}).`);
}

export async function get(path, options) {
  return (await ask(path, options)).json();
}

export async function post(path, body = {}) {
  const headers = { "Content-Type": "application/json" };
  return (await ask(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

/** A map of small numbers: `{ width, height, values }`. */
export async function getMap(path, options) {
  const answer = await ask(path, options);
  const wide = answer.headers.get("X-Values") === "u16";
  const data = await answer.arrayBuffer();
  const [width, height] = new Uint16Array(data, 0, 2);
  const values = wide ? new Uint16Array(data, 4) : new Uint8Array(data, 4);
  return { width, height, values };
}

/** Class logits on the feature grid: `{ classes, height, width, values }`. */
export async function getLogits(path) {
  const data = await (await ask(path)).arrayBuffer();
  const [classes, height, width] = new Uint16Array(data, 0, 3);
  return { classes, height, width, values: halves(new Uint16Array(data, 6)) };
}

export async function getPhoto(image) {
  return createImageBitmap(await (await fetched(url.photo(image))).blob());
}

/** float16 to float32: browsers without Float16Array are still common. */
export function halves(words) {
  const found = new Float32Array(words.length);
  for (let i = 0; i < words.length; i += 1) {
    const sign = words[i] >> 15 ? -1 : 1;
    const exponent = (words[i] >> 10) & 31;
    const fraction = words[i] & 1023;
    if (exponent === 0) found[i] = sign * fraction * 2 ** -24;
    else if (exponent === 31) found[i] = fraction ? NaN : sign * Infinity;
    else found[i] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }
  return found;
}

// Browsers keep pictures for a day: numbers of another folder are other addresses.
const of = () => `of=${encodeURIComponent(store.state.server.collection)}`;

export const url = {
  photo: (image) => `/api/images/${image}/photo.jpg?${of()}`,
  thumb: (image) => `/api/images/${image}/thumb.jpg?${of()}`,
  crop: (image, box) => `/api/crops/${image}.jpg?box=${box.map((side) => side.toFixed(4)).join(",")}&${of()}`,
};
