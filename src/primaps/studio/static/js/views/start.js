// Start: which folder, how long it will take, and the fit with its pictures as they come.

import { get, post } from "../api.js";
import { shareOf, shares, shown } from "../classes.js";
import { button, el, icon, meter, nothing, refill, said, setText } from "../dom.js";
import { count, duration, percent, sentence } from "../format.js";
import { arrive } from "../live.js";
import { complain } from "../notices.js";
import { store } from "../store.js";
import { createPictures } from "./pictures.js";

const STAGES = {
  starting: "Starting",
  reading: "Reading the images",
  features: "Looking at every image and proposing masks",
  classes: "Choosing the number of classes",
  "k-means": "Grouping the masks into classes",
  orthogonal: "Grouping the masks into classes",
  EM: "Refining the classes",
};

const GUIDE = {
  empty: "Choose the folder with your images.",
  ready: "Press “Find the classes”. You can close this page meanwhile; the work goes on and waits for you.",
  fitting: "Classes are being found. You may close this page or stop; it goes on where it was.",
  failed: "Something is in the way: mend it, then continue. Nothing that was computed is lost.",
  fitted: "The classes are there. Look through them and give them names.",
};

function mount(root) {
  const page = el("div", { class: "start" });
  root.append(page);
  let part = { update() {}, end() {} };
  let mounted = "";

  function refresh() {
    const { server } = store.state;
    const key = `${server.stage} ${server.collection}`;
    if (key !== mounted) {
      mounted = key;
      part.end();
      const made = el("div", {});
      part = { empty, ready, fitting, failed, fitted }[server.stage](made);
      part.update(store.state);
      refill(page, ...made.childNodes);
    } else part.update(store.state);
  }
  refresh();
  const off = store.on("server images classes", refresh);
  return () => {
    off();
    part.end();
  };
}

async function act(path, body) {
  try {
    await arrive(await post(path, body));
  } catch (error) {
    complain(error);
  }
}

/** Folders below the one that the command was given. */
function folderList(heading) {
  const list = el("ul", { class: "folders" });
  const node = el("section", { class: "panel stack", "aria-label": heading }, el("h2", {}, heading), list);
  get("folders").then((found) => {
    if (!found.length) {
      list.append(el("li", { class: "muted" }, "There is no folder with images here. Start the studio with one: primaps studio FOLDER"));
    }
    // The folder that is open already is no other one.
    if (heading !== "Folders" && found.every(({ path }) => path === "")) node.hidden = true;
    for (const { path, images } of found) {
      const name = path || "the folder itself";
      list.append(el("li", {}, el("button", { type: "button", class: "line", title: name, on: { click: () => act("folder", { path }) } },
        icon("folder"), el("span", { class: "cut" }, name), el("span", { class: "muted" }, count(images, "image")))));
    }
  }, complain);
  return node;
}

function empty(page) {
  page.append(
    nothing("photo", "No images yet", "Choose a folder below, or put JPEG, PNG or TIFF images into the one that the studio was started with."),
    folderList("Folders"),
  );
  return { update() {}, end() {} };
}

function problems() {
  const list = el("ul", { class: "small" });
  const title = el("summary", {});
  const node = el("details", { class: "problems", hidden: true }, title, list);
  return {
    node,
    update({ server }) {
      const found = server.problems ?? [];
      node.hidden = !found.length;
      if (list.childElementCount === found.length) return;
      setText(title, `${count(found.length, "image")} could not be read and will be left out`);
      list.replaceChildren(...found.map((one) => el("li", { class: "cut", title: one }, one)));
    },
  };
}

function ready(page) {
  const large = el("h2", { class: "large" });
  const name = el("p", { class: "muted cut" });
  const time = el("p", { class: "muted" });
  const number = el("input", { class: "input", id: "classes", type: "number", min: 2, max: 256, value: "12", "aria-label": "Number of classes" });
  const auto = el("input", { type: "radio", name: "how", id: "auto", checked: true });
  const own = el("input", { type: "radio", name: "how", id: "own", "aria-label": "About this many classes" });
  number.addEventListener("input", () => (own.checked = true));
  const go = button("Find the classes", () => act("fit", { classes: auto.checked ? "auto" : Number(number.value) }), { kind: "primary big" });
  const found = problems();
  const pictures = createPictures({ masks: false });
  page.append(
    el("div", { class: "two" },
      el("section", { class: "panel stack", "aria-label": "Fit" },
        el("div", {}, large, name),
        el("fieldset", { class: "stack tight" },
          el("legend", { class: "label" }, "How many classes?"),
          el("label", { class: "pick" }, auto, el("span", {}, "Choose for me ", el("span", { class: "muted" }, "by what the images show"))),
          el("label", { class: "pick" }, own, el("span", {}, "About"), number),
          el("p", { class: "muted small" }, "You can change this afterwards with a slider, in no time."),
        ),
        el("div", { class: "stack tight" }, go, time),
        found.node),
      el("section", { class: "stack", "aria-label": "Images" }, pictures.node)),
    folderList("Other folders"),
  );
  let asked = null;
  return {
    update({ server, images }) {
      setText(large, count(server.images, "image"));
      setText(name, server.folder);
      name.title = server.folder;
      setText(time, server.estimate ? `Takes about ${duration(server.estimate.seconds)} on this machine.` : "Measuring how long this will take…");
      if (asked === null && server.asked) {
        asked = server.asked;
        if (Number.isInteger(asked)) {
          number.value = asked;
          own.checked = true;
        }
      }
      found.update({ server });
      if (images) pictures.sample(images.names.length);
    },
    end: pictures.end,
  };
}

