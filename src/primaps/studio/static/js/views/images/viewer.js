// One image large: image, masks and classes over, beside or behind each other, and the brush.

import { shareOf, shown } from "../../classes.js";
import { button, choices, el, ends, icon } from "../../dom.js";
import { fileName, percent } from "../../format.js";
import * as loader from "../../loader.js";
import { complain } from "../../notices.js";
import { maskPalette } from "../../palette.js";
import { store } from "../../store.js";
import { createClassStage } from "../class_stage.js";
import { lookPanel } from "../look.js";
import { createBrush } from "./brush.js";
import { createSwipe } from "./swipe.js";

const MODES = [
  ["classes", "Classes"], ["photo", "Photo"], ["masks", "Masks"], ["side", "Side by side"], ["swipe", "Swipe"],
];
const WORDS = {
  classes: "with its classes", photo: "without its classes", masks: "with its masks",
  side: "beside its classes", swipe: "with its classes right of the border",
};
const LAYERS = { classes: ["classes"], photo: [null], masks: ["masks"], side: [null, "classes"], swipe: [null, "classes"] };

let mode = "classes"; // kept from one image to the next

export function createViewer({ step, back }) {
  let image = -1;
  let proposals = null;
  let listed = ""; // what the list of classes shows
  const name = el("h2", { class: "cut", "aria-live": "polite" });
  const list = el("ul", { class: "present", "aria-label": "Classes in this image" });
  const brush = createBrush({ picture: () => picture, masks: () => proposals, image: () => image });
  const picture = createClassStage({
    label: WORDS[mode],
    tool: () => brush.tool(),
    arrive: (map) => brush.arrive(map),
    hover: (point, at) => brush.hover(point, at),
  });
  const { stage } = picture;
  const swipe = createSwipe((at) => stage.arrange(LAYERS.swipe, at));
  stage.node.append(swipe.node, brush.cursor);
  const look = lookPanel();
  const pick = choices("What is shown", MODES, mode, set);
  const node = el("div", { class: "viewer" },
    el("div", { class: "row viewer-bar" },
      button("All images", back, { kind: "plain", symbol: "back", key: "Esc" }),
      name, pick,
      el("div", { class: "row" },
        button("", () => step(-1), { kind: "icon", symbol: "back", key: "K", title: "Image before", "aria-label": "Image before" }),
        button("", () => step(1), { kind: "icon", symbol: "next", key: "J", title: "Next image", "aria-label": "Next image" }))),
    stage.node,
    el("aside", { class: "side panel stack", "aria-label": "Classes and brush" }, brush.node, list, look.node));

  function set(now) {
    mode = now;
    pick.mark(mode);
    picture.call(WORDS[mode]);
    swipe.node.hidden = mode !== "swipe";
    stage.arrange(LAYERS[mode], mode === "swipe" ? swipe.at : null);
    if (mode === "masks") fetchMasks();
  }

  /** Masks are for their own mode and for the brush, which keeps to their borders. */
  async function fetchMasks() {
    const asked = image;
    if (proposals) return;
    try {
      const found = await loader.proposals(loader.proposalsKey(asked, 0.4, true));
      if (asked !== image) return;
      proposals = found;
      stage.labels("masks", found);
      stage.palette("masks", maskPalette(found));
    } catch (error) {
      if (asked === image) complain(error);
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
  brush.changed = present;

  function fill(sized) {
    const focused = list.contains(document.activeElement) && document.activeElement.dataset.id;
    list.replaceChildren(...sized.map(({ one, share }) =>
      el("li", {},
        el("button", {
          type: "button", class: "line", data: { id: one.id }, title: one.name,
          on: {
            click: () => brush.choose(one),
            pointerenter: () => picture.point(one.id), pointerleave: () => picture.point(null),
            focus: () => picture.point(one.id), blur: () => picture.point(null),
          },
        },
          el("span", { class: "swatch", style: { background: one.color } }),
          el("span", { class: one.hidden ? "cut muted" : "cut" }, one.name),
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
      const full = store.state.images.names[next];
      name.replaceChildren(ends(fileName(full)));
      name.title = full;
      picture.open(next, near);
      present();
      if (mode === "masks" || brush.on) fetchMasks();
    },
    keys: [
      { keys: ["j", "ArrowRight"], shown: "J →", does: "next image", when: () => !brush.on, act: () => step(1) },
      { keys: ["k", "ArrowLeft"], shown: "K ←", does: "image before", when: () => !brush.on, act: () => step(-1) },
      { keys: ["v"], shown: "V", does: "what is shown: classes, photo, masks, …", act: () => set(MODES[(MODES.findIndex(([one]) => one === mode) + 1) % MODES.length][0]) },
      { keys: [], shown: "+ − 0", does: "zoom in, out, whole image", act() {} },
      { keys: ["o"], shown: "O", does: "outlines on or off", act: () => store.set({ outlines: !store.state.outlines }) },
      { keys: ["Escape"], shown: "Esc", does: "put the brush away, or back to all images", act: () => (brush.on ? brush.toggle() : back()) },
      ...brush.keys,
    ],
    end() {
      off();
      look.end();
      picture.end();
    },
  };
}
