// A virtual grid for thousands of items: only the visible rows exist.

import { el } from "./dom.js";

/**
 * @param cell creates the content of an item: `cell(number) -> element`
 * @param key returns a text that changes with the content: `key(number) -> text`
 * @param choose called with the selected item, by pointer or arrow keys
 * @param open called for Enter or a double click
 */
export function createGrid({ label, width, height, cell, key = String, choose = () => {}, open = () => {}, across = false }) {
  const space = el("div", { class: "space", role: "presentation" });
  const node = el("div", { class: "grid", role: "listbox", tabindex: "0", "aria-label": label }, space);
  const id = `grid${(createGrid.made = (createGrid.made ?? 0) + 1)}`;
  const cells = new Map();
  let items = [];
  let chosen = -1;
  let columns = 1;
  let each = width;

  // A horizontal strip has one row.
  function measure() {
    if (across) {
      columns = Math.max(1, items.length);
      each = width;
      space.style.width = `${columns * width}px`;
      space.style.height = "100%";
    } else {
      const room = node.clientWidth;
      columns = Math.max(1, Math.floor(room / width));
      each = room / columns;
      space.style.width = "100%";
      space.style.height = `${Math.ceil(items.length / columns) * height}px`;
    }
  }

  function span() {
    if (across) {
      const first = Math.floor(node.scrollLeft / width) - 2;
      return [Math.max(0, first), Math.min(items.length, first + Math.ceil(node.clientWidth / width) + 5)];
    }
    const first = Math.floor(node.scrollTop / height) - 1;
    const rows = Math.ceil(node.clientHeight / height) + 3;
    return [Math.max(0, first * columns), Math.min(items.length, (first + rows) * columns)];
  }

  function render() {
    const [first, last] = span();
    for (const [place, found] of cells) {
      if (place >= first && place < last && found.item === items[place]) continue;
      found.node.remove();
      cells.delete(place);
    }
    for (let place = first; place < last; place += 1) {
      if (!cells.has(place)) cells.set(place, add(place));
      const { style } = cells.get(place).node;
      style.width = `${each}px`;
      style.height = across ? "100%" : `${height}px`;
      style.transform = across
        ? `translateX(${place * width}px)`
        : `translate(${(place % columns) * each}px, ${Math.floor(place / columns) * height}px)`;
    }
    mark();
  }

  function add(place) {
    const item = items[place];
    const made = el("div", {
      class: "cell", role: "option", id: `${id}-${item}`, "aria-setsize": items.length, "aria-posinset": place + 1,
      on: { click: () => pick(place), dblclick: () => open(item) },
    }, cell(item));
    space.append(made);
    return { node: made, item, key: key(item) };
  }

  function mark() {
    // A screen reader follows aria-selected, which only a focused list may set. Other lists use
    // aria-current.
    const focused = document.activeElement === node;
    for (const [place, { node: made }] of cells) {
      const mine = place === chosen;
      made.classList.toggle("chosen", mine);
      made.setAttribute("aria-selected", mine && focused);
      made.setAttribute("aria-current", mine && !focused);
    }
    const active = focused && cells.get(chosen);
    if (active) node.setAttribute("aria-activedescendant", active.node.id);
    else node.removeAttribute("aria-activedescendant");
  }

  function reveal(place) {
    if (place < 0) return;
    if (across) {
      const left = place * width;
      if (left < node.scrollLeft) node.scrollLeft = left;
      else if (left + width > node.scrollLeft + node.clientWidth) node.scrollLeft = left + width - node.clientWidth;
      return;
    }
    const top = Math.floor(place / columns) * height;
    if (top < node.scrollTop) node.scrollTop = top;
    else if (top + height > node.scrollTop + node.clientHeight) node.scrollTop = top + height - node.clientHeight;
  }

  function pick(place) {
    chosen = Math.max(0, Math.min(items.length - 1, place));
    reveal(chosen);
    render();
    choose(items[chosen]);
  }

  node.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(node.clientHeight / height)) * columns;
    const step = {
      ArrowRight: 1, ArrowLeft: -1, ArrowDown: across ? 1 : columns, ArrowUp: across ? -1 : -columns,
      PageDown: page, PageUp: -page, Home: -items.length, End: items.length,
    }[event.key];
    if (event.key === "Enter" && chosen >= 0) open(items[chosen]);
    else if (step && items.length) pick(chosen < 0 ? 0 : chosen + step);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  node.addEventListener("focus", mark);
  node.addEventListener("blur", mark);
  node.addEventListener("scroll", render, { passive: true });
  let hidden = true; // until the grid is in the page, the selected item cannot be scrolled to
  const watch = new ResizeObserver(() => {
    measure();
    if (hidden && node.clientWidth) reveal(chosen);
    hidden = !node.clientWidth;
    render();
  });
  watch.observe(node);

  return {
    node,
    pick,
    /** Sets the items in their order; the selection stays. */
    show(found, mine = items[chosen]) {
      items = found;
      chosen = mine === undefined ? -1 : items.indexOf(mine);
      measure();
      reveal(chosen);
      render();
    },
    /** Switches between a horizontal strip and a grid, with a cell width. */
    turn(lies, wide) {
      [across, width] = [lies, wide];
      measure();
      reveal(chosen);
      render();
    },
    /** Rebuilds the content of visible items whose key changed; the elements of the items stay. */
    refresh() {
      for (const found of cells.values()) {
        if (found.key === key(found.item)) continue;
        found.key = key(found.item);
        found.node.replaceChildren(cell(found.item));
      }
    },
    /** Calls `update(element, item)` for the visible items. */
    each(update) {
      for (const { node: made, item } of cells.values()) update(made, item);
    },
    step(by) {
      if (items.length) pick(chosen + by);
    },
    end: () => watch.disconnect(),
  };
}
