// The visible section of an image: pure functions on `{ zoom, x, y }`. Zoom 1 shows the whole image;
// (x, y) is the point in the center of the pane, as fractions of the image.

export const WHOLE = { zoom: 1, x: 0.5, y: 0.5 };
const MOST = 24;

/** Returns the rectangle of the image in a pane, in pixels of the canvas. */
export function place(camera, image, pane) {
  const scale = Math.min(pane.width / image.width, pane.height / image.height) * camera.zoom;
  const width = image.width * scale;
  const height = image.height * scale;
  return {
    left: pane.left + pane.width / 2 - camera.x * width,
    top: pane.top + pane.height / 2 - camera.y * height,
    width,
    height,
  };
}

/** Returns the point of the image, as fractions, under a point of the canvas. */
export function pointAt(camera, image, pane, at) {
  const rect = place(camera, image, pane);
  return { x: (at.x - rect.left) / rect.width, y: (at.y - rect.top) / rect.height };
}

export function pan(camera, image, pane, dx, dy) {
  const rect = place(camera, image, pane);
  return held({ ...camera, x: camera.x - dx / rect.width, y: camera.y - dy / rect.height }, image, pane);
}

/** Zooms by a factor around the point `at` of the canvas. */
export function zoomAt(camera, image, pane, at, factor) {
  const zoom = Math.min(MOST, Math.max(1, camera.zoom * factor));
  const point = pointAt(camera, image, pane, at);
  const then = pointAt({ ...camera, zoom }, image, pane, at);
  return held({ zoom, x: camera.x + point.x - then.x, y: camera.y + point.y - then.y }, image, pane);
}

/** Keeps a larger image over the whole pane, and centers a smaller one. */
function held(camera, image, pane) {
  const rect = place(camera, image, pane);
  const side = (value, pane, size) =>
    size <= pane ? 0.5 : Math.min(1 - pane / 2 / size, Math.max(pane / 2 / size, value));
  return {
    zoom: camera.zoom,
    x: side(camera.x, pane.width, rect.width),
    y: side(camera.y, pane.height, rect.height),
  };
}
