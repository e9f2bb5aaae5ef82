"""Masks of polygons, for labels that come back as outlines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from primaps.exchange.errors import ExchangeError


def fill(
    rings: Sequence[Float[np.ndarray, "_ 2"]], height: int, width: int, outline: bool = False
) -> Bool[np.ndarray, "h w"]:
    """The pixels whose centers lie inside an odd number of rings.

    Args:
        rings: closed lines of points (x, y); pixel (0, 0) covers 0..1 in both.
        outline: draw the lines as well, through the pixels that they touch: for outlines that run
            through the outermost pixels instead of around them.

    Examples:
        >>> fill([np.array([[1.0, 0.0], [3.0, 0.0], [3.0, 1.0], [1.0, 1.0]])], 2, 4).tolist()
        [[False, True, True, False], [False, False, False, False]]
    """
    crossings = np.zeros((height, width + 1), np.int64)
    mask = np.zeros((height, width), bool)
    for ring in rings:
        begin, end = ring, np.roll(ring, -1, 0)
        if outline:
            _draw(mask, begin, end)
        swap = begin[:, 1] > end[:, 1]
        low, high = np.where(swap[:, None], end, begin), np.where(swap[:, None], begin, end)
        first, last = (np.ceil(one[:, 1] - 0.5).clip(0, height).astype(int) for one in (low, high))
        counts = last - first
        edge = np.repeat(np.arange(len(ring)), counts)
        row = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + first[edge]
        share = (row + 0.5 - low[edge, 1]) / (high - low)[edge, 1]
        x = low[edge, 0] + share * (high - low)[edge, 0]
        np.add.at(crossings, (row, np.ceil(x - 0.5).clip(0, width).astype(int)), 1)
    return mask | (crossings.cumsum(1)[:, :width] % 2 == 1)


def paint(
    labels: UInt8[np.ndarray, "h w"],
    rings: Sequence[Float[np.ndarray, "_ 2"]],
    value: int,
    outline: bool = False,
) -> None:
    """Give ``value`` to the pixels of :func:`fill`, looking at the box of the rings alone."""
    corners = np.concatenate(rings)
    limit = labels.shape[1], labels.shape[0]
    low = np.floor(corners.min(0)).clip(0, limit).astype(int)
    high = (np.floor(corners.max(0)) + 1).clip(low, limit).astype(int)
    part = labels[low[1] : high[1], low[0] : high[0]]
    if part.size:
        part[fill([ring - low for ring in rings], part.shape[0], part.shape[1], outline)] = value


def points(content: Any, where: str, least: int = 3) -> Float[np.ndarray, "n 2"]:
    """A ring from foreign numbers: x, y, x, y, ... or pairs.

    Raises:
        ExchangeError: they are no numbers, not finite, far outside of any image, or too few.
    """
    try:
        found = np.array(content, np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        raise ExchangeError(f"{where}: the points of a polygon must be pairs of numbers") from None
    if len(found) < least or not (np.abs(found) < 1e7).all():
        raise ExchangeError(
            f"{where}: a polygon needs at least {least} points, which lie in its image"
        )
    return found


def _draw(
    mask: Bool[np.ndarray, "h w"], begin: Float[np.ndarray, "n 2"], end: Float[np.ndarray, "n 2"]
) -> None:
    """Lines between the pixels that points lie in."""
    limit = np.array(mask.shape[::-1]) - 1
    begin, end = (np.floor(one).clip(0, limit) for one in (begin, end))
    count = np.abs(end - begin).max(1).astype(int) + 1
    edge = np.repeat(np.arange(len(begin)), count)
    step = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
    share = step / np.maximum(count - 1, 1)[edge]
    x, y = np.rint(begin[edge] + share[:, None] * (end - begin)[edge]).astype(int).T
    mask[y, x] = True
