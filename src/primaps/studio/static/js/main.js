// Starts the page: loads the state, opens the view in the address, and listens to events.

import { get } from "./api.js";
import { redo, restoreUnsent, undo } from "./classes.js";
import { emptyState } from "./dom.js";
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
import { audit } from "./views/audit.js";

const VIEWS = { start, masks, classes, images, audit, export: exporting };
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
    : void view.append(emptyState("image", "No classes yet", "Find the classes in Start first.")) ?? (() => {});
  store.set({ view: name });
  if (moved && !view.contains(document.activeElement)) view.focus({ preventScroll: true });
}

async function begin() {
  applyTheme();
  // The link must not change the hash, which names the view.
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
    { keys: ["?"], shown: "?", does: "show the keys", act: showKeys },
  ]);
  try {
    const server = await get("state");
    // After a fit, the page opens with the classes.
    if (!location.hash && server.stage === "fitted") history.replaceState(null, "", "#classes");
    await arrive(server);
    restoreUnsent();
  } catch (error) {
    refresh();
    view.append(emptyState("warn", error.status === 403 ? "The address lacks its token" : "The server does not respond",
      error.status === 403 ? "Open the address that the terminal printed, which has the access token." : error.message));
    return;
  }
  // Subscribed before the views: a view that can no longer be shown is closed first.
  store.on("server images classes", open);
  open();
  refresh();
  addEventListener("hashchange", open);
  listen();
}

begin();
