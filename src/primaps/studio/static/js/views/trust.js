// Trust: is this spot what it is called? After a few dozen answers one knows how good the classes are.

import { get, post, url } from "../api.js";
import { button, el, icon, meter, nothing, refill, setText } from "../dom.js";
import { count, fileName, percent } from "../format.js";
import { viewKeys } from "../keyboard.js";
import { looks } from "../live.js";
import { complain } from "../notices.js";
import { store } from "../store.js";
import { createInterval } from "./trust/interval.js";

const CLOSE = 0.22; // half the close-up, as a share of the shorter side

function mount(root) {
  const page = el("div", { class: "trust" });
  root.append(page);
  let audit = null;
  let busy = false;
  const interval = createInterval();

  const swatch = el("span", { class: "swatch" });
  const name = el("strong", { class: "cut" });
  // Heard in one piece, with the image: the same class may be asked for twice.
  const heard = el("span", { class: "unseen", "aria-live": "polite" });
  const ask = el("h2", { id: "question" }, heard,
    el("span", { class: "question", "aria-hidden": true }, "Is the spot in the ring ", el("span", { class: "row asked" }, swatch, name), "?"));
  const close = el("img", { alt: "" });
  const whole = el("img", { alt: "" });
  const ring = el("div", { class: "ring" });
  const small = el("div", { class: "ring small-ring" });
  const caption = el("figcaption", { class: "small muted cut" });
  const left = el("p", { class: "muted", role: "status" });
  const bar = meter("Answers");
  const answers = {
    right: button("Yes", () => answer(true), { kind: "answer", symbol: "done", key: "Y" }),
    wrong: button("No", () => answer(false), { kind: "answer", symbol: "close", key: "N" }),
    unsure: button("Cannot tell", () => answer(null), { kind: "plain", key: "U" }),
    undo: button("Take the last answer back", () => takeBack(), { kind: "plain", symbol: "undo", key: "Backspace" }),
  };
  const asking = el("section", { class: "asking", "aria-labelledby": "question" },
    ask,
    el("div", { class: "looks" },
      el("figure", { class: "close" }, el("div", { class: "frame" }, close, ring)),
      el("figure", { class: "whole" }, el("div", { class: "frame" }, whole, small), caption)),
    el("div", { class: "answers" }, answers.right, answers.wrong),
    el("div", { class: "row apart" }, answers.unsure, answers.undo));
  const begin = button("Begin anew", () => start(), { title: "Draw new questions; the old answers are kept in a folder of their own" });
  const report = el("a", { class: "button", href: "/api/report.html", target: "_blank", rel: "noopener" }, icon("file"), "Open the report");
  const result = el("aside", { class: "panel stack", "aria-label": "What the answers say" },
    interval.node, el("div", { class: "stack tight" }, left, bar), el("div", { class: "row wrap" }, report, begin));

  async function load(request) {
    if (busy) return;
    busy = true;
    page.setAttribute("aria-busy", "true");
    try {
      audit = await request();
      show();
    } catch (error) {
      complain(error);
      if (!audit) intro();
    } finally {
      busy = false;
      page.setAttribute("aria-busy", "false");
    }
  }
  const renew = () => get("audit");
  // Which question it answers: another tab may have answered this one already.
  const answer = (right) =>
    audit?.question && !audit.stale && load(() => post("audit/answer", { right, done: audit.done }).catch(missed));
  const takeBack = () => audit?.done && load(() => post("audit/undo"));
  const start = (number = 80) => load(() => post("audit", { answers: number }));

  function missed(error) {
    if (error.status !== 409) throw error;
    complain(error);
    return renew();
  }

  let said = ""; // of the introduction: it is made anew only where it says something else
  function intro() {
    const total = store.state.images.names.length;
    const { done, left } = looks(store.state.images); // questions and the report are about all
    const now = String(left);
    if (now === said && page.firstChild?.className === "nothing") return;
    said = now;
    if (left) {
      refill(page, nothing("eye", "A moment",
        `${done} of ${count(total, "image")} were looked at so far. Questions are drawn from all of them.`));
      return;
    }
    refill(page, nothing("done", "How good are these classes?",
      "You are shown one spot after the other and say whether its class is right. The spots are drawn so that few answers tell much.",
      el("div", { class: "row" }, button("Answer 40", () => start(40)), button("Answer 80 questions", () => start(80), { kind: "primary", title: "About five minutes" })),
      el("p", { class: "small" }, "80 answers take about five minutes and tell the accuracy to some nine points either way, 40 to some twelve. You may stop at any moment and go on later."),
      el("a", { class: "button plain", href: "/api/report.html", target: "_blank", rel: "noopener" }, icon("file"), "Open the report without answering")));
  }

  function show() {
    store.set({ audit });
    if (!audit.total) return intro();
    interval.show(audit.estimate);
    setText(left, `${audit.done} of ${audit.total} answered`);
    bar.set(audit.done / audit.total);
    answers.undo.disabled = !audit.done;
    if (audit.stale) return over("The classes were changed since", "Answers are about the classes as they were. Begin anew, and the estimate is about those of now.", button("Begin anew", () => start(audit.total), { kind: "primary" }));
    if (!audit.question) {
      const words = audit.estimate ? `Between ${points(audit.estimate.low)} and ${points(audit.estimate.high)} percent of all pixels have the right class.` : "";
      return over("That was the last question", `${words} Export the classes, or correct more images and ask again.`, button("Take the last answer back", takeBack, { kind: "plain", symbol: "undo" }));
    }
    question(audit.question);
    if (page.firstChild !== asking) refill(page, asking, result);
  }
  const points = (share) => Math.round(100 * share);

  function over(title, sentence, action) {
    refill(page, el("section", { class: "over panel" }, nothing("done", title, sentence, action)), result);
  }

  function question({ image, x, y, class: called, color }) {
    const { names, width, height } = store.state.images;
    swatch.style.background = color;
    setText(name, called);
    name.title = called;
    const half = CLOSE * Math.min(width[image], height[image]);
    const across = Math.min(0.5, half / width[image]);
    const down = Math.min(0.5, half / height[image]);
    // The close-up stays inside the image, so the ring is not always in its middle.
    const cx = Math.min(1 - across, Math.max(across, x));
    const cy = Math.min(1 - down, Math.max(down, y));
    close.src = url.crop(image, [cx - across, cy - down, cx + across, cy + down]);
    whole.src = url.photo(image);
    whole.parentElement.style.aspectRatio = `${width[image]} / ${height[image]}`;
    place(ring, (x - cx + across) / (2 * across), (y - cy + down) / (2 * down));
    place(small, x, y);
    setText(caption, fileName(names[image]));
    caption.title = names[image];
    setText(heard, `Is the spot in the ring ${called}, in ${fileName(names[image])}?`);
    close.alt = `Close-up of the ring in ${names[image]}`;
    whole.alt = `${names[image]}, whole: the ring is ${percent(x)} from the left and ${percent(y)} from the top`;
  }
  function place(node, x, y) {
    node.style.left = `${100 * x}%`;
    node.style.top = `${100 * y}%`;
  }

  viewKeys([
    { keys: ["y"], shown: "Y", does: "yes, it is", act: () => answer(true) },
    { keys: ["n"], shown: "N", does: "no, it is not", act: () => answer(false) },
    { keys: ["u"], shown: "U", does: "cannot tell", act: () => answer(null) },
    { keys: ["Backspace"], shown: "⌫", does: "take the last answer back", act: takeBack },
  ]);

  page.append(el("p", { class: "muted opening", role: "status" }, "Opening…"));
  load(renew);
  const offs = [
    store.on("classes", () => audit?.total && load(renew)),
    store.on("images", () => audit && !audit.total && intro()),
  ];
  return () => offs.forEach((off) => off());
}

export const trust = {
  title: "Trust",
  open: ({ server, images }) => server?.stage === "fitted" && Boolean(images),
  guide: ({ audit }) => {
    const next = { to: "export", label: "Export" };
    if (!audit?.total) return { text: "Answer yes or no for a few dozen spots, and you know how many pixels of all are right.", ...next };
    if (audit.question) return { text: "Look at the ring, press Y or N. The interval narrows with every answer; stop when it is narrow enough for you.", ...next };
    return { text: "You know now what the classes are worth. Take them to your tool.", ...next };
  },
  mount,
};
