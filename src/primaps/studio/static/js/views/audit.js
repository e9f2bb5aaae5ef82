// Audit: the user confirms or rejects the class of sampled pixels, from which the accuracy is estimated.

import { get, post, url } from "../api.js";
import { button, el, icon, meter, emptyState, refill, setText } from "../dom.js";
import { count, fileName, percent } from "../format.js";
import { viewKeys } from "../keyboard.js";
import { analyzed } from "../live.js";
import { notifyError } from "../notices.js";
import { store } from "../store.js";
import { createInterval } from "./audit/interval.js";

const CLOSE = 0.22; // half the side of the close-up, as a fraction of the shorter image side

const unnamed = () => store.state.classes?.classes.filter((one) => !one.hidden && !one.named).length ?? 0;

/** Creates a warning about classes without a name, whose questions are hard to answer; null if there are none. */
function unnamedNote() {
  const open = unnamed();
  if (!open) return null;
  const verb = open === 1 ? "class has" : "classes have";
  return el("div", { class: "message" }, icon("warn"), el("div", {},
    `${open} ${verb} no name: a question would be “Is the point in the ring class 3?”. `, el("a", { href: "#classes" }, "Name the classes first"), "."));
}

function mount(root) {
  const page = el("div", { class: "audit" });
  root.append(page);
  let current = null;
  let busy = false;
  const interval = createInterval();

  const swatch = el("span", { class: "swatch" });
  const name = el("strong", { class: "ellipsis", dir: "auto" });
  // A screen reader reads one sentence, with the image: two questions may be about the same class.
  const spoken = el("span", { class: "visually-hidden", "aria-live": "polite" });
  const ask = el("h2", { id: "question" }, spoken,
    el("span", { class: "question", "aria-hidden": true }, "Is the point in the ring ", el("span", { class: "row asked" }, swatch, name), "?"));
  const close = el("img", { alt: "" });
  const whole = el("img", { alt: "" });
  const ring = el("div", { class: "ring" });
  const small = el("div", { class: "ring small-ring" });
  const caption = el("figcaption", { class: "small muted ellipsis" });
  const left = el("p", { class: "muted", role: "status" });
  const bar = meter("Answers");
  const answers = {
    right: button("Yes", () => answer(true), { kind: "answer", symbol: "done", key: "Y" }),
    wrong: button("No", () => answer(false), { kind: "answer", symbol: "close", key: "N" }),
    unsure: button("Not sure", () => answer(null), { kind: "plain", key: "U" }),
    undo: button("Undo last answer", () => takeBack(), { kind: "plain", symbol: "undo", key: "Backspace" }),
  };
  const asking = el("section", { class: "asking", "aria-labelledby": "question" },
    ask,
    el("div", { class: "views" },
      el("figure", { class: "close" }, el("div", { class: "frame" }, close, ring)),
      el("figure", { class: "whole" }, el("div", { class: "frame" }, whole, small), caption)),
    el("div", { class: "answers" }, answers.right, answers.wrong),
    el("div", { class: "row apart" }, answers.unsure, answers.undo));
  const begin = button("Start over…", () => startOver(), { title: "Sample new questions; the answers are kept and can be restored", "aria-haspopup": "dialog" });
  const restore = button("Restore", () => load(() => post("audit/restore")), { symbol: "undo" });
  const report = el("a", { class: "button", href: "/api/report.html", target: "_blank", rel: "noopener" }, icon("file"), "Open report");
  const result = el("aside", { class: "panel stack", "aria-label": "Estimate" },
    interval.node, el("div", { class: "stack tight" }, left, bar), el("div", { class: "row wrap" }, report, begin, restore));

  async function load(request) {
    if (busy) return;
    busy = true;
    page.setAttribute("aria-busy", "true");
    try {
      current = await request();
      show();
    } catch (error) {
      notifyError(error);
      if (!current) intro();
    } finally {
      busy = false;
      page.setAttribute("aria-busy", "false");
    }
  }
  const renew = () => get("audit");
  // `done` identifies the question: another tab may have answered it.
  const answer = (right) =>
    current?.question && !current.stale && load(() => post("audit/answer", { right, done: current.done }).catch(missed));
  const takeBack = () => current?.done && load(() => post("audit/undo"));
  const start = (number) => load(() => post("audit", { answers: number }));

  /** Asks before new questions replace answers. */
  function startOver() {
    if (!current.done) return start(current.total);
    const dialog = el("dialog", { "aria-label": "Start over", on: { close: () => dialog.remove() } });
    dialog.append(
      el("h2", {}, "Start over?"),
      el("p", {}, `New questions replace ${count(current.done, "answer")}. Answers are kept and can be restored.`),
      unnamedNote(),
      el("div", { class: "row wrap" },
        button(`Start over with ${count(current.total, "question")}`, () => {
          dialog.close();
          start(current.total);
        }, { kind: "primary" }),
        button("Cancel", () => dialog.close(), { autofocus: true })));
    document.body.append(dialog);
    dialog.showModal();
  }

  function missed(error) {
    if (error.status !== 409) throw error;
    notifyError(error);
    return renew();
  }

  let introduced = ""; // key of the introduction, which is rebuilt only when it changes
  function intro() {
    const total = store.state.images.names.length;
    const { done, left } = analyzed(store.state.images); // an audit needs all images
    const now = `${left} ${unnamed()}`;
    if (now === introduced && page.firstChild?.className === "empty-state") return;
    introduced = now;
    if (left) {
      refill(page, emptyState("eye", "Analyzing images",
        `${done} of ${count(total, "image")} analyzed. An audit samples its questions from all images.`));
      return;
    }
    refill(page, emptyState("done", "Measure the accuracy",
      "You see one pixel after the other and decide whether its class is correct. Stratified sampling keeps the number of answers small.",
      unnamedNote(),
      el("div", { class: "row" }, button("Answer 40", () => start(40)), button("Answer 80 questions", () => start(80), { kind: "primary", title: "About five minutes" })),
      el("p", { class: "small" }, "80 answers take about five minutes and estimate the accuracy within about 9 points, 40 answers within about 12. You can stop at any time and continue later."),
      el("a", { class: "button plain", href: "/api/report.html", target: "_blank", rel: "noopener" }, icon("file"), "Open report without an audit")));
  }

  function show() {
    store.set({ audit: current });
    if (!current.total) return intro();
    interval.show(current.estimate);
    setText(left, `${current.done} of ${current.total} answered`);
    bar.set(current.done / current.total);
    answers.undo.disabled = !current.done;
    restore.hidden = !current.earlier;
    if (current.earlier) restore.lastChild.textContent = `Restore the earlier ${count(current.earlier.done, "answer")}`;
    if (current.stale) return over("The classes have changed", "The answers are about the earlier classes. Start over to estimate the accuracy of the current classes; undo the change of the classes to continue.", button("Start over…", startOver, { kind: "primary", "aria-haspopup": "dialog" }));
    if (!current.question) {
      const words = current.estimate ? `${points(current.estimate.low)}% to ${points(current.estimate.high)}% of all pixels have the correct class (95% confidence interval).` : "";
      return over("Audit complete", `${words} Export the classes, or correct more images and start over.`, button("Undo last answer", takeBack, { kind: "plain", symbol: "undo" }));
    }
    question(current.question);
    if (page.firstChild !== asking) refill(page, asking, result);
  }
  const points = (share) => Math.round(100 * share);

  function over(title, sentence, action) {
    refill(page, el("section", { class: "over panel" }, emptyState("done", title, sentence, action)), result);
  }

  function question({ image, x, y, class: called, color }) {
    const { names, width, height } = store.state.images;
    swatch.style.background = color;
    setText(name, called);
    name.title = called;
    const half = CLOSE * Math.min(width[image], height[image]);
    const across = Math.min(0.5, half / width[image]);
    const down = Math.min(0.5, half / height[image]);
    // The close-up stays inside the image: the ring is not always in its center.
    const cx = Math.min(1 - across, Math.max(across, x));
    const cy = Math.min(1 - down, Math.max(down, y));
    close.src = url.crop(image, [cx - across, cy - down, cx + across, cy + down]);
    whole.src = url.image(image);
    whole.parentElement.style.aspectRatio = `${width[image]} / ${height[image]}`;
    place(ring, (x - cx + across) / (2 * across), (y - cy + down) / (2 * down));
    place(small, x, y);
    caption.dir = "auto";
    setText(caption, fileName(names[image]));
    caption.title = names[image];
    setText(spoken, `Is the point in the ring ${called}, in ${fileName(names[image])}?`);
    close.alt = `Close-up of the point in ${names[image]}`;
    whole.alt = `Whole image ${names[image]}: the point is ${percent(x)} from the left and ${percent(y)} from the top`;
  }
  function place(node, x, y) {
    node.style.left = `${100 * x}%`;
    node.style.top = `${100 * y}%`;
  }

  viewKeys([
    { keys: ["y"], shown: "Y", does: "correct", act: () => answer(true) },
    { keys: ["n"], shown: "N", does: "wrong", act: () => answer(false) },
    { keys: ["u"], shown: "U", does: "not sure", act: () => answer(null) },
    { keys: ["Backspace"], shown: "⌫", does: "undo last answer", act: takeBack },
  ]);

  page.append(el("p", { class: "muted opening", role: "status" }, "Opening…"));
  load(renew);
  const offs = [
    store.on("classes", () => current?.total && load(renew)),
    store.on("images classes", () => current && !current.total && intro()),
  ];
  return () => offs.forEach((off) => off());
}

export const audit = {
  title: "Audit",
  open: ({ server, images }) => server?.stage === "fitted" && Boolean(images),
  guide: ({ audit }) => {
    const next = { to: "export", label: "Export" };
    if (!audit?.total) return { text: "Answer a few dozen yes-or-no questions to estimate the accuracy on all pixels.", ...next };
    if (audit.stale) return { text: "The classes have changed since the audit. Start over to measure the current classes.", ...next };
    if (audit.question) return { text: "Press Y if the class of the point is correct, N if not. The interval narrows with every answer; you can stop at any time.", ...next };
    return { text: "The audit is complete. Export the classes to your tool.", ...next };
  },
  mount,
};
