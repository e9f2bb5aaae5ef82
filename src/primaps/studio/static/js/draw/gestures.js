// Mouse, touch and pen on a stage: wheel and pinch zoom, dragging pans or paints, moving hovers.

export function follow(canvas, { ratio, zoom, move, point, tool, hover, press }) {
  const fingers = new Map();
  let painting = null;
  let moved = 0;

  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) * ratio(), y: (event.clientY - box.top) * ratio() };
  };
  const spread = () => {
    const [one, other] = [...fingers.values()];
    return { apart: Math.hypot(one.x - other.x, one.y - other.y), x: (one.x + other.x) / 2, y: (one.y + other.y) / 2 };
  };
  const finish = () => {
    painting?.end();
    painting = null;
  };

  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), at(event));
  }, { passive: false });

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button > 0) return;
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, at(event));
    moved = 0;
    if (fingers.size === 2) finish();
    else if (tool()) {
      painting = tool();
      painting.start(point(at(event)));
    }
  });

  canvas.addEventListener("pointermove", (event) => {
    const now = at(event);
    if (!fingers.has(event.pointerId)) {
      hover(point(now), now);
      return;
    }
    if (fingers.size === 2) {
      const before = spread();
      fingers.set(event.pointerId, now);
      const after = spread();
      zoom(after.apart / Math.max(1, before.apart), after);
      move(after.x - before.x, after.y - before.y);
      return;
    }
    const before = fingers.get(event.pointerId);
    fingers.set(event.pointerId, now);
    moved += Math.hypot(now.x - before.x, now.y - before.y);
    if (painting) {
      hover(point(now), now);
      painting.move(point(now));
    } else move(now.x - before.x, now.y - before.y);
  });

  const lift = (event) => {
    if (!fingers.delete(event.pointerId)) return;
    if (painting) finish();
    else if (event.type === "pointerup" && moved < 6 * ratio() && fingers.size === 0) press(point(at(event)));
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => hover(null));
}
