// Start: the folder, the estimated time, and the fit with previews of the masks.

import { get, post } from "../api.js";
import { shareOf, shares, shown } from "../classes.js";
import { button, el, icon, meter, emptyState, refill, message, setText } from "../dom.js";
import { count, duration, percent, sentence } from "../format.js";
import { arrive } from "../live.js";
import { notifyError } from "../notices.js";
import { store } from "../store.js";
import { createWall } from "./wall.js";

const STAGES = {
  starting: "Starting",
  reading: "Reading the images",
  features: "Extracting features and proposing masks",
  classes: "Choosing the number of classes",
  "k-means": "Clustering the masks into classes",
  orthogonal: "Clustering the masks into classes",
  EM: "Refining the classes",
};

const GUIDE = {
  empty: "Choose the folder with your images.",
  ready: "Press “Find the classes”. You can close this page meanwhile; the fit continues in the background.",
  fitting: "Finding the classes. You can close this page, or stop the fit and resume it later.",
  failed: "The fit failed. Fix the cause and try again; computed results are not lost.",
  fitted: "The classes are ready. Review them and give them names.",
};

function mount(root) {
  const page = el("div", { class: "start" });
  root.append(page);
  let section = { update() {}, end() {} };
  let mounted = "";

  function refresh() {
    const { server } = store.state;
    const key = `${server.stage} ${server.collection}`;
    if (key !== mounted) {
      mounted = key;
      section.end();
      const made = el("div", {});
      section = { empty, ready, fitting, failed, fitted }[server.stage](made);
      section.update(store.state);
      refill(page, ...made.childNodes);
    } else section.update(store.state);
  }
  refresh();
  const off = store.on("server images classes", refresh);
  return () => {
    off();
    section.end();
  };
}

async function act(path, body) {
  try {
    await arrive(await post(path, body));
  } catch (error) {
    notifyError(error);
  }
}

/** Lists the folders with images below the image folder. */
function folderList(heading) {
  const list = el("ul", { class: "folders" });
  const node = el("section", { class: "panel stack", "aria-label": heading }, el("h2", {}, heading), list);
  get("folders").then((found) => {
    if (!found.length) {
      list.append(el("li", { class: "muted" }, "This folder has no images. Start the studio with another one: primaps studio FOLDER"));
    }
    // The list of other folders is empty if there is only the current one.
    if (heading !== "Folders" && found.every(({ path }) => path === "")) node.hidden = true;
    for (const { path, images } of found) {
      const name = path || "all folders";
      list.append(el("li", {}, el("button", { type: "button", class: "line", title: name, on: { click: () => act("folder", { path }) } },
        icon("folder"), el("span", { class: "ellipsis", dir: "auto" }, name), el("span", { class: "muted" }, count(images, "image")))));
    }
  }, notifyError);
  return node;
}

function empty(page) {
  page.append(
    emptyState("image", "No images yet", "Choose a folder below, or add JPEG, PNG or TIFF images to the image folder and start the studio again."),
    folderList("Folders"),
  );
  return { update() {}, end() {} };
}

function skippedList() {
  const list = el("ul", { class: "small" });
  const title = el("summary", {});
  const node = el("details", { class: "skipped", hidden: true }, title, list);
  return {
    node,
    update({ server }) {
      const found = server.skipped ?? [];
      node.hidden = !found.length;
      if (list.childElementCount === found.length) return;
      setText(title, `${count(found.length, "image")} cannot be read`);
      list.replaceChildren(...found.map((one) => el("li", { class: "ellipsis", title: one }, one)));
    },
  };
}

