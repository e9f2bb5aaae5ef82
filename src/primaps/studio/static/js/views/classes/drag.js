// Dropping a class onto another merges them. Pointer events also work with touch.

import { el } from "../../dom.js";

const FAR = 8; // pixels of movement that turn a press into a drag

export function dragToMerge(gallery, { find, drop }) {
  gallery.addEventListener("pointerdown", (event) => {
    const handle = event.target.closest(".crops");
    const card = event.target.closest(".card");
    if (!handle || event.button > 0) return;
    // On a touch screen, dragging scrolls; a long press takes the card.
    const touch = event.pointerType === "touch";
    const begin = { x: event.clientX, y: event.clientY };
    let ghost = null;
    let target = null;
    let held = !touch;
    const hold = touch ? setTimeout(() => ((held = true), lift(begin.x, begin.y)), 350) : null;

    function lift(x, y) {
      const one = find(card.dataset.id);
      ghost = el("div", { class: "ghost" }, el("span", { class: "swatch", style: { background: one.color } }), el("bdi", {}, one.name));
      document.body.append(ghost);
      card.classList.add("joining");
      follow(x, y);
    }
    function follow(x, y) {
      ghost.style.transform = `translate(${x + 12}px, ${y + 12}px)`;
      const over = document.elementFromPoint(x, y)?.closest(".card");
      if (over === target) return;
      target?.classList.remove("target");
      target = over && over !== card ? over : null;
      target?.classList.add("target");
    }
    function move(now) {
      const far = Math.hypot(now.clientX - begin.x, now.clientY - begin.y) > FAR;
      if (!held && far) return end(now);
      if (!ghost && far) lift(now.clientX, now.clientY);
      if (ghost) follow(now.clientX, now.clientY);
    }
    const still = (touching) => ghost && touching.preventDefault();
    function end(now) {
      clearTimeout(hold);
      removeEventListener("pointermove", move);
      removeEventListener("pointerup", end);
      removeEventListener("pointercancel", end);
      removeEventListener("keydown", escape);
      gallery.removeEventListener("touchmove", still);
      ghost?.remove();
      target?.classList.remove("target");
      card.classList.remove("joining");
      if (target && now.type === "pointerup") drop(find(card.dataset.id), find(target.dataset.id));
    }
    function escape(key) {
      if (key.key === "Escape") end(key);
    }
    addEventListener("pointermove", move);
    addEventListener("pointerup", end);
    addEventListener("pointercancel", end);
    addEventListener("keydown", escape);
    gallery.addEventListener("touchmove", still, { passive: false });
  });
}
