// One large image: its classes, masks or both sides by side, and the brush.

import { shareOf, shown } from "../../classes.js";
import { button, choices, el, fileLabel, icon } from "../../dom.js";
import { fileName, percent } from "../../format.js";
import * as loader from "../../loader.js";
import { notifyError } from "../../notices.js";
import { maskPalette } from "../../palette.js";
import { store } from "../../store.js";
import { createClassStage } from "../class_stage.js";
import { overlayPanel } from "../overlay.js";
import { createBrush } from "./brush.js";
import { createSwipe } from "./swipe.js";

const MODES = [
  ["classes", "Classes"], ["image", "Image"], ["masks", "Masks"], ["side", "Side by side"], ["swipe", "Swipe"],
];
const WORDS = {
  classes: "with its classes", image: "without its classes", masks: "with its masks",
  side: "beside its classes", swipe: "with its classes to the right of the divider",
};
const LAYERS = { classes: ["classes"], image: [null], masks: ["masks"], side: [null, "classes"], swipe: [null, "classes"] };

let mode = "classes"; // shared by all images

export function createViewer({ step, back }) {
  let image = -1;
  let proposals = null;
  let listed = ""; // key of the displayed list of classes
  const name = el("h2", { class: "ellipsis", "aria-live": "polite" });
  const list = el("ul", { class: "present", "aria-label": "Classes in this image" });
  const brush = createBrush({ view: () => view, masks: () => proposals, image: () => image });
  const view = createClassStage({
    label: WORDS[mode],
    tool: () => brush.tool(),
    arrive: (map) => brush.arrive(map),
    hover: (point, at) => brush.hover(point, at),
    moved: () => brush.place(),
  });
  const { stage } = view;
  const swipe = createSwipe((at) => stage.arrange(LAYERS.swipe, at));
  stage.node.append(swipe.node, brush.cursor);
  const overlay = overlayPanel();
  const pick = choices("Mode", MODES, mode, set);
  const node = el("div", { class: "viewer" },
    el("div", { class: "row viewer-bar" },
      button("All images", back, { kind: "plain", symbol: "back", key: "Esc" }),
      name, pick,
      el("div", { class: "row" },
        button("", () => step(-1), { kind: "icon", symbol: "back", key: "K", title: "Previous image", "aria-label": "Previous image" }),
        button("", () => step(1), { kind: "icon", symbol: "next", key: "J", title: "Next image", "aria-label": "Next image" }))),
    stage.node,
    el("aside", { class: "side panel stack", "aria-label": "Classes and brush" }, brush.node, list, overlay.node));

  const showsClasses = () => LAYERS[mode].includes("classes");

  function set(now) {
    mode = now;
    if (brush.on && !showsClasses()) brush.toggle(); // it would paint what is not visible
    pick.mark(mode);
    view.call(WORDS[mode]);
    swipe.node.hidden = mode !== "swipe";
    stage.arrange(LAYERS[mode], mode === "swipe" ? swipe.at : null);
    if (mode === "masks") fetchMasks();
  }

  /** Loads the masks for the masks mode and for the brush. */
  async function fetchMasks() {
    const requested = image;
    if (proposals) return;
    try {
      const found = await loader.proposals(loader.proposalsKey(requested, 0.4, true));
      if (requested !== image) return;
      proposals = found;
      stage.labels("masks", found);
      stage.palette("masks", maskPalette(found));
    } catch (error) {
      if (requested === image) notifyError(error);
    }
  }
  brush.wants = fetchMasks;

  function present() {
    const shares = store.state.images.shares[image];
    const sized = shown().map((one) => ({ one, share: shares ? shareOf(one, shares) : 0 }));
    const chosen = brush.chosen()?.id;
    sized.sort((a, b) => b.share - a.share);
    const key = sized.map(({ one, share }) => [one.id, one.name, one.color, one.hidden, percent(share)]).join("\n");
    if (key !== listed) fill(sized);
    listed = key;
    for (const line of list.querySelectorAll("button")) {
      if (brush.on) line.setAttribute("aria-pressed", line.dataset.id === chosen);
      else line.removeAttribute("aria-pressed");
    }
  }
  brush.changed = () => {
    if (brush.on && !showsClasses()) set("classes");
    present();
  };

  function fill(sized) {
    const focused = list.contains(document.activeElement) && document.activeElement.dataset.id;
    list.replaceChildren(...sized.map(({ one, share }) =>
      el("li", {},
        el("button", {
          type: "button", class: "line", data: { id: one.id }, title: one.name,
          on: {
            click: () => brush.choose(one),
            pointerenter: () => view.point(one.id), pointerleave: () => view.point(null),
            focus: () => view.point(one.id), blur: () => view.point(null),
          },
        },
          el("span", { class: "swatch", style: { background: one.color } }),
          el("span", { class: one.hidden ? "ellipsis muted" : "ellipsis", dir: "auto" }, one.name),
          one.hidden ? icon("hidden") : null,
          el("span", { class: "muted", "aria-hidden": !share }, share ? percent(share) : "–")))));
    if (focused) [...list.querySelectorAll("button")].find((one) => one.dataset.id === focused)?.focus();
  }

  const off = store.on("classes images", present);
  set(mode);

  return {
    node, stage,
    open(next, near) {
      image = next;
      proposals = null;
      brush.leave();
      const full = store.state.images.names[next];
      name.replaceChildren(fileLabel(fileName(full)));
      name.title = full;
      view.open(next, near);
      present();
      if (mode === "masks" || brush.on) fetchMasks();
    },
    keys: [
      { keys: ["j", "ArrowRight"], shown: "J →", does: "next image", when: () => !brush.on, act: () => step(1) },
      { keys: ["k", "ArrowLeft"], shown: "K ←", does: "previous image", when: () => !brush.on, act: () => step(-1) },
      { keys: ["v"], shown: "V", does: "next mode: classes, image, masks, …", act: () => set(MODES[(MODES.findIndex(([one]) => one === mode) + 1) % MODES.length][0]) },
      { keys: [], shown: "+ − 0", does: "zoom in, out, whole image", act() {} },
      { keys: ["o"], shown: "O", does: "outlines on or off", act: () => store.set({ outlines: !store.state.outlines }) },
      { keys: ["Escape"], shown: "Esc", does: "close the brush, or back to all images", act: () => (brush.on ? brush.toggle() : back()) },
      ...brush.keys,
    ],
    end() {
      off();
      overlay.end();
      view.end();
    },
  };
}
