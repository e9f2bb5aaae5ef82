// Classes: the gallery of classes, the number of classes, all edits, and a preview image.

import { commitCut, merge, setHidden, shareOf, shares, shown, split } from "../classes.js";
import { el, setText } from "../dom.js";
import { count, isolated } from "../format.js";
import { viewKeys } from "../keyboard.js";
import { store } from "../store.js";
import { createCard } from "./classes/card.js";
import { createCutSlider } from "./classes/cut.js";
import { dragToMerge } from "./classes/drag.js";
import { createPreview } from "./classes/preview.js";

function mount(root) {
  root.classList.add("filled");
  const cards = new Map();
  const gallery = el("ul", { class: "gallery", "aria-label": "Classes" });
  const mode = el("div", { class: "message merging", hidden: true, role: "status" });
  const head = el("div", { class: "gallery-head row apart" });
  const counts = el("h2", {});
  const preview = createPreview();
  const cut = createCutSlider();
  let joining = null; // id of the class that is being merged

  const find = (id) => shown().find((one) => one.id === id);
  const focusCard = (id) => cards.get(id)?.node.focus();

  const act = {
    point: (id) => preview.point(id),
    see: (image) => preview.see(image),
    hide: (one) => setHidden(one, !one.hidden),
    split: (one) => split(one),
    join(one) {
      joining = joining === one.id ? null : one.id;
      say();
    },
    drop(one, into) {
      if (one.id === into.id) return;
      joining = null;
      say();
      merge(one, into).then(() => focusCard(find(into.id)?.id ?? shown()[0]?.id));
    },
    /** Merges into the pressed card while another class is being merged. */
    take(one) {
      if (joining === null || joining === one.id) return false;
      act.drop(find(joining), one);
      return true;
    },
  };

  function say() {
    const one = joining && find(joining);
    mode.hidden = !one;
    if (one) setText(mode.lastChild, `Merge ${isolated(one.name)} into another class: click it, or select it with the arrow keys and press Enter. Escape cancels.`);
    for (const [id, card] of cards) card.mark(id === joining, Boolean(one));
  }
  mode.append(el("span", {}), el("span", {}));

  // The preview follows the slider with every frame. Cards, whose layout is expensive, follow four
  // times per second.
  let frame = 0;
  let later = null;
  function refresh({ cut: moving }) {
    if (moving !== null) {
      later ??= setTimeout(render, 250);
      return;
    }
    frame ||= requestAnimationFrame(render);
  }

  function render() {
    clearTimeout(later);
    later = null;
    frame = 0;
    const { state } = store;
    const classes = shown(state);
    const leaves = shares(state.images);
    const byShare = classes
      .map((one) => ({ one, share: leaves ? shareOf(one, leaves) : (one.share ?? 0) }))
      .sort((a, b) => a.one.hidden - b.one.hidden || b.share - a.share);
    const most = byShare[0]?.share || 1;
    const nodes = byShare.map(({ one, share }) => {
      if (!cards.has(one.id)) cards.set(one.id, createCard(one, act));
      const card = cards.get(one.id);
      card.update(one, share, share / most);
      return card.node;
    });
    for (const [id, card] of cards) {
      if (!classes.some((one) => one.id === id)) {
        card.node.remove();
        // The slider often returns to earlier cards: they stay until it rests.
        if (state.cut === null) {
          card.end();
          cards.delete(id);
        }
      }
    }
    // Nodes that do not move keep the focus and the typed text.
    nodes.forEach((node, place) => {
      if (gallery.children[place] !== node) gallery.insertBefore(node, gallery.children[place] ?? null);
    });
    const hidden = classes.filter((one) => one.hidden).length;
    setText(counts, count(classes.length - hidden, "class", "classes") + (hidden ? `, ${hidden} hidden` : ""));
    if (joining !== null && !find(joining)) joining = null;
    say();
  }

  gallery.addEventListener("keydown", (event) => {
    const node = event.target.closest(".card");
    if (!node || event.target !== node) return;
    const all = [...gallery.children];
    const across = Math.max(1, Math.round(gallery.clientWidth / node.offsetWidth));
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
    if (step) {
      event.preventDefault();
      event.stopPropagation();
      all[Math.max(0, Math.min(all.length - 1, all.indexOf(node) + step))].focus();
      return;
    }
    const one = find(node.dataset.id);
    if (event.key === "Enter" || event.key === "F2") {
      event.preventDefault();
      if (!act.take(one)) cards.get(one.id).type();
      return;
    }
    // Typing on a card renames its class: no single key has another meaning here.
    const types = event.key.length === 1 && event.key !== " " && !event.ctrlKey && !event.metaKey && !event.altKey;
    if (!types) return;
    event.stopPropagation();
    if (joining === null) cards.get(one.id).type(); // the field receives the character
    else event.preventDefault();
  });
  dragToMerge(gallery, { find, drop: act.drop });

  const focused = () => {
    const node = document.activeElement?.closest?.(".card");
    return node && find(node.dataset.id);
  };
  const on = (does) => () => focused() && does(focused());
  const more = (step) => {
    const { leaves } = store.state.classes;
    cut.set(Math.max(1, Math.min(leaves, shown().length + step)));
  };
  viewKeys([
    { keys: [], shown: "← ↑ → ↓", does: "move between classes", act() {} },
    { keys: [], shown: "Enter", does: "rename the class, as typing on it does", act() {} },
    { keys: ["alt+h"], shown: "Alt H", does: "hide or show the class", act: on(act.hide) },
    { keys: ["alt+s"], shown: "Alt S", does: "split the class", act: on(act.split) },
    { keys: ["alt+m"], shown: "Alt M", does: "merge the class into another one", act: on(act.join) },
    { keys: ["alt+c"], shown: "Alt C", does: "change the color", act: on((one) => cards.get(one.id).color()) },
    { keys: ["-"], shown: "−", does: "one class fewer", act: () => more(-1) },
    { keys: ["+", "="], shown: "+", does: "one class more", act: () => more(1) },
    { keys: ["alt+t"], shown: "Alt T", does: "show the next typical image", act: on((one) => cards.get(one.id).see()) },
    { keys: ["j"], shown: "J", does: "next image", act: () => preview.step(1) },
    { keys: ["k"], shown: "K", does: "previous image", act: () => preview.step(-1) },
    { keys: ["o"], shown: "O", does: "outlines on or off", act: () => store.set({ outlines: !store.state.outlines }) },
    { keys: ["Escape"], shown: "Esc", does: "cancel merging", when: () => joining !== null, act: () => act.join(find(joining)) },
  ]);

  head.append(counts, el("span", { class: "muted small hint" }, "Type to rename · drag a class onto another to merge"));
  root.append(
    el("div", { class: "classes" },
      el("section", { class: "left", "aria-label": "Gallery of classes" }, cut.node, mode, head, gallery),
      preview.node),
  );
  render();
  const off = store.on("classes cut images saving", refresh);
  return () => {
    off();
    cancelAnimationFrame(frame);
    clearTimeout(later);
    preview.end();
    cut.end();
    for (const card of cards.values()) card.end();
  };
}

/** Suggests the next step from the number of classes without a name. */
function guide({ classes }) {
  const all = classes?.classes.filter((one) => !one.hidden) ?? [];
  const open = all.filter((one) => !one.named).length;
  if (!all.length) return { text: "Loading the classes." };
  if (open === all.length) {
    return { text: "Move the slider until each class shows one kind of content. Then name each class.", to: "images", label: "Images" };
  }
  if (open) return { text: `${count(open, "class has", "classes have")} no name yet. Merge equivalent classes and hide classes that you do not need.`, to: "images", label: "Images" };
  return { text: "Every class has a name. Check the most uncertain images.", to: "images", label: "Images" };
}

export const classes = { title: "Classes", open: ({ server, images, classes: found }) => server?.stage === "fitted" && Boolean(images && found), guide, mount };
