// Images: all of them in an order that helps, and one of them large, to look at and to correct.

import { shareOf, shown } from "../classes.js";
import { url } from "../api.js";
import { el, ends, icon, setText, thumbnail } from "../dom.js";
import { count, fileName, percent } from "../format.js";
import { viewKeys } from "../keyboard.js";
import { looks } from "../live.js";
import { store } from "../store.js";
import { createGrid } from "../virtual.js";
import { createViewer } from "./images/viewer.js";

// What was chosen last, for as long as the page is open.
let order = "doubt";
let large = false;
let begun = false; // the first time, the list begins with what is most worth a look

/** Numbers of the images in an order: doubt, name, corrected, or a class by its id. */
export function sorted(images, classes, order) {
  const all = images.names.map((_, image) => image);
  const by = (value) => all.sort((one, other) => value(other) - value(one) || one - other);
  if (order === "name") return all;
  if (order === "doubt") return by((image) => images.doubt[image] ?? -1);
  if (order === "corrected") {
    const corrected = new Set(images.corrected);
    return by((image) => Number(corrected.has(image)));
  }
  const one = classes.find(({ id }) => id === order);
  return by((image) => (one && images.shares[image] ? shareOf(one, images.shares[image]) : -1));
}

/** The shares of the classes in an image as a band of colors. */
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
  const figures = el("p", { class: "muted" });
  const select = el("select", { class: "select", id: "order", on: { change: () => arrange(select.value) } });
  const bar = el("div", { class: "row images-bar" },
    el("label", { class: "label", for: "order" }, "Order"), select, figures);

  const grid = createGrid({
    label: "Images", width: 208, height: 186,
    choose: (image) => store.set({ image }),
    open: () => show(true),
    key(image) {
      const { doubt, corrected } = store.state.images;
      return `${doubt[image]} ${corrected.includes(image)}`;
    },
    cell(image) {
      const { names, doubt, corrected } = store.state.images;
      const band = el("canvas", { width: 100, height: 1, class: "shares", "aria-hidden": "true" });
      paintBand(band, image);
      const doubtful = doubt[image] === null ? "" : `${percent(doubt[image])} doubt`;
      return el("figure", { title: names[image], on: { click: () => setTimeout(() => show(true)) } },
        thumbnail(url.thumb(image), "", { draggable: "false" }),
        band,
        el("figcaption", { class: "row apart small" },
          ends(fileName(names[image])),
          corrected.includes(image) ? el("span", { class: "badge", title: "Corrected by hand" }, icon("brush"), el("span", { class: "unseen" }, "corrected")) : null,
          el("span", { class: "muted doubt" }, doubtful)));
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
      el("option", { value: "doubt" }, "most doubtful first"),
      el("option", { value: "name" }, "by name"),
      el("option", { value: "corrected" }, "corrected first"),
      el("optgroup", { label: "largest share of" }, classes.map((one) => el("option", { value: one.id }, one.name))));
    if (![...select.options].some((option) => option.value === order)) order = "doubt";
    select.value = order;
  }

  function refresh(state, changed = []) {
    const { images } = store.state;
    options();
    const { done, left } = looks(images);
    const lost = images.lost.length;
    setText(figures, [
      count(images.names.length, "image"),
      left ? `${done} looked at so far` : null,
      images.corrected.length ? `${images.corrected.length} corrected` : null,
      lost ? `${lost} cannot be read` : null,
    ].filter(Boolean).join(", "));
    if (changed.includes("images")) {
      // An order that changes under the hand is worse than one that is a little old.
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
        { keys: [], shown: "Enter", does: "show one large", act() {} },
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
      ? `${count(found.corrected.length, "image is", "images are")} corrected. When the doubtful ones look right, measure how good all of them are.`
      : "Open the most doubtful images first. Where a region has the wrong class, paint it right with the brush.",
    to: "trust",
    label: "Trust",
  }),
  mount,
};

