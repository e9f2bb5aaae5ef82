// Export: the format, the images, and the next steps in the other tool.

import { get, post } from "../api.js";
import { button, choices, el, icon, meter, message, setText } from "../dom.js";
import { count, duration } from "../format.js";
import { onExport } from "../live.js";
import { notifyError, notify } from "../notices.js";
import { store } from "../store.js";

const GROUPS = [
  ["Correct and annotate", ["cvat", "cvat-mask", "labelstudio", "labelme"]],
  ["Train a model", ["coco", "coco-panoptic", "yolo", "yolo-semantic", "voc", "hf"]],
  ["Show on a map", ["geojson", "gpkg"]],
];

let format = "coco";
let images = "all";
let per = null;

function mount(root) {
  const page = el("div", { class: "export" });
  root.append(page);
  let found = null;
  let job = null;

  const list = el("div", { class: "stack groups", role: "radiogroup", "aria-label": "Format" });
  const what = el("p", {});
  const which = el("div", { class: "stack tight" });
  const regions = el("div", { class: "stack tight" });
  const go = button("Export", start, { kind: "primary big", symbol: "save" });
  const state = el("section", { class: "stack", "aria-label": "Progress of the export" });
  const panel = el("aside", { class: "panel stack", "aria-label": "Export settings" }, which, regions, what, go, state);
  page.append(el("section", { "aria-label": "Formats" }, list), panel);

  function formats() {
    const one = ({ name, title, description }) =>
      el("label", { class: "format" },
        el("input", {
          type: "radio", name: "format", value: name, checked: name === format, "aria-labelledby": `${name}-title`, "aria-describedby": `${name}-description`,
          on: { change: () => ((format = name), settings()) },
        }),
        el("span", { class: "format-title", id: `${name}-title` }, title), el("span", { class: "muted small", id: `${name}-description` }, description));
    const named = new Set(GROUPS.flatMap(([, names]) => names));
    const others = found.formats.filter(({ name }) => !named.has(name)).map(({ name }) => name);
    list.replaceChildren(...[...GROUPS, ["Others", others]].filter(([, names]) => names.length).map(([title, names]) =>
      el("div", { class: "stack tight", role: "group", "aria-label": title }, el("h2", {}, title),
        el("div", { class: "formats" }, names.map((name) => found.formats.find((row) => row.name === name)).filter(Boolean).map(one)))));
  }

  function settings() {
    const row = found.formats.find(({ name }) => name === format);
    which.replaceChildren(
      el("h2", {}, `For ${row.title}`), el("span", { class: "label" }, "Images"),
      choices("Images", [["all", `All ${found.images.toLocaleString("en")}`], ["corrected", `Corrected ${found.corrected}`]], images, (now) => {
        images = now;
        say();
      }));
    if (!found.corrected) {
      which.lastChild.lastChild.disabled = true;
      images = "all";
    }
    regions.hidden = !row.regions;
    if (row.regions) {
      regions.replaceChildren(el("span", { class: "label" }, "One object per"),
        choices("One object per", [["", "format default"], ["region", "region"], ["class", "class"]], per ?? "", (now) => {
          per = now || null;
        }));
    }
    say();
  }

  function say() {
    const { classes } = store.state;
    const shown = classes?.classes.filter((one) => !one.hidden).length ?? 0;
    const hidden = (classes?.classes.length ?? 0) - shown;
    const number = images === "all" ? found.images : found.corrected;
    const sentences = [`${count(number, "image")}, ${count(shown, "class", "classes")}, with your names, colors and corrections.`];
    if (hidden) sentences.push(`${count(hidden, "hidden class is", "hidden classes are")} not exported.`);
    setText(what, sentences.join(" "));
    what.className = "muted";
  }

  async function start() {
    const { regions: divided } = found.formats.find(({ name }) => name === format);
    try {
      found = await post("export", { format, images, per: divided ? per : null });
      show(found.job);
    } catch (error) {
      notifyError(error);
    }
  }

  const progress = meter("Export");
  const counts = el("p", { class: "muted small", role: "status" });

  function show(now) {
    const ended = job && !job.out && now?.out;
    job = now;
    const running = job && !job.out && !job.error;
    go.disabled = Boolean(running);
    if (!job) return state.replaceChildren();
    const title = found.formats.find(({ name }) => name === job.format)?.title ?? job.format;
    if (running) {
      if (state.firstChild !== progress) state.replaceChildren(progress, counts);
      progress.set(job.total ? job.done / job.total : 0);
      setText(counts, job.seconds_left == null ? "Starting…" : `About ${duration(job.seconds_left)} left.`);
      return;
    }
    if (job.error) return state.replaceChildren(message(job.error, true));
    if (ended) notify(`Export to ${title} is complete.`);
    const copy = button("Copy path", async () => {
      await navigator.clipboard.writeText(job.out);
      notify("Copied the path.");
    });
    state.replaceChildren(
      el("div", { class: "ready" }, icon("done"), el("h2", {}, `Exported to ${title}`)),
      el("code", { class: "path", title: job.out }, job.out), el("div", {}, copy),
      el("div", { class: "stack tight" }, el("h3", {}, "Next steps"), el("ol", { class: "stack tight" }, job.next.map(step))),
      ...job.notes.map((one) => message(one)));
  }
  const step = (text, i) => el("li", { class: "step" }, el("span", { class: "number", "aria-hidden": true }, String(i + 1)), 
    el("span", {}, text.split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part))));

  const off = [onExport(show), store.on("classes", () => found && say())];
  get("export").then((answer) => {
    found = answer;
    formats();
    settings();
    show(found.job);
  }, notifyError);
  return () => off.forEach((end) => end());
}

export const exporting = {
  title: "Export",
  open: ({ server, classes }) => server?.stage === "fitted" && Boolean(classes),
  guide: ({ classes }) => {
    const open = classes?.classes.filter((one) => !one.hidden && !one.named).length;
    return open
      ? { text: `Choose a format. ${count(open, "class has", "classes have")} no name yet and will be numbered.`, to: "classes", label: "Name them" }
      : { text: "Choose the format of your tool and press Export. Your images are not modified." };
  },
  mount,
};
