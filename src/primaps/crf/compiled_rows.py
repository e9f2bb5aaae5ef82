# mypy: disable-error-code="no-untyped-def"
# (numba infers the types of compiled functions)
"""Unary terms and marginals of an image as rows of labels, for the compiled CRF.

Arguments and results have one plane per label, (K, N). The filter needs the labels of a pixel next
to each other, padded to full vector registers. Logits of a feature map are upsampled while the rows
are filled; separate planes at image size would take as long as two iterations.

After one or two iterations most images have labels that are negligible at every pixel. These labels
are merged into one lane with the sum of their probabilities and dropped from message passing. With
the Potts model a label receives messages only from itself, at most its largest marginal times the
kernel weights, and the effect is small. If their sum grows, all labels return.
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
    muladd,
    plus,
    scaled,
    store,
    subtract,
    total,
)
from primaps.utils.bilinear import axes
from primaps.utils.compiled import compiled, compiled_in_order
from primaps.utils.compiled import exponential as exponential_of

FLOOR = -1e30
"""Log-probability in the padding of a row."""
BLOCK = 64
"""Pixels that are transposed together: planes are contiguous in pixels, rows in labels."""
CACHED = 2048
"""Pixels whose rows are computed together."""
MAX_KEPT = 2**27
"""Maximum size in bytes of buffers that are reused for the next image."""


@dataclass(frozen=True)
class Unary:
    """Log-probabilities -psi_u of K labels at N pixels, clipped to log :data:`SMALLEST`.

    Attributes:
        labels, pixels: K and N.
        rows: writes the rows of pixels ``first`` to ``last``; must be called before ``plane``.
        plane: writes the values of label k at pixels ``first`` to ``last``.
    """

    labels: int
    pixels: int
    rows: Callable[[NDArray[np.float32], int, int], None]
    plane: Callable[[NDArray[np.float32], int, int, int], None]


def row_layout(labels: int) -> tuple[int, int]:
    """Return the padded length of a row of labels, and the number of lanes per vector."""
    for lanes in (4, 8, 16):
        if labels <= lanes:
            return lanes, lanes
    width = -(-labels // 16) * 16
    return width, 32 if width % 32 == 0 else 16


def of_planes(planes: NDArray[np.float32]) -> Unary:
    """Wrap planes (K, N) of log-probabilities."""
    width, _ = row_layout(len(planes))

    def rows(out: NDArray[np.float32], first: int, last: int) -> None:
        spread(planes, out, np.float32(FLOOR), width, first, last)

    def plane(out: NDArray[np.float32], k: int, first: int, last: int) -> None:
        out[:] = planes[k, first:last]

    return Unary(len(planes), planes.shape[1], rows, plane)


def of_logits(logits: NDArray[np.float32], size: tuple[int, int]) -> Unary:
    """Wrap logits (K, h, w) that are upsampled to ``size`` (height, width)."""
    labels, height, columns = logits.shape
    width, lanes = row_layout(labels)
    logits = np.maximum(logits, np.float32(FLOOR))  # because -inf times 0 is NaN
    y0, y1, fy, x0, x1, fx = axes((height, columns), size)
    grid = np.full((height, columns, width), FLOOR, np.float32)
    grid[:, :, :labels] = logits.transpose(1, 2, 0)
    least = np.float32(math.log(SMALLEST))
    clip = np.full(width, FLOOR, np.float32)
    clip[:labels] = least
    level = np.empty(size[0] * size[1], np.float32)  # log of the sum of exponentials per pixel

    def rows(out: NDArray[np.float32], first: int, last: int) -> None:
        make = _normalized(lanes, width)
        make(grid.ravel(), columns, y0, y1, fy, x0, x1, fx, clip, level, out, first, last)

    def plane(out: NDArray[np.float32], k: int, first: int, last: int) -> None:
        _plane(logits[k], y0, y1, fy, x0, x1, fx, level, least, out, first, last)

    return Unary(labels, len(level), rows, plane)


@compiled_in_order
def spread(planes, rows, padding, width, first, last):
    """Write planes (K, N) into rows."""
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
        """Interpolate rows of the grid, and subtract the log of the sum of their exponentials."""
        line = np.empty(columns * width, np.float32)  # one image row of the grid
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
    """Compute one label of the result of ``normalized``."""
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


class Buffers:
    """Float32 arrays that are reused from image to image.

    Allocating new memory takes as long as an iteration. The arrays are aligned to cache lines,
    because access to rows across two lines costs twice as much.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[np.float32]] = {}
        self._peak = 0  # bytes

    def __call__(self, name: str, size: int) -> NDArray[np.float32]:
        if name not in self._arrays or self._arrays[name].size < size:
            self._arrays.pop(name, None)
            raw = np.empty(size * 4 + 64, np.uint8)
            start = -raw.ctypes.data % 64
            self._arrays[name] = raw[start : start + size * 4].view(np.float32)
            self._peak = max(self._peak, sum(array.nbytes for array in self._arrays.values()))
        return self._arrays[name][:size]

    def release(self, name: str) -> None:
        """Free an array, unless it is reused for the next image."""
        if not self.reusable:
            del self._arrays[name]

    @property
    def reusable(self) -> bool:
        """Whether the buffers are small enough to be reused for the next image."""
        return self._peak <= MAX_KEPT