function ready(page) {
  const large = el("h2", { class: "large" });
  const name = el("p", { class: "muted ellipsis" });
  const time = el("p", { class: "muted" });
  const number = el("input", { class: "input", id: "classes", type: "number", min: 2, max: 255, value: "12", "aria-label": "Number of classes" });
  const auto = el("input", { type: "radio", name: "how", id: "auto", checked: true });
  const own = el("input", { type: "radio", name: "how", id: "own", "aria-label": "This number of classes" });
  const limits = el("p", { class: "small wrong", role: "alert" });
  const valid = () => auto.checked || (number.value !== "" && number.checkValidity());
  function check() {
    setText(limits, valid() ? "" : "The number of classes must be an integer from 2 to 256.");
    number.setAttribute("aria-invalid", !valid());
  }
  number.addEventListener("input", () => {
    own.checked = true;
    check();
  });
  for (const one of [auto, own]) one.addEventListener("change", check);
  const go = button("Find the classes", () => {
    check();
    if (valid()) act("fit", { classes: auto.checked ? "auto" : Number(number.value) });
    else number.focus();
  }, { kind: "primary big" });
  const found = skippedList();
  const wall = createWall({ masks: false });
  page.append(
    el("div", { class: "two" },
      el("section", { class: "panel stack", "aria-label": "Fit" },
        el("div", {}, large, name),
        el("fieldset", { class: "stack tight" },
          el("legend", { class: "label" }, "How many classes?"),
          el("label", { class: "pick" }, auto, el("span", {}, "Automatic ", el("span", { class: "muted" }, "estimated from the images"))),
          el("label", { class: "pick" }, own, el("span", {}, "Number:"), number),
          limits,
          el("p", { class: "muted small" }, "You can change the number later with a slider."),
        ),
        el("div", { class: "stack tight" }, go, time),
        found.node),
      el("section", { class: "stack", "aria-label": "Images" }, wall.node)),
    folderList("Other folders"),
  );
  let requested = null;
  return {
    update({ server, images }) {
      setText(large, count(server.images, "image"));
      setText(name, server.folder);
      name.title = server.folder;
      setText(time, server.estimate ? `Takes about ${duration(server.estimate.seconds)} on this machine.` : "Estimating the time…");
      if (requested === null && server.requested) {
        requested = server.requested;
        if (Number.isInteger(requested)) {
          number.value = requested;
          own.checked = true;
        }
      }
      found.update({ server });
      if (images) wall.sample(images.names.length);
    },
    end: wall.end,
  };
}

function fitting(page) {
  const stage = el("h2", { "aria-live": "polite" });
  const counts = el("p", { class: "muted" });
  const bar = meter("Progress");
  const wall = createWall({ masks: true });
  const found = skippedList();
  page.append(
    el("section", { class: "panel stack", "aria-label": "Progress" },
      el("div", { class: "row apart" }, stage, button("Stop", () => act("stop"), { title: "Stop the fit; it can be resumed" })),
      bar, counts, found.node),
    el("section", { class: "stack", "aria-label": "Preview" },
      el("h2", {}, "Proposed masks"), wall.node),
  );
  return {
    update({ server, images }) {
      const { progress } = server;
      found.update({ server });
      if (images) wall.sample(images.names.length);
      if (!progress) return;
      setText(stage, STAGES[progress.stage] ?? progress.stage);
      bar.set(progress.total ? progress.done / progress.total : 0);
      const left = progress.seconds_left == null ? "" : `, about ${duration(progress.seconds_left)} left${progress.left_of === "stage" ? " in this step" : ""}`;
      const fit = server.estimate ? `The fit takes about ${duration(server.estimate.seconds)}.` : "";
      setText(counts, progress.total > 1 ? `${progress.done.toLocaleString("en")} of ${progress.total.toLocaleString("en")}${left}` : fit);
    },
    end: wall.end,
  };
}

function failed(page) {
  const why = message("", true);
  const found = skippedList();
  page.append(el("section", { class: "panel stack narrow", "aria-label": "What went wrong" },
    el("h2", {}, "The fit failed"), why,
    el("div", { class: "row" }, button("Try again", () => act("fit", { classes: store.state.server.requested ?? "auto" }), { kind: "primary" })),
    el("p", { class: "muted small" }, "Computed results are cached; the fit continues from there."),
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
  const details = el("p", { class: "muted" });
  const band = el("div", { class: "band", "aria-hidden": "true" });
  const list = el("ul", { class: "legend" });
  const analyzing = el("p", { class: "muted small" });
  const found = skippedList();
  const wall = createWall({ masks: false });
  page.append(
    el("div", { class: "two" },
      el("section", { class: "panel stack", "aria-label": "Result" }, el("div", {}, large, details), band, list, analyzing, found.node),
      el("section", { class: "stack", "aria-label": "Images" }, wall.node)),
  );
  return {
    update(state) {
      const { server, images, classes } = state;
      const visible = shown(state).filter((one) => !one.hidden);
      const total = count(server.images, "image");
      setText(large, classes ? `${count(visible.length, "class", "classes")} in ${total}` : total);
      setText(details, server.model ? `Found with ${server.model.backbone}, without labels.` : "");
      const { progress } = server;
      setText(analyzing, progress && progress.done < progress.total ? `Analyzing all images in the background: ${progress.done} of ${progress.total}.` : "");
      found.update({ server });
      if (images) wall.sample(images.names.length);
      if (!classes) return;
      const leaves = shares(images);
      const sized = visible.map((one) => [one, leaves ? shareOf(one, leaves) : one.share]).sort((a, b) => b[1] - a[1]);
      band.replaceChildren(...sized.map(([one, share]) => el("div", { style: { "flex-grow": share, background: one.color } })));
      list.replaceChildren(...sized.map(([one, share]) => el("li", { class: "row" },
        el("span", { class: "swatch", style: { background: one.color } }), el("span", { class: "ellipsis", dir: "auto", title: one.name }, one.name), el("span", { class: "muted" }, percent(share)))));
    },
    end: wall.end,
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
