// Starts the page: fetches the state, opens the view of the address, listens to the server.

import { get } from "./api.js";
import { redo, undo } from "./classes.js";
import { nothing } from "./dom.js";
import { pageKeys, showKeys, viewKeys } from "./keyboard.js";
import { arrive, listen } from "./live.js";
import { createShell } from "./shell.js";
import { store } from "./store.js";
import { applyTheme } from "./theme.js";
import { classes } from "./views/classes.js";
import { exporting } from "./views/export.js";
import { images } from "./views/images.js";
import { masks } from "./views/masks.js";
import { start } from "./views/start.js";
import { trust } from "./views/trust.js";

const VIEWS = { start, masks, classes, images, trust, export: exporting };
const view = document.getElementById("view");
let close = () => {};
let mounted = "";

function open() {
  const name = location.hash.slice(1) in VIEWS ? location.hash.slice(1) : "start";
  const ready = VIEWS[name].open(store.state);
  const key = `${name} ${ready}`;
  if (key === mounted) return;
  const moved = store.state.view !== name;
  close();
  viewKeys([]);
  view.replaceChildren();
  view.className = "view";
  mounted = key;
  close = ready
    ? VIEWS[name].mount(view)
    : void view.append(nothing("photo", "Not yet", `${VIEWS[name].title} opens as soon as classes are found. Start is where that begins.`)) ?? (() => {});
  store.set({ view: name });
  if (moved && !view.contains(document.activeElement)) view.focus({ preventScroll: true });
}

async function begin() {
  applyTheme();
  // The address names a view: the link must not change it.
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    view.focus();
  });
  const refresh = createShell(VIEWS);
  pageKeys([
    ...Object.keys(VIEWS).map((name, i) => ({
      keys: [String(i + 1)], shown: String(i + 1), does: VIEWS[name].title, act: () => (location.hash = name),
    })),
    { keys: ["mod+z"], shown: "Ctrl Z", does: "undo", act: undo },
    { keys: ["mod+shift+z", "mod+y"], shown: "Ctrl Shift Z", does: "redo", act: redo },
    { keys: ["?"], shown: "?", does: "these keys", act: showKeys },
  ]);
  try {
    const server = await get("state");
    // Whoever comes back to a finished fit wants the classes, not the beginning.
    if (!location.hash && server.stage === "fitted") history.replaceState(null, "", "#classes");
    await arrive(server);
  } catch (error) {
    refresh();
    view.append(nothing("warn", error.status === 403 ? "This address needs its token" : "No answer",
      error.status === 403 ? "Open the address that the terminal printed; it has the token that lets this browser in." : error.message));
    return;
  }
  // Before the listeners of views: one that cannot be shown any more is closed first.
  store.on("server images classes", open);
  open();
  refresh();
  addEventListener("hashchange", open);
  listen();
}

begin();