class LabelRows:
    """Unary terms and marginals of one image as rows of labels.

    Attributes:
        unary: (N * width) log-probabilities.
        values: (N * width) marginals.
        width: padded length of a row.
        lanes: numbers per vector; see :func:`row_layout`.
        receives: 0 in the lane of merged labels, which receives no messages; 1 in all others.
    """

    def __init__(self, source: Unary, negligible: float, buffers: Buffers) -> None:
        self._source, self._negligible = source, negligible
        self._returned = False  # labels are not merged again after they returned
        self._use_all_labels()
        self.unary = buffers("unary", source.pixels * self.width)
        self.values = buffers("values", source.pixels * self.width)

    def _use_all_labels(self) -> None:
        self._active = np.arange(self._source.labels)
        self.width, self.lanes = row_layout(self._source.labels)
        self.receives = np.ones(self.width, np.float32)

    @property
    def _merged(self) -> bool:
        return len(self._active) < self._source.labels

    def begin(self, first: int, last: int) -> None:
        """Fill the rows of pixels ``first`` to ``last`` with unary terms and their softmax."""
        softmax = _layout_kernels(self.lanes, self.width)[0]
        for block in range(first, last, CACHED):  # softmax reads it from the CPU cache
            end = min(block + CACHED, last)
            self._source.rows(self.unary, block, end)
            softmax(self.unary, self.values, block, end)

    def shorten(self, peaks: NDArray[np.float32]) -> None:
        """Merge negligible labels if rows become shorter, or let merged labels return.

        Args:
            peaks: largest marginal of every lane.
        """
        n = self._source.pixels
        count = len(self._active)
        if self._merged and peaks[count] > 2 * self._negligible:
            marginals = np.empty((self._source.labels, n), np.float32)
            self.end(marginals, 0, n)
            self._use_all_labels()
            self._returned = True
            self._source.rows(self.unary, 0, n)
            spread(marginals, self.values, np.float32(0), self.width, 0, n)
            return
        order = np.argsort(peaks[:count], kind="stable")
        mass = np.cumsum(peaks[order]) + (peaks[count] if self._merged else 0)
        stay = np.sort(order[mass > self._negligible])
        width, lanes = row_layout(len(stay) + 1)
        if self._returned or width >= self.width:
            return
        leave = np.zeros(self.width, np.float32)
        leave[: count + self._merged] = 1
        leave[stay] = 0
        shorten = _layout_kernels(self.lanes, self.width)[1]
        shorten(self.unary, self.values, n, width, stay, leave)
        self._active = self._active[stay]
        self.width, self.lanes = width, lanes
        self.receives = np.ones(width, np.float32)
        self.receives[len(stay)] = 0

    def end(self, out: NDArray[np.float32], first: int, last: int) -> None:
        """Write the marginals of pixels ``first`` to ``last`` to planes (K, N)."""
        _collect(self.values, self._active, out, self.width, first, last)
        if not self._merged:
            return
        span, column = slice(first, last), len(self._active)
        shared = self.values.reshape(-1, self.width)[span, column].copy()
        level = self.unary.reshape(-1, self.width)[span, column].copy()
        for k in np.setdiff1d(np.arange(len(out)), self._active):
            self._source.plane(out[k, span], k, first, last)
            _divide(out[k, span], level, shared)


@compiled
def _divide(part, level, shared):
    """Split the sum of merged labels in proportion to their unary terms."""
    for i in range(part.size):
        part[i] = exponential_of(part[i] - level[i]) * shared[i]


@compiled_in_order
def _collect(rows, active, planes, width, first, last):
    """Write rows into the planes of the labels that are not merged."""
    for block in range(first, last, BLOCK):
        for k in range(active.size):
            for i in range(block, min(block + BLOCK, last)):
                planes[active[k], i] = rows[i * width + k]


@cache
def _layout_kernels(lanes, width):
    @compiled_in_order
    def softmax(unary, values, first, last):
        for i in range(first, last):
            top = fill(np.float32(FLOOR), lanes)
            for o in range(i * width, (i + 1) * width, lanes):
                top = maximum(top, load(unary, o, lanes))
            highest = largest(top)
            mass = fill(np.float32(0), lanes)
            for o in range(i * width, (i + 1) * width, lanes):
                part = exponential(subtract(load(unary, o, lanes), highest))
                mass = plus(mass, part)
                store(values, o, part)
            factor = np.float32(1) / total(mass)
            for o in range(i * width, (i + 1) * width, lanes):
                store(values, o, scaled(load(values, o, lanes), factor))

    @compiled_in_order
    def shorten(unary, values, n, short, stay, leave):
        """Shorten all rows in place, merging the labels that are 1 in ``leave``."""
        nothing = fill(np.float32(0), lanes)
        count = stay.size
        for i in range(n):
            shared = nothing
            level = nothing
            for o in range(0, width, lanes):
                mask = load(leave, o, lanes)
                shared = muladd(mask, load(values, i * width + o, lanes), shared)
                likelihood = exponential(load(unary, i * width + o, lanes))
                level = muladd(mask, likelihood, level)
            for k in range(count):
                unary[i * short + k] = unary[i * width + stay[k]]
                values[i * short + k] = values[i * width + stay[k]]
            unary[i * short + count] = np.log(total(level))
            values[i * short + count] = total(shared)
            for k in range(count + 1, short):
                unary[i * short + k] = np.float32(FLOOR)
                values[i * short + k] = 0

    return softmax, shorten
