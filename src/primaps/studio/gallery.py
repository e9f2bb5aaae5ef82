"""The classes as the page shows them: names, colors, shares, and crops that stand for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float

from primaps.classes.edits import node_classes
from primaps.classes.inventory import Inventory
from primaps.classes.legend import Class
from primaps.pictures.report import LEAST_SHARE, largest_piece
from primaps.studio.album import Album
from primaps.studio.edited import Edited

CROPS = 8
"""Most typical and most doubtful regions of a class that are shown."""


def hexadecimal(color: Sequence[int]) -> str:
    """A color as the page writes it.

    Examples:
        >>> hexadecimal((255, 128, 0))
        '#ff8000'
    """
    return "#" + bytes(color).hex()


def classes(inventory: Inventory, edited: Edited, shares: Float[np.ndarray, "n l"]) -> dict:
    """Everything that the page knows of the classes; see ``GET classes`` in docs/studio.md.

    Args:
        shares: per image that was looked at, of each part.
    """
    tree, edits, legend = inventory.tree, edited.edits, edited.legend()
    merges = tree.merges.tolist()
    nodes = [
        {
            "id": one.id,
            "name": one.name,
            "color": hexadecimal(one.color),
            "parts": list(one.parts),
            "children": merges[number - len(tree)] if number >= len(tree) else None,
        }
        for number, one in enumerate(node_classes(tree, edits))
    ]
    near = nearest(inventory, legend.classes)
    undo, redo = edited.next()
    return {
        "revision": edited.revision,
        "parts": len(tree),
        "tree": {"nodes": nodes, "merges": merges, "cost": tree.cost.tolist()},
        "classes": [
            {
                "id": one.id,
                "name": one.name,
                "color": hexadecimal(one.color),
                "parts": list(one.parts),
                "hidden": one.hidden,
                "named": one.named,
                **_figures(inventory, one, shares),
                "nearest": near[place],
            }
            for place, one in enumerate(legend.classes)
        ],
        "undo": undo,
        "redo": redo,
    }


def _figures(inventory: Inventory, one: Class, shares: Float[np.ndarray, "n l"]) -> dict[str, Any]:
    """Share and number of images: of masks until the images were looked at."""
    trust = inventory.trust[int(one.id)] if one.id.isdecimal() else None
    stability = None if trust is None or trust.stability != trust.stability else trust.stability
    if len(shares):
        own = shares[:, list(one.parts)].sum(1)
        return {
            "share": float(own.mean()),
            "images": int((own > 0).sum()),
            "stability": stability,
        }
    share = sum(inventory.shares[part] for part in one.parts)
    return {"share": share, "images": trust.images if trust else 0, "stability": stability}


def nearest(inventory: Inventory, found: Sequence[Class]) -> list[str | None]:
    """For each class the id of the one whose parts point most alike."""
    if len(found) < 2:
        return [None] * len(found)
    tree = inventory.tree
    weighted = tree.parts.float() * tree.masks[:, None]
    means = F.normalize(torch.stack([weighted[list(one.parts)].sum(0) for one in found]), dim=1)
    cosines = (means @ means.T).fill_diagonal_(-2)
    return [found[place].id for place in cosines.argmax(1).tolist()]


def crops(album: Album, edited: Edited, name: str) -> dict[str, list[dict[str, Any]]]:
    """Regions of a class, one of an image: most like the class, and least.

    Args:
        name: id or name of a class, or id of a node of the tree. One that nothing has any more, as
            after an undo in another tab, has no region.
    """
    classes = [*edited.legend().classes, *node_classes(edited.tree, edited.edits)]
    known = {key: one.parts for one in reversed(classes) for key in (one.name, one.id)}
    parts = list(known.get(name, ()))
    scored = []
    for number, summary in list(album.summaries.items()):
        counts = summary.counts[parts]
        if counts.sum() >= max(1, LEAST_SHARE * summary.counts.sum()):
            score = float((counts * summary.alike[parts]).sum() / counts.sum())
            scored.append((score, -number))
    scored.sort(reverse=True)
    ends = {"typical": scored[:CROPS], "doubtful": scored[CROPS:][::-1][:CROPS]}
    return {
        kind: [box for _, number in chosen if (box := _box(album, -number, parts))]
        for kind, chosen in ends.items()
    }


def _box(album: Album, number: int, parts: list[int]) -> dict[str, Any] | None:
    """Around the largest piece of a class in an image."""
    look = album.kept_look(number)
    if look is None:
        return None
    inside = np.isin(look.parts, parts)
    if not inside.any():
        return None
    height, width = inside.shape
    left, top, right, bottom = largest_piece(inside)[1]
    return {
        "image": number,
        "box": [left / width, top / height, right / width, bottom / height],
    }
