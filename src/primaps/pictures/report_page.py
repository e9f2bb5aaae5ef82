"""The HTML page of a report: its text, style and drawings."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from PIL import Image

from primaps.classes.class_count import Evidence, choice_of
from primaps.classes.legend import Class
from primaps.classes.tree import Tree
from primaps.evaluation.audit import Estimate
from primaps.evaluation.protocol import Evaluation
from primaps.model import PriMaPsEM
from primaps.results import GENERATOR
from primaps.version import VERSION

STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #626b76; --line: #d9dde2;
  --paper: #ffffff; --panel: #f5f6f8; --accent: #0067a5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a0a8b2; --line: #3a4048;
  --paper: #16191d; --panel: #1f2329; --accent: #6db3e8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 68rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { max-width: 44rem; margin: .4rem 0; } .soft, figcaption, th { color: var(--soft); }
.verdict { border-left: .25rem solid var(--line); padding-left: .7rem; }
.verdict.good { border-color: #2e8b57; } .verdict.doubtful { border-color: #d08700; }
.verdict.failed { border-color: #c62828; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; margin: .8rem 0; }
a { color: var(--accent); }
.key { display: inline-block; width: .9em; height: .9em; border-radius: .2em;
  border: 1px solid var(--line); vertical-align: -.08em; margin-right: .45em; }
.class { border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem;
  margin: .8rem 0; background: var(--panel); break-inside: avoid; }
.class h3 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; margin: .2rem 0 .6rem;
  font-size: .9rem; font-variant-numeric: tabular-nums; }
.crops { display: grid; grid-template-columns: 1fr 1fr; gap: .4rem 1.2rem; }
.row { display: flex; flex-wrap: wrap; gap: .3rem; }
.row img { height: 6rem; width: auto; max-width: 100%; border-radius: .3rem; object-fit: cover; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr));
  gap: .8rem; }
figure { margin: 0; break-inside: avoid; }
figure img { width: 100%; height: auto; border-radius: .3rem; }
figcaption { font-size: .8rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
td, th { padding: .15rem .45rem; text-align: right; font-weight: normal; }
th.name { text-align: left; white-space: nowrap; } th.up { writing-mode: vertical-rl; }
@media (max-width: 40rem) { .crops { grid-template-columns: 1fr; } .row img { height: 3.6rem; }
  .images { grid-template-columns: 1fr 1fr; } }
@media print { body { max-width: none; padding: 0; font-size: 11px; } nav { display: none; }
  .row img { height: 3.6rem; } .images { grid-template-columns: repeat(5, 1fr); } }
"""
"""Style sheet for light and dark screens, phones and print."""


@dataclass
class ClassExamples:
    """Share and example regions of a class.

    Attributes:
        pixels: share of all pixels, in [0, 1].
        images: number of images with the class.
        typical, atypical: regions with the largest and the smallest mean similarity to the class:
            similarity (negative for ``atypical``), number of the image, and the region.
    """

    pixels: float = 0.0
    images: int = 0
    typical: list[tuple[float, int, Image.Image]] = field(default_factory=list)
    atypical: list[tuple[float, int, Image.Image]] = field(default_factory=list)


@dataclass
class ReportItem:
    """An image in the order by confidence: its mean margin, key and overlay."""

    margin: float
    key: str
    overlay: Image.Image


HOW = {
    "names": "by the names of the classes",
    "hungarian": "after one-to-one (Hungarian) matching of classes to labels",
    "majority": "after matching each class to its most frequent label",
    "none": "without matching of classes to labels",
}
"""How an evaluation matched classes to labels."""


def page(
    model: PriMaPsEM,
    classes: Sequence[Class],
    examples: Sequence[ClassExamples],
    items: Sequence[ReportItem],
    images: int,
    scores: Evaluation | None,
    accuracy: Estimate | None = None,
) -> str:
    """Return the HTML page.

    Args:
        model: fitted model.
        classes: shown classes in the order of their values.
        examples: examples of each class.
        items: images to show, in ascending order of confidence.
        images: number of images that were analyzed.
        scores: result of :func:`primaps.evaluate`, or None without labels.
        accuracy: estimate of an audit, or None without one.
    """
    found = model.class_summary_
    parts = [] if accuracy is None else [("accuracy", "Accuracy", _accuracy(accuracy))]
    parts += [("classes", "Classes", _classes(model, classes, examples))]
    if found is not None:
        parts.append(("tree", "Class tree", _tree(found.tree, classes)))
        if found.curve:
            parts.append(("number", "Number of classes", _curve(found.curve)))
    parts.append(("images", "Images", _images(items, images)))
    if scores is not None:
        parts.append(("scores", "Scores", _scores(scores, classes)))
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in parts)
    body = "".join(
        f'<section id="{key}"><h2>{title}</h2>{text}</section>' for key, title, text in parts
    )
    taught = "" if model.taught_ is None else f"; {escape(model.taught_.sentence)}"
    summary = (
        f"{len(classes)} classes, fitted to {model._images} images without labels{taught}; "
        f"{images} images in this report. Backbone {escape(model.backbone.name)}, primaps "
        f"{VERSION}."
    )
    verdict = model.verdict
    judged = ""
    if verdict is not None:
        judged = f'<p class="verdict {verdict.level}">The fit is {escape(str(verdict))}.</p>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="generator" content="{GENERATOR}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Classes of a model</title><style>{STYLE}</style></head><body>"
        f'<h1>Classes of a model</h1><p class="soft">{summary}</p>{judged}<nav>{links}</nav>{body}'
        "</body></html>\n"
    )


