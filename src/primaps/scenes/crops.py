"""Where the crops of a scene lie that a network sees, and how much each says about its places."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from primaps.utils.errors import InputError


@dataclass(frozen=True)
class Crops:
    """Overlapping crops on a grid of features.

    Attributes:
        rows, columns: of the grid.
        side: rows and columns of a crop, in positions of the grid; less if the grid is smaller.
        tops, lefts: where crops begin; each top with each left is one.
    """

    rows: int
    columns: int
    side: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]


def plan_crops(height: int, width: int, patch: int, size: int, overlap: int) -> Crops:
    """Crops over an image, as few as have the overlap, at even distances.

    Args:
        height, width: of the image, in pixels that the network sees.
        patch: pixels per position of the grid.
        size: side of a crop in pixels; rounded to patches.
        overlap: of neighboring crops in pixels; rounded up to patches.

    Raises:
        InputError: crops overlap by more than half.

    Examples:
        >>> plan = plan_crops(32, 100, 8, 32, 8)
        >>> plan.side, plan.tops, plan.lefts
        ((4, 4), (0,), (0, 3, 6, 9))
    """
    cells, common = max(1, round(size / patch)), -(-overlap // patch)
    if not 0 <= 2 * common <= cells:
        raise InputError(f"--tile-overlap {overlap} must be between 0 and half of the size {size}")
    rows, columns = -(-height // patch), -(-width // patch)
    return Crops(
        rows,
        columns,
        (min(cells, rows), min(cells, columns)),
        starts(rows, cells, common),
        starts(columns, cells, common),
    )


def starts(length: int, side: int, overlap: int) -> tuple[int, ...]:
    """Where pieces of a line begin, the last one ending with it.

    Examples:
        >>> starts(10, 4, 1), starts(3, 4, 1), starts(11, 4, 0)
        ((0, 3, 6), (0,), (0, 4, 7))
    """
    last = length - side
    if last <= 0:
        return (0,)
    steps = math.ceil(last / (side - overlap))
    return (*(round(last * i / steps) for i in range(steps)), last)


def cosine_weights(side: tuple[int, int]) -> Float[Tensor, "n m"]:
    """Weight of each position of a crop: most in the middle, near nothing at the rim, where the
    network sees only one side of what is around.

    The squared sine of a half period per axis, at the middle of positions, so that none is zero.
    """
    rows, columns = (np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in side)
    return torch.from_numpy(np.outer(rows, columns).astype(np.float32))


def cores(length: int, begins: tuple[int, ...], side: int) -> list[tuple[int, int]]:
    """The part of a line that each piece keeps: neighbors meet in the middle of their overlap.

    Examples:
        >>> cores(10, (0, 3, 6), 4)
        [(0, 3), (3, 6), (6, 10)]
    """
    ends = [(left + side + right) // 2 for left, right in pairwise(begins)]
    return list(zip([0, *ends], [*ends, length], strict=True))
