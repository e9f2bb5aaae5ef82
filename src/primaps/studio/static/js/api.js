// Requests to the server (docs/studio.md): one function per type of answer.

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
    throw new ApiError(0, "The server does not respond. Start it again in the terminal with the same command.");
  }
  if (answer.ok) return answer;
  const found = await answer.json().catch(() => ({}));
  throw new ApiError(answer.status, found.error || `The server returned an error (${answer.status}).`);
}

export async function get(path, options) {
  return (await ask(path, options)).json();
}

export async function post(path, body = {}) {
  const headers = { "Content-Type": "application/json" };
  return (await ask(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

/** Loads a label map: `{ width, height, values }`; one that can be corrected has the `key` and `digest` of its image. */
export async function getMap(path, options) {
  const answer = await ask(path, options);
  const wide = answer.headers.get("X-Values") === "u16";
  const data = await answer.arrayBuffer();
  const [width, height] = new Uint16Array(data, 0, 2);
  const values = wide ? new Uint16Array(data, 4) : new Uint8Array(data, 4);
  return { width, height, values, key: decodeURIComponent(answer.headers.get("X-Key") ?? ""), digest: answer.headers.get("X-Digest") };
}

/** Loads class logits on the feature grid: `{ classes, height, width, values }`. */
export async function getLogits(path) {
  const data = await (await ask(path)).arrayBuffer();
  const [classes, height, width] = new Uint16Array(data, 0, 3);
  return { classes, height, width, values: halves(new Uint16Array(data, 6)) };
}

export async function getImage(image) {
  return createImageBitmap(await (await fetched(url.image(image))).blob());
}

/** Converts float16 to float32; many browsers lack Float16Array. */
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

// Browsers cache images for a day: the address of an image includes its collection.
const of = () => `of=${encodeURIComponent(store.state.server.collection)}`;

export const url = {
  image: (image) => `/api/images/${image}/image.jpg?${of()}`,
  thumbnail: (image) => `/api/images/${image}/thumbnail.jpg?${of()}`,
  crop: (image, box) => `/api/crops/${image}.jpg?box=${box.map((side) => side.toFixed(4)).join(",")}&${of()}`,
};
