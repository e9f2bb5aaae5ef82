"""The classes as the page shows them: names, colors, shares, and crops of their regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from primaps.classes.legend import Class, node_classes
from primaps.classes.summary import ClassSummary
from primaps.pictures.report import MIN_SHARE, largest_piece
from primaps.studio.edits import ClassEditor
from primaps.studio.images import ImageCache

MAX_CROPS = 8
"""Maximum number of typical and of uncertain crops of a class."""


def hex_color(color: Sequence[int]) -> str:
    """Return a color in the notation of CSS.

    Examples:
        >>> hex_color((255, 128, 0))
        '#ff8000'
    """
    return "#" + bytes(color).hex()


def describe_classes(
    class_summary: ClassSummary, editor: ClassEditor, shares: Float[np.ndarray, "n l"]
) -> dict[str, Any]:
    """Return the answer to ``GET classes``, as docs/studio.md describes it.

    Args:
        shares: Share of each leaf in each analyzed image.
    """
    tree, edits, classes = class_summary.tree, editor.edits, editor.legend().classes
    merges = tree.merges.tolist()
    nodes = [
        {
            **_base(node),
            "children": merges[number - len(tree)] if number >= len(tree) else None,
        }
        for number, node in enumerate(node_classes(tree, edits))
    ]
    undo, redo = editor.next_actions()
    return {
        "revision": editor.revision,
        "leaves": len(tree),
        "tree": {"nodes": nodes, "merges": merges, "cost": tree.cost.tolist()},
        "classes": [
            {
                **_base(one),
                "hidden": one.hidden,
                **_metrics(class_summary, one, shares),
            }
            for one in classes
        ],
        "undo": undo,
        "redo": redo,
    }


def _base(one: Class) -> dict[str, Any]:
    color, leaves = hex_color(one.color), list(one.leaves)
    return {
        "id": one.id, "name": one.name, "named": one.named, "color": color, "leaves": leaves,
    }  # fmt: skip


def _metrics(
    class_summary: ClassSummary, one: Class, shares: Float[np.ndarray, "n l"]
) -> dict[str, Any]:
    """Return share, number of images and stability; from the masks until an image is analyzed."""
    statistics = class_summary.stability[int(one.id)] if one.id.isdecimal() else None
    stability = statistics.stability if statistics else np.nan
    if len(shares):
        share = shares[:, list(one.leaves)].sum(1)
        mean, images = float(share.mean()), int((share > 0).sum())
    else:
        mean = sum(class_summary.shares[leaf] for leaf in one.leaves)
        images = statistics.images if statistics else 0
    stable = None if np.isnan(stability) else stability
    return {"share": mean, "images": images, "stability": stable}


def class_crops(
    images: ImageCache, editor: ClassEditor, name: str
) -> dict[str, list[dict[str, Any]]]:
    """Find the most typical and the most uncertain regions of a class, one per image.

    Args:
        name: Id or name of a class, or id of a node of the tree. An unknown name has no
            regions: an undo in another tab may have removed the class.
    """
    classes = [*editor.legend().classes, *node_classes(editor.tree, editor.edits)]
    known = {key: one.leaves for one in reversed(classes) for key in (one.name, one.id)}
    leaves = list(known.get(name, ()))
    scored = []
    for number, summary in list(images.summaries.items()):
        counts = summary.counts[leaves]
        if counts.sum() >= max(1, MIN_SHARE * summary.counts.sum()):
            score = float((counts * summary.similarity[leaves]).sum() / counts.sum())
            scored.append((score, -number))
    scored.sort(reverse=True)
    ends = {"typical": scored[:MAX_CROPS], "uncertain": scored[MAX_CROPS:][::-1][:MAX_CROPS]}
    return {
        kind: [crop for _, number in chosen if (crop := _crop(images, -number, leaves))]
        for kind, chosen in ends.items()
    }


def _crop(images: ImageCache, number: int, leaves: list[int]) -> dict[str, Any] | None:
    """Return image and box of the largest region of a class in an image."""
    analysis = images.cached_analysis(number)
    if analysis is None:
        return None
    inside = np.isin(analysis.leaves, leaves)
    if not inside.any():
        return None
    height, width = inside.shape
    left, top, right, bottom = largest_piece(inside)[1]
    box = [left / width, top / height, right / width, bottom / height]
    return {"image": number, "box": box}
