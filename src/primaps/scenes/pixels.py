"""From pixels that a network sees to pixels of the scene."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from primaps.em.pixels import largest_channel_at
from primaps.scenes.source import Box
from primaps.scenes.view import View

BLOCK = 1024
"""Side in pixels of what is scaled to the size of the scene at once."""


def scene_labels(
    view: View,
    probabilities: Float[Tensor, "k h w"],
    origin: tuple[int, int],
    core: Box,
) -> Iterator[tuple[Box, Integer[Tensor, "bh bw"]]]:
    """The largest channel at every pixel of the scene, block by block.

    Args:
        probabilities: of a tile of the view that begins at ``origin``.
        core: what is wanted of it, in pixels of the view.
    """
    for part in scene_blocks(view, core):
        y = positions(part.top, part.bottom, view.scale) - origin[0]
        x = positions(part.left, part.right, view.scale) - origin[1]
        yield part, largest_channel_at(probabilities, y, x)


def scene_blocks(view: View, core: Box) -> Iterator[Box]:
    """The pixels of the scene whose middles lie in a box of the view, in blocks."""
    top, bottom = (_edge(end, view.scale, view.height, view.scene.height) for end in core[:2])
    left, right = (_edge(end, view.scale, view.width, view.scene.width) for end in core[2:])
    for y, x in product(range(top, bottom, BLOCK), range(left, right, BLOCK)):
        yield Box(y, min(bottom, y + BLOCK), x, min(right, x + BLOCK))


def _edge(end: int, scale: float, view: int, scene: int) -> int:
    return scene if end >= view else min(scene, math.ceil(end * scale - 0.5))


def scene_valid(
    view: View, part: Box, valid: Bool[np.ndarray, "h w"], top: int
) -> Bool[np.ndarray, "bh bw"]:
    """Which pixels of a block of the scene have a value; ``valid`` of rows of the view from
    ``top`` says so if both are of one size."""
    if view.scene.whole:
        return np.ones((part.bottom - part.top, part.right - part.left), bool)
    if view.scale == 1:
        return valid[part.top - top : part.bottom - top, part.left : part.right]
    return view.scene.read(0, part)[1]


def positions(begin: int, end: int, step: float) -> Float[np.ndarray, " n"]:
    """Where middles of pixels lie among the middles of places that are ``step`` pixels wide."""
    return (np.arange(begin, end) + 0.5) / step - 0.5
