// Images: the list of all images in a chosen order, and one large image to inspect and correct.

import { shareOf, shown } from "../classes.js";
import { url } from "../api.js";
import { el, fileLabel, icon, setText, thumbnail } from "../dom.js";
import { count, fileName, percent } from "../format.js";
import { viewKeys } from "../keyboard.js";
import { analyzed } from "../live.js";
import { store } from "../store.js";
import { createGrid } from "../virtual.js";
import { createViewer } from "./images/viewer.js";

// The last choices, until the page is closed.
let order = "uncertainty";
let large = false;
let begun = false; // the first time, the list selects the first image in its order

/** Sorts the image numbers by uncertainty, name, corrections, or the share of a class given by its id. */
export function sorted(images, classes, order) {
  const all = images.names.map((_, image) => image);
  const by = (value) => all.sort((one, other) => value(other) - value(one) || one - other);
  if (order === "name") return all;
  if (order === "uncertainty") return by((image) => images.uncertainty[image] ?? -1);
  if (order === "corrected") {
    const corrected = new Set(images.corrected);
    return by((image) => Number(corrected.has(image)));
  }
  const one = classes.find(({ id }) => id === order);
  return by((image) => (one && images.shares[image] ? shareOf(one, images.shares[image]) : -1));
}

/** Draws the shares of the classes in an image as a band of colors. */
function paintBand(canvas, image) {
  const shares = store.state.images.shares[image];
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, 1);
  if (!shares) return;
  let x = 0;
  for (const one of shown()) {
    if (one.hidden) continue;
    const width = shareOf(one, shares) * canvas.width;
    context.fillStyle = one.color;
    context.fillRect(x, 0, width + 0.5, 1);
    x += width;
  }
}

function mount(root) {
  root.classList.add("filled");
  const page = el("div", { class: "images" });
  const counts = el("p", { class: "muted" });
  const select = el("select", { class: "select", id: "order", on: { change: () => arrange(select.value) } });
  const bar = el("div", { class: "row images-bar" },
    el("label", { class: "label", for: "order" }, "Order"), select, counts);

  const grid = createGrid({
    label: "Images", width: 208, height: 186,
    choose: (image) => store.set({ image }),
    open: () => show(true),
    key(image) {
      const { uncertainty, corrected } = store.state.images;
      return `${uncertainty[image]} ${corrected.includes(image)}`;
    },
    cell(image) {
      const { names, uncertainty, corrected } = store.state.images;
      const band = el("canvas", { width: 100, height: 1, class: "shares", "aria-hidden": "true" });
      paintBand(band, image);
      const uncertain = uncertainty[image] === null ? "" : `${percent(uncertainty[image])} uncertain`;
      return el("figure", { title: names[image], on: { click: () => setTimeout(() => show(true)) } },
        thumbnail(url.thumbnail(image), "", { draggable: "false" }),
        band,
        el("figcaption", { class: "row apart small" },
          fileLabel(fileName(names[image])),
          corrected.includes(image)
            ? el("span", { class: "badge", title: "Corrected with the brush" }, icon("brush"), el("span", { class: "visually-hidden" }, "corrected"))
            : el("span", { class: "muted uncertainty" }, uncertain)));
    },
  });
  grid.node.classList.add("wide");
  let touched = false;
  grid.node.addEventListener("keydown", () => (touched = true));
  let ordered = [];
  let viewer = null;

  function arrange(now) {
    touched = false;
    order = now;
    ordered = sorted(store.state.images, shown(), order);
    grid.show(ordered, store.state.image);
  }

  function options() {
    const { state } = store;
    const classes = shown(state).filter((one) => !one.hidden);
    const key = classes.map((one) => one.id + one.name).join();
    if (select.dataset.key === key) return;
    select.dataset.key = key;
    select.replaceChildren(
      el("option", { value: "uncertainty" }, "most uncertain first"),
      el("option", { value: "name" }, "by name"),
      el("option", { value: "corrected" }, "corrected first"),
      el("optgroup", { label: "largest share of" }, classes.map((one) => el("option", { value: one.id, dir: "auto" }, one.name))));
    if (![...select.options].some((option) => option.value === order)) order = "uncertainty";
    select.value = order;
  }

  function refresh(state, changed = []) {
    const { images } = store.state;
    options();
    const { done, left } = analyzed(images);
    const unreadable = images.unreadable.length;
    setText(counts, [
      count(images.names.length, "image"),
      left ? `${done} analyzed so far` : null,
      images.corrected.length ? `${images.corrected.length} corrected` : null,
      unreadable ? `${unreadable} cannot be read` : null,
    ].filter(Boolean).join(", "));
    if (changed.includes("images")) {
      // A list that the user works with keeps its order until they choose one again.
      const still = grid.node.scrollTop === 0 && !grid.node.matches(":hover") && !touched;
      if (!ordered.length || ordered.length !== images.names.length || (still && left)) arrange(order);
      grid.refresh();
    }
    grid.each((node, image) => paintBand(node.querySelector("canvas"), image));
  }

  function step(by) {
    const place = ordered.indexOf(store.state.image);
    store.set({ image: ordered[Math.max(0, Math.min(ordered.length - 1, place + by))] });
    enlarge();
  }

  function enlarge() {
    const place = ordered.indexOf(store.state.image);
    viewer.open(store.state.image, [ordered[place + 1], ordered[place - 1]]);
  }

  function show(now) {
    large = now;
    viewer?.end();
    viewer = null;
    page.replaceChildren();
    if (!now) {
      page.append(bar, grid.node);
      arrange(order);
      grid.node.focus({ preventScroll: true });
      viewKeys([
        { keys: [], shown: "← ↑ → ↓", does: "move between images", act() {} },
        { keys: [], shown: "Enter", does: "enlarge the image", act() {} },
      ]);
      return;
    }
    if (!ordered.includes(store.state.image)) store.set({ image: ordered[0] });
    viewer = createViewer({ step, back: () => show(false) });
    page.append(viewer.node);
    viewKeys(viewer.keys);
    enlarge();
    viewer.stage.canvas.focus({ preventScroll: true });
  }

  root.append(page);
  options();
  ordered = sorted(store.state.images, shown(), order);
  if (!begun) store.set({ image: ordered[0] });
  begun = true;
  refresh();
  show(large);
  const off = store.on("images classes", refresh);
  return () => {
    off();
    viewer?.end();
    grid.end();
  };
}

export const images = {
  title: "Images",
  open: ({ server, images: found, classes }) => server?.stage === "fitted" && Boolean(found?.names.length && classes),
  guide: ({ images: found }) => ({
    text: found?.corrected.length
      ? `${count(found.corrected.length, "image is", "images are")} corrected. When the most uncertain images are correct, measure the accuracy on all images.`
      : "Open the most uncertain images first. Correct regions with a wrong class with the brush.",
    to: "audit",
    label: "Audit",
  }),
  mount,
};

