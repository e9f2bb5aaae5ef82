"""The page of a report: HTML, its style, and its drawings."""

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
from primaps.evaluation.protocol import Evaluation
from primaps.model import PriMaPsEM
from primaps.pictures.report_style import STYLE
from primaps.results import GENERATOR
from primaps.version import VERSION


@dataclass
class Seen:
    """What the images say of a class.

    Attributes:
        pixels: share of all pixels looked at.
        images: with the class.
        typical, odd: crops with the largest and smallest mean cosine to the class.
    """

    pixels: float = 0.0
    images: int = 0
    typical: list[tuple[float, int, Image.Image]] = field(default_factory=list)
    odd: list[tuple[float, int, Image.Image]] = field(default_factory=list)


@dataclass
class Look:
    """An image in the order by doubt."""

    margin: float
    key: str
    picture: Image.Image


def page(
    model: PriMaPsEM,
    classes: Sequence[Class],
    seen: Sequence[Seen],
    looks: Sequence[Look],
    images: int,
    scores: Evaluation | None,
) -> str:
    """The whole page.

    Args:
        classes: shown ones, in the order of their values.
        seen: what the images say of each.
        looks: images, the least sure first.
        images: how many were looked at.
        scores: of :func:`primaps.evaluate`, with labels.
    """
    found = model.class_summary_
    parts = [("classes", "Classes", _classes(model, classes, seen))]
    if found is not None:
        parts.append(("tree", "Tree", _tree(found.tree, classes)))
        if found.curve:
            parts.append(("number", "How many classes", _curve(found.curve)))
    parts.append(("images", "Images", _images(looks, images)))
    if scores is not None:
        parts.append(("scores", "Scores", _scores(scores, classes)))
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in parts)
    body = "".join(
        f'<section id="{key}"><h2>{title}</h2>{text}</section>' for key, title, text in parts
    )
    about = (
        f"{len(classes)} classes, found in {model._images} images without labels; {images} images "
        f"looked at. Backbone {escape(model.backbone.name)}, primaps {VERSION}."
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="generator" content="{GENERATOR}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Classes of a model</title><style>{STYLE}</style></head><body>"
        f'<h1>Classes of a model</h1><p class="soft">{about}</p><nav>{links}</nav>{body}'
        "</body></html>\n"
    )


def picture(image: Image.Image, about: str) -> str:
    """An image as HTML with its bytes inside."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=82)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(about)}" {size} loading="lazy">'


def key(one: Class) -> str:
    """The color of a class."""
    return '<span class="key" style="background: rgb({}, {}, {})"></span>'.format(*one.color)


def _classes(model: PriMaPsEM, classes: Sequence[Class], seen: Sequence[Seen]) -> str:
    text = (
        "<p>Crops are regions of the class in different images, what is around them pale: "
        "on the left those most like the class, on the right those least like it. Stability is how "
        "much of a class comes back when it is sought in other images of the collection: above "
        "0.75 it does, below 0.5 it does not.</p>"
    )
    trust = model.class_summary_.stability if model.class_summary_ else ()
    names = {one.id: one.name for one in classes}
    for value in sorted(range(len(classes)), key=lambda k: -seen[k].pixels):
        one, about = classes[value], seen[value]
        facts = [f"value {value}", f"id {one.id}", f"{about.pixels:.1%} of the pixels"]
        facts.append(f"in {about.images} image{'s' * (about.images != 1)}")
        if one.id.isdecimal() and trust:
            own = trust[int(one.id)]
            facts.append(f"stability {own.stability:.2f}")
            if own.nearest >= 0:
                near = names.get(str(own.nearest), f"class {own.nearest}")
                facts.append(f"nearest: {near} ({own.cosine:.2f})")
        rows = ""
        for title, crops in (("typical", about.typical), ("least typical", about.odd)):
            row = "".join(
                picture(crop, f"{title} crop of {one.name}")
                for _, _, crop in sorted(crops, key=lambda c: (-c[0], c[1]))
            )
            rows += f'<div><div class="soft">{title}</div><div class="row">{row}</div></div>'
        shown = f'<div class="crops">{rows}</div>' if about.typical else ""
        listed = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
        text += f'<article class="class"><h3>{key(one)}{escape(one.name)}</h3>'
        text += f'<div class="facts">{listed}</div>{shown}</article>'
    return text


def _tree(tree: Tree, classes: Sequence[Class]) -> str:
    """Which classes merge first: one line each, joined from left to right."""
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
        f"<p>Read from the left: which classes become one when fewer are wanted (numbers below: "
        f"classes left; behind each name: parts that it can be split into, {len(tree)} in all). "
        "<code>primaps predict --classes N</code> cuts anywhere between.</p>"
        f'<div class="wide"><svg viewBox="0 0 {left + right + 10} {height}" role="img" '
        f'style="min-width: 32rem; max-width: 46rem" aria-label="tree of classes">'
        f'<path d="{"".join(lines)}" fill="none" stroke="var(--accent)" stroke-width="1.6"/>'
        f"{''.join(texts)}{''.join(ticks)}</svg></div>"
    )


def _leaf_order(tree: Tree) -> list[tuple[int, int]]:
    """Nodes of the model's classes and their numbers, so that merges do not cross."""
    roots = {node: k for k, node in enumerate(tree.nodes(tree.classes))}

    def walk(node: int) -> list[tuple[int, int]]:
        if node in roots:
            return [(node, roots[node])]
        return [one for half in tree.merges[node - len(tree)].tolist() for one in walk(half)]

    return walk(2 * len(tree) - 2)


def _curve(curve: Sequence[Evidence]) -> str:
    """Stability over K with its error."""
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
        f"<p>How far two halves of the images agree on the classes, less chance (1 = complete). "
        f"Proposed: {choice.coarse} (coarse), {choice.middle} (middle), {choice.fine} (fine). "
        "No number of classes is the true one.</p>"
        f'<div class="wide"><svg viewBox="0 0 {width} {height}" role="img" '
        f'style="max-width: 40rem" aria-label="stability over the number of classes">'
        f'<path d="{path}" fill="none" stroke="var(--accent)" stroke-width="2"/>'
        f'<path d="{bars}" stroke="var(--accent)"/>{labels}{axis}</svg></div>'
    )


def _images(looks: Sequence[Look], images: int) -> str:
    text = (
        "<p>The least sure first, by how far the first class of a pixel leads the second. This "
        "tells where to look, not how good an image is.</p>"
    )
    if len(looks) < images:
        half = len(looks) // 2
        text += f'<p class="soft">The first and the last {half} of {images}.</p>'
    return (
        text
        + '<div class="images">'
        + "".join(
            f"<figure>{picture(look.picture, look.key)}"
            f"<figcaption>{escape(look.key)}, {look.margin:.2f}</figcaption></figure>"
            for look in looks
        )
        + "</div>"
    )


def _scores(scores: Evaluation, classes: Sequence[Class]) -> str:
    text = (
        f"<p>Accuracy {scores.accuracy:.1%}, mean IoU {scores.mean_iou:.1%} on "
        f"{scores.images} images, after matching classes to labels one to one.</p>"
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
        '<p class="soft">Per label: its IoU in %, and where its pixels go in % of the label.</p>'
        f'<div class="wide"><table><tr><th></th><th class="up">IoU</th>{head}</tr>{rows}</table>'
        "</div>"
    )