function fitting(page) {
  const stage = el("h2", { "aria-live": "polite" });
  const figures = el("p", { class: "muted" });
  const bar = meter("Progress");
  const pictures = createPictures({ masks: true });
  const found = problems();
  page.append(
    el("section", { class: "panel stack", "aria-label": "Progress" },
      el("div", { class: "row apart" }, stage, button("Stop", () => act("stop"), { title: "Stop; it goes on from here later" })),
      bar, figures, found.node),
    el("section", { class: "stack", "aria-label": "Pictures of the work" },
      el("h2", {}, "Masks as they are proposed"), pictures.node),
  );
  return {
    update({ server, images }) {
      const { progress } = server;
      found.update({ server });
      if (images) pictures.sample(images.names.length);
      if (!progress) return;
      setText(stage, STAGES[progress.stage] ?? progress.stage);
      bar.set(progress.total ? progress.done / progress.total : 0);
      const left = progress.seconds_left == null ? "" : `, about ${duration(progress.seconds_left)} left`;
      const fit = server.estimate ? `The whole takes about ${duration(server.estimate.seconds)}.` : "";
      setText(figures, progress.total > 1 ? `${progress.done.toLocaleString("en")} of ${progress.total.toLocaleString("en")}${left}` : fit || "One moment…");
    },
    end: pictures.end,
  };
}

function failed(page) {
  const why = said("", true);
  const found = problems();
  page.append(el("section", { class: "panel stack narrow", "aria-label": "What went wrong" },
    el("h2", {}, "This did not work"), why,
    el("div", { class: "row" }, button("Try again", () => act("fit", { classes: store.state.server.asked ?? "auto" }), { kind: "primary" })),
    el("p", { class: "muted small" }, "What was computed so far is kept, and it goes on from there."),
    found.node));
  return {
    update({ server }) {
      setText(why.lastChild, sentence(server.error));
      found.update({ server });
    },
    end() {},
  };
}

function fitted(page) {
  const large = el("h2", { class: "large" });
  const about = el("p", { class: "muted" });
  const band = el("div", { class: "band", "aria-hidden": "true" });
  const list = el("ul", { class: "legend" });
  const looking = el("p", { class: "muted small" });
  const pictures = createPictures({ masks: false });
  page.append(
    el("div", { class: "two" },
      el("section", { class: "panel stack", "aria-label": "What was found" }, el("div", {}, large, about), band, list, looking),
      el("section", { class: "stack", "aria-label": "Images" }, pictures.node)),
  );
  return {
    update(state) {
      const { server, images, classes } = state;
      const those = shown(state).filter((one) => !one.hidden);
      const images = count(server.images, "image");
      setText(large, classes ? `${count(those.length, "class", "classes")} in ${images}` : images);
      setText(about, server.model ? `Found with ${server.model.backbone}, without a single label.` : "");
      const { progress } = server;
      setText(looking, progress && progress.done < progress.total ? `Each image is looked at once more in the background: ${progress.done} of ${progress.total}.` : "");
      if (images) pictures.sample(images.names.length);
      if (!classes) return;
      const parts = shares(images);
      const sized = those.map((one) => [one, parts ? shareOf(one, parts) : one.share]).sort((a, b) => b[1] - a[1]);
      band.replaceChildren(...sized.map(([one, share]) => el("div", { style: { "flex-grow": share, background: one.color } })));
      list.replaceChildren(...sized.map(([one, share]) => el("li", { class: "row" },
        el("span", { class: "swatch", style: { background: one.color } }), el("span", { class: "cut", title: one.name }, one.name), el("span", { class: "muted" }, percent(share)))));
    },
    end: pictures.end,
  };
}

export const start = {
  title: "Start",
  open: () => true,
  guide: ({ server }) => ({
    text: GUIDE[server?.stage] ?? "",
    ...(server?.stage === "fitted" ? { to: "classes", label: "Classes" } : {}),
  }),
  mount,
};
