# mypy: disable-error-code="no-untyped-def"
# (numba infers the types of compiled functions)
"""Unary terms as rows of labels: from planes of log-probabilities, or from logits of a feature map.

Logits of a feature map are scaled up while rows are made of them. Planes of them at image size
would have to be written, read, normalized and read again, which takes as long as two iterations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from primaps.crf.inputs import SMALLEST
from primaps.crf.simd import (
    axpy,
    exponential,
    fill,
    largest,
    load,
    maximum,
    plus,
    scaled,
    store,
    subtract,
    total,
)
from primaps.utils.bilinear import axes
from primaps.utils.compiled import compiled, compiled_in_order

FLOOR = -1e30
"""Log-probability of the lanes that pad a row."""
BLOCK = 64
"""Pixels that are transposed together: planes are contiguous in pixels, rows in labels."""


@dataclass(frozen=True)
class Unary:
    """Log-probabilities -psi_u of K labels at N pixels, clipped at log :data:`SMALLEST`.

    Attributes:
        labels, pixels: K and N.
        rows: writes those of pixels ``first`` to ``last`` into their rows of an array, see
            :func:`row_layout`; has to come before ``plane``.
        plane: writes those of label k at pixels ``first`` to ``last``.
    """

    labels: int
    pixels: int
    rows: Callable[[NDArray[np.float32], int, int], None]
    plane: Callable[[NDArray[np.float32], int, int, int], None]


def row_layout(labels: int) -> tuple[int, int]:
    """The padded length of a row of labels, and how many lanes a vector takes of it."""
    for lanes in (4, 8, 16):
        if labels <= lanes:
            return lanes, lanes
    width = -(-labels // 16) * 16
    return width, 32 if width % 32 == 0 else 16


def of_planes(planes: NDArray[np.float32]) -> Unary:
    """Of planes (K, N) of log-probabilities."""
    width, _ = row_layout(len(planes))

    def rows(out: NDArray[np.float32], first: int, last: int) -> None:
        spread(planes, out, np.float32(FLOOR), width, first, last)

    def plane(out: NDArray[np.float32], k: int, first: int, last: int) -> None:
        out[:] = planes[k, first:last]

    return Unary(len(planes), planes.shape[1], rows, plane)


def of_logits(logits: NDArray[np.float32], size: tuple[int, int]) -> Unary:
    """Of logits (K, h, w) that are scaled bilinearly to ``size``, height and width."""
    labels, height, columns = logits.shape
    width, lanes = row_layout(labels)
    logits = np.maximum(logits, np.float32(FLOOR))  # -inf times 0 would be no number
    y0, y1, fy, x0, x1, fx = axes((height, columns), size)
    grid = np.full((height, columns, width), FLOOR, np.float32)
    grid[:, :, :labels] = logits.transpose(1, 2, 0)
    least = np.float32(math.log(SMALLEST))
    clip = np.full(width, FLOOR, np.float32)
    clip[:labels] = least
    level = np.empty(size[0] * size[1], np.float32)  # of each pixel the logarithm of its sum

    def rows(out: NDArray[np.float32], first: int, last: int) -> None:
        make = _normalized(lanes, width)
        make(grid.ravel(), columns, y0, y1, fy, x0, x1, fx, clip, level, out, first, last)

    def plane(out: NDArray[np.float32], k: int, first: int, last: int) -> None:
        _plane(logits[k], y0, y1, fy, x0, x1, fx, level, least, out, first, last)

    return Unary(labels, len(level), rows, plane)


@compiled_in_order
def spread(planes, rows, padding, width, first, last):
    """(K, N) planes into rows."""
    labels = planes.shape[0]
    for i in range(first, last):
        for k in range(labels, width):
            rows[i * width + k] = padding
    for block in range(first, last, BLOCK):
        for k in range(labels):
            for i in range(block, min(block + BLOCK, last)):
                rows[i * width + k] = planes[k, i]


@cache
def _normalized(lanes, width):
    @compiled_in_order
    def normalized(grid, columns, y0, y1, fy, x0, x1, fx, clip, level, rows, first, last):
        """Rows of the grid, blended, less the logarithm of the sum of their exponentials."""
        line = np.empty(columns * width, np.float32)  # a row of the image, columns of the grid
        across = x0.size
        held = -1
        for i in range(first, last):
            y = i // across
            x = i - y * across
            if y != held:
                held = y
                below = fy[y]
                above = np.float32(1) - below
                for o in range(0, columns * width, lanes):
                    part = scaled(load(grid, y0[y] * columns * width + o, lanes), above)
                    there = load(grid, y1[y] * columns * width + o, lanes)
                    store(line, o, axpy(below, there, part))
            right = fx[x]
            left = np.float32(1) - right
            top = fill(np.float32(FLOOR), lanes)
            for o in range(0, width, lanes):
                part = scaled(load(line, x0[x] * width + o, lanes), left)
                part = axpy(right, load(line, x1[x] * width + o, lanes), part)
                top = maximum(top, part)
                store(rows, i * width + o, part)
            highest = largest(top)
            mass = fill(np.float32(0), lanes)
            for o in range(i * width, (i + 1) * width, lanes):
                mass = plus(mass, exponential(subtract(load(rows, o, lanes), highest)))
            whole = highest + np.float32(np.log(total(mass)))
            level[i] = whole
            for o in range(0, width, lanes):
                part = subtract(load(rows, i * width + o, lanes), whole)
                store(rows, i * width + o, maximum(part, load(clip, o, lanes)))

    return normalized


@compiled
def _plane(logits, y0, y1, fy, x0, x1, fx, level, least, out, first, last):
    """One label of what ``normalized`` makes."""
    across = x0.size
    wide = np.empty((logits.shape[0], across), np.float32)
    for x in range(across):
        for y in range(logits.shape[0]):
            wide[y, x] = logits[y, x0[x]] + fx[x] * (logits[y, x1[x]] - logits[y, x0[x]])
    for y in range(first // across, -(-last // across)):
        begin, end = max(first, y * across), min(last, (y + 1) * across)
        span = slice(begin - y * across, end - y * across)
        above, below, share = wide[y0[y], span], wide[y1[y], span], fy[y]
        less, target = level[begin:end], out[begin - first : end - first]
        for x in range(end - begin):
            target[x] = max(above[x] + share * (below[x] - above[x]) - less[x], least)