def image_tag(image: Image.Image, text: str) -> str:
    """Return an HTML image element with the image inside and an alternative text."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=82)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(text)}" {size} loading="lazy">'


def color_key(one: Class) -> str:
    """Return an HTML element in the color of a class."""
    return '<span class="key" style="background: rgb({}, {}, {})"></span>'.format(*one.color)


def _classes(model: PriMaPsEM, classes: Sequence[Class], examples: Sequence[ClassExamples]) -> str:
    text = (
        "<p>Example regions come from different images; pixels outside of the class are pale. "
        "Left: the regions most similar to the class. Right: the least similar ones."
    )
    if model.taught_ is None:
        text += (
            " Stability is the share of a class that is found again in other images of the "
            "collection: classes above 0.75 are reproducible, classes below 0.5 are not."
        )
    text += "</p>"
    stability = model.class_summary_.stability if model.class_summary_ else ()
    names = {one.id: one.name for one in classes}
    for value in sorted(range(len(classes)), key=lambda k: -examples[k].pixels):
        one, found = classes[value], examples[value]
        facts = [f"value {value}", f"id {one.id}", f"{found.pixels:.1%} of the pixels"]
        facts.append(f"in {found.images} image{'s' * (found.images != 1)}")
        if one.id.isdecimal() and stability:
            own = stability[int(one.id)]
            if own.stability == own.stability:  # taught classes have none
                facts.append(f"stability {own.stability:.2f}")
            if own.nearest >= 0:
                nearest = names.get(str(own.nearest), f"class {own.nearest}")
                facts.append(f"nearest: {nearest} ({own.cosine:.2f})")
        rows = ""
        for title, regions in (("typical", found.typical), ("least typical", found.atypical)):
            row = "".join(
                image_tag(region, f"{title} region of {one.name}")
                for _, _, region in sorted(regions, key=lambda r: (-r[0], r[1]))
            )
            rows += f'<div><div class="soft">{title}</div><div class="row">{row}</div></div>'
        shown = f'<div class="crops">{rows}</div>' if found.typical else ""
        listed = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
        text += f'<article class="class"><h3>{color_key(one)}{escape(one.name)}</h3>'
        text += f'<div class="facts">{listed}</div>{shown}</article>'
    return text


def _tree(tree: Tree, classes: Sequence[Class]) -> str:
    """Draw the merges of classes from left to right."""
    order = _leaf_order(tree)
    names = {one.id: one.name for one in classes}
    inside = tree.owner.bincount(minlength=tree.classes).tolist()
    row, left, right = 24, 260, 420
    height = row * len(order) + 36
    place = {node: (float(left), row * (at + 0.5)) for at, (node, _) in enumerate(order)}
    lines, texts = [], []
    for node, k in order:
        name = names.get(str(k), f"class {k}")
        label = escape(name if len(name) < 26 else name[:25] + "…")
        x, y = place[node]
        texts.append(
            f'<text x="{x - 8}" y="{y + 4}" text-anchor="end" font-size="13">{label} '
            f'<tspan opacity=".6">{inside[k]}</tspan></text>'
        )
    first = 2 * len(tree) - tree.classes
    for step, pair in enumerate(tree.merges[len(tree) - tree.classes :].tolist()):
        x = left + right * (step + 1) / tree.classes
        (x1, y1), (x2, y2) = (place[node] for node in pair)
        lines.append(f"M{x1:.0f} {y1:.0f}H{x:.0f}V{y2:.0f}H{x2:.0f}")
        place[first + step] = (x, (y1 + y2) / 2)
    ticks = []
    for step in range(0, tree.classes - 1, max(1, tree.classes // 9)):
        middle = left + right * (step + 0.5) / tree.classes
        ticks.append(
            f'<text x="{middle:.0f}" y="{height - 8}" text-anchor="middle" font-size="12" '
            f'opacity=".6">{tree.classes - step}</text>'
        )
    return (
        "<p>Read from left to right: the classes that merge first if fewer are requested. Numbers "
        "at the bottom: remaining classes. Number behind a name: leaves that the class can be "
        f"split into ({len(tree)} in total). <code>primaps predict --classes N</code> cuts the "
        "tree at any number.</p>"
        f'<div class="wide"><svg viewBox="0 0 {left + right + 10} {height}" role="img" '
        f'style="min-width: 32rem; max-width: 46rem" aria-label="class tree">'
        f'<path d="{"".join(lines)}" fill="none" stroke="var(--accent)" stroke-width="1.6"/>'
        f"{''.join(texts)}{''.join(ticks)}</svg></div>"
    )


def _leaf_order(tree: Tree) -> list[tuple[int, int]]:
    """Return the nodes of the K classes and their numbers, in an order without crossing merges."""
    roots = {node: k for k, node in enumerate(tree.nodes(tree.classes))}

    def walk(node: int) -> list[tuple[int, int]]:
        if node in roots:
            return [(node, roots[node])]
        return [one for half in tree.merges[node - len(tree)].tolist() for one in walk(half)]

    return walk(2 * len(tree) - 2)


def _curve(curve: Sequence[Evidence]) -> str:
    """Draw stability over K with its standard error."""
    import math

    low, high = math.log(curve[0].classes), math.log(curve[-1].classes)
    width, height = 620, 240

    def at(one: Evidence, value: float) -> str:
        x = 44 + (width - 60) * (math.log(one.classes) - low) / max(high - low, 1e-9)
        return f"{x:.0f} {(height - 44) * (1 - max(0.0, value)) + 10:.0f}"

    path = "M" + "L".join(at(one, one.stability) for one in curve)
    bars = "".join(
        f"M{at(one, one.stability - one.error)}L{at(one, one.stability + one.error)}"
        for one in curve
    )
    labels = "".join(
        f'<text x="{at(one, 0).split()[0]}" y="{height - 12}" text-anchor="middle" '
        f'font-size="12">{one.classes}</text>'
        for one in curve
    )
    axis = "".join(
        f'<text x="36" y="{(height - 44) * (1 - v) + 14:.0f}" text-anchor="end" '
        f'font-size="12">{v}</text>'
        for v in (0, 0.5, 1)
    )
    choice = choice_of(curve)
    return (
        "<p>Agreement of two halves of the images on the classes, corrected for chance "
        f"(1 = complete). Proposed: {choice.coarse} (coarse), {choice.middle} (middle), "
        f"{choice.fine} (fine). There is no single correct number of classes.</p>"
        f'<div class="wide"><svg viewBox="0 0 {width} {height}" role="img" '
        f'style="max-width: 40rem" aria-label="stability over the number of classes">'
        f'<path d="{path}" fill="none" stroke="var(--accent)" stroke-width="2"/>'
        f'<path d="{bars}" stroke="var(--accent)"/>{labels}{axis}</svg></div>'
    )


def _images(items: Sequence[ReportItem], images: int) -> str:
    text = (
        "<p>Images in ascending order of confidence: the mean probability of the best class minus "
        "that of the second. Low confidence shows where to check, not that a result is wrong.</p>"
    )
    if len(items) < images:
        half = len(items) // 2
        text += f'<p class="soft">The first {half} and the last {half} of {images} images.</p>'
    return (
        text
        + '<div class="images">'
        + "".join(
            f"<figure>{image_tag(item.overlay, item.key)}"
            f"<figcaption>{escape(item.key)}, {item.margin:.2f}</figcaption></figure>"
            for item in items
        )
        + "</div>"
    )


def _accuracy(found: Estimate) -> str:
    return (
        f"<p><b>{found.accuracy:.0%}</b> of all pixels have the correct class, between "
        f"{found.low:.0%} and {found.high:.0%} (95% confidence interval, from {found.answers} "
        "answers of an audit).</p>"
    )


def _scores(scores: Evaluation, classes: Sequence[Class]) -> str:
    text = (
        f"<p>Accuracy {scores.accuracy:.1%}, mean IoU {scores.mean_iou:.1%} on "
        f"{scores.images} images, {HOW[scores.options.matching]}.</p>"
    )
    counts = scores.confusion
    columns = [one.name for one in classes] + ["hidden"] * (len(counts[0]) - len(classes))
    head = "".join(f'<th class="up">{escape(name)}</th>' for name in columns)
    rows = ""
    for (name, iou), row in zip(scores.iou.items(), counts, strict=True):
        total = sum(row)
        cells = "".join(
            f'<td style="background: rgb(0 103 165 / {value / total:.2f})">'
            f"{100 * value / total:.0f}</td>"
            if total and value / total >= 0.005
            else "<td></td>"
            for value in row
        )
        shown = "-" if iou is None else f"{100 * iou:.0f}"
        rows += f'<tr><th class="name">{escape(name)}</th><td>{shown}</td>{cells}</tr>'
    return text + (
        '<p class="soft">Rows: labels with their IoU in %. Columns: predicted classes in % of the '
        "pixels of the label.</p>"
        f'<div class="wide"><table><tr><th></th><th class="up">IoU</th>{head}</tr>{rows}</table>'
        "</div>"
    )
