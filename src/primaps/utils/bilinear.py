"""Bilinear interpolation with ``align_corners=False``: of logits, and of the winning class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from numpy.typing import NDArray
from torch import Tensor


def upsample(
    logits: Float[Tensor, "b k h w"], size: tuple[int, int] | torch.Size
) -> Float[Tensor, "b k H W"]:
    """Interpolate to ``size`` (height, width)."""
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def interpolate(
    values: Float[Tensor, "h w"],
    rows: Float[np.ndarray, " n"],
    columns: Float[np.ndarray, " m"],
) -> Float[Tensor, "n m"]:
    """Interpolate at fractional rows and columns; coordinates outside are clamped to the border.

    Examples:
        >>> values = torch.tensor([[0.0, 4.0]])
        >>> interpolate(values, np.array([0.0]), np.array([-0.5, 0.25, 1.0])).tolist()
        [[0.0, 1.0, 4.0]]
    """
    for dim, coordinates in ((0, rows), (1, columns)):
        low, high, share = (
            torch.from_numpy(each).to(values.device)
            for each in neighbors(coordinates, values.shape[dim])
        )
        share = share.to(values.dtype)
        values = torch.lerp(
            values.index_select(dim, low),
            values.index_select(dim, high),
            share[:, None] if dim == 0 else share,
        )
    return values


def largest_channel(
    probabilities: Float[Tensor, "k h w"], size: tuple[int, int]
) -> Integer[Tensor, "H W"]:
    """Return the channel with the largest value at ``size``; the first one if several are equal.

    Examples:
        >>> largest_channel(torch.eye(2).view(2, 1, 2), (1, 4)).tolist()
        [[0, 0, 1, 1]]
    """
    rows, columns = map(centers, probabilities.shape[1:], size)
    return largest_channel_at(probabilities, rows, columns)


def largest_channel_at(
    probabilities: Float[Tensor, "k h w"],
    rows: Float[np.ndarray, " n"],
    columns: Float[np.ndarray, " m"],
) -> Integer[Tensor, "n m"]:
    """:func:`largest_channel` at fractional rows and columns, clamped to the border.

    To save memory, one row (on the CPU) or one channel is computed at a time.
    """
    if probabilities.device.type != "cpu":
        return largest_channel_at_torch(probabilities, rows, columns)
    maps = probabilities.detach().float().contiguous().numpy()
    winner = np.empty((len(rows), len(columns)), np.int16)
    down, across = neighbors(rows, maps.shape[1]), neighbors(columns, maps.shape[2])
    _compiled_largest()(maps, *down, *across, winner)
    return torch.from_numpy(winner)


def largest_channel_at_torch(
    probabilities: Float[Tensor, "k h w"],
    rows: Float[np.ndarray, " n"],
    columns: Float[np.ndarray, " m"],
) -> Integer[Tensor, "n m"]:
    """:func:`largest_channel_at` in torch operations."""
    best = interpolate(probabilities[0], rows, columns)
    winner = torch.zeros(best.shape, dtype=torch.int16, device=best.device)
    for channel in range(1, len(probabilities)):
        value = interpolate(probabilities[channel], rows, columns)
        winner[value > best] = channel
        best = torch.maximum(best, value)
    return winner


@cache
def _compiled_largest() -> Any:
    """Compile on first use, because numba takes half a second to import."""
    from primaps.utils.compiled import compiled

    @compiled
    def largest(maps, y0, y1, fy, x0, x1, fx, winner):  # type: ignore[no-untyped-def]
        classes, width = len(maps), len(x0)
        rows = np.empty((2, classes, width), np.float32)  # the two source rows in use, upsampled
        held = np.full(2, -1)
        top, best = np.empty(width, np.float32), np.empty(width, np.int16)
        for i in range(len(y0)):
            for y in (y0[i], y1[i]):
                if held[y % 2] != y:
                    held[y % 2] = y
                    for k in range(classes):
                        row, target = maps[k, y], rows[y % 2, k]
                        for j in range(width):
                            target[j] = row[x0[j]] + fx[j] * (row[x1[j]] - row[x0[j]])
            low, high, blend = rows[y0[i] % 2], rows[y1[i] % 2], fy[i]
            for k in range(classes):
                a, b = low[k], high[k]
                for j in range(width):
                    value = a[j] + blend * (b[j] - a[j])
                    larger = k == 0 or value > top[j]
                    top[j] = value if larger else top[j]
                    best[j] = np.int16(k) if larger else best[j]
            winner[i] = best

    return largest


def axes(source: Sequence[int], target: Sequence[int]) -> tuple[NDArray, ...]:
    """Return the :func:`neighbors` of all target coordinates, for each axis in turn.

    Examples:
        >>> low, high, share = axes([2], [4])
        >>> low.tolist(), high.tolist(), share.tolist()
        ([0, 0, 0, 1], [1, 1, 1, 1], [0.0, 0.25, 0.75, 0.0])
    """
    pairs = zip(source, target, strict=True)
    return sum((neighbors(centers(old, new), old) for old, new in pairs), ())


def centers(old: int, new: int) -> Float[np.ndarray, " new"]:
    """Return the centers of ``new`` pixels in the coordinates of ``old`` pixels of the same line.

    Examples:
        >>> centers(2, 4).tolist()
        [-0.25, 0.25, 0.75, 1.25]
    """
    return (np.arange(new) + 0.5) * old / new - 0.5


def neighbors(
    coordinates: Float[np.ndarray, " n"], length: int
) -> tuple[NDArray, NDArray, NDArray]:
    """Return the pixels below and above coordinates on a line, and the weight of those above.

    Coordinates outside are clamped to the ends of the line.

    Examples:
        >>> [each.tolist() for each in neighbors(np.array([-1, 0.25, 9]), 2)]
        [[0, 0, 1], [1, 1, 1], [0.0, 0.25, 0.0]]
    """
    coordinates = coordinates.clip(0, length - 1)
    low = coordinates.astype(np.int64)
    return low, np.minimum(low + 1, length - 1), (coordinates - low).astype(np.float32)
