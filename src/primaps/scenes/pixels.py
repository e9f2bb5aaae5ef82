"""From pixels that a network sees to pixels of the scene."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

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
        if view.scale == 1:
            rows, columns = slice(part.top - origin[0], part.bottom - origin[0]), slice(
                part.left - origin[1], part.right - origin[1])  # fmt: skip
            yield part, probabilities[:, rows, columns].argmax(0)
            continue
        y = positions(part.top, part.bottom, view.scale) - origin[0]
        x = positions(part.left, part.right, view.scale) - origin[1]
        best = interpolate(probabilities[0], y, x)
        winner = torch.zeros(best.shape, dtype=torch.int16, device=best.device)
        for channel in range(1, len(probabilities)):
            value = interpolate(probabilities[channel], y, x)
            winner[value > best] = channel
            best = torch.maximum(best, value)
        yield part, winner


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


def positions(begin: int, end: int, step: float) -> Float[Tensor, " n"]:
    """Where middles of pixels lie among the middles of places that are ``step`` pixels wide."""
    return torch.from_numpy(((np.arange(begin, end) + 0.5) / step - 0.5).astype(np.float64))


def interpolate(
    values: Float[Tensor, "h w"], rows: Float[Tensor, " n"], columns: Float[Tensor, " m"]
) -> Float[Tensor, "n m"]:
    """Bilinear interpolation at rows and columns that need not be whole; beyond the rim its values.

    Examples:
        >>> values = torch.tensor([[0.0, 4.0]])
        >>> interpolate(values, torch.tensor([0.0]), torch.tensor([-0.5, 0.25, 1.0])).tolist()
        [[0.0, 1.0, 4.0]]
    """
    for dim, places in ((0, rows), (1, columns)):
        last = values.shape[dim] - 1
        places = places.clamp(0, last)
        low = places.floor().long().clamp_max(max(0, last - 1))
        share = (places - low).to(values)
        low, share = low.to(values.device), share[:, None] if dim == 0 else share
        one, other = (values.index_select(dim, at) for at in (low, low + min(1, last)))
        values = torch.lerp(one, other, share)
    return values
