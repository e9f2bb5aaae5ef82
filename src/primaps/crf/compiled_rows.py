# mypy: disable-error-code="no-untyped-def"
# (numba infers the types of compiled functions)
"""Marginals as rows of labels, which become shorter as the labels of an image settle.

Callers' arrays hold one plane per label, (K, N). The filter wants the labels of a pixel side by
side, padded to whole vector registers. After an iteration or two most images have labels that are
negligible at every pixel: these share one lane, the sum of their probabilities. Under Potts a
label hears only of itself, at most its largest marginal times the kernel weights, so it makes
little difference that they hear nothing from then on; should their sum grow, all come back.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from primaps.crf.compiled_unary import BLOCK, FLOOR, Unary, row_layout, spread
from primaps.crf.simd import (
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
from primaps.utils.compiled import compiled, compiled_in_order
from primaps.utils.compiled import exponential as exponential_of

CACHED = 2048
"""Pixels whose rows are made together."""
KEPT = 2**27
"""Bytes that a workspace holds between images, at the most."""


class Workspace:
    """Float32 arrays that are used again from image to image.

    They start at a cache line, since rows that straddle two lines cost double, and asking the
    system for fresh memory takes as long as an iteration.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[np.float32]] = {}
        self._most = 0  # bytes at once

    def __call__(self, name: str, size: int) -> NDArray[np.float32]:
        if name not in self._arrays or self._arrays[name].size < size:
            self._arrays.pop(name, None)
            raw = np.empty(size * 4 + 64, np.uint8)
            start = -raw.ctypes.data % 64
            self._arrays[name] = raw[start : start + size * 4].view(np.float32)
            self._most = max(self._most, sum(array.nbytes for array in self._arrays.values()))
        return self._arrays[name][:size]

    def release(self, name: str) -> None:
        """Give memory back that nothing needs any more, unless it is kept for the next image."""
        if not self.small:
            del self._arrays[name]

    @property
    def small(self) -> bool:
        """Whether it is worth keeping for the next image."""
        return self._most <= KEPT


class Rows:
    """Unary terms and marginals of one image as rows.

    Attributes:
        unary: (N * width) log-probabilities.
        values: (N * width) marginals.
        width: numbers in a row.
        lanes: numbers in a vector; see :func:`row_layout`.
        hears: 0 in the lane that is shared, 1 in all others.
    """

    def __init__(self, source: Unary, negligible: float, workspace: Workspace) -> None:
        self._source, self._negligible = source, negligible
        self._returned = False  # negligible labels came back once: from then on all stay
        self._everyone()
        self.unary = workspace("unary", source.pixels * self.width)
        self.values = workspace("values", source.pixels * self.width)

    def _everyone(self) -> None:
        self._active = np.arange(self._source.labels)
        self.width, self.lanes = row_layout(self._source.labels)
        self.hears = np.ones(self.width, np.float32)

    @property
    def _some_share(self) -> bool:
        return len(self._active) < self._source.labels

    def begin(self, first: int, last: int) -> None:
        """Fill the rows of a span of pixels with the unary terms and their softmax."""
        softmax = _layout_kernels(self.lanes, self.width)[0]
        for some in range(first, last, CACHED):  # each is still in the cache when it is read
            end = min(some + CACHED, last)
            self._source.rows(self.unary, some, end)
            softmax(self.unary, self.values, some, end)

    def shorten(self, peaks: NDArray[np.float32]) -> None:
        """Lay the rows out anew, if ``peaks``, the largest marginal of every lane, allows it."""
        n = self._source.pixels
        count = len(self._active)
        if self._some_share and peaks[count] > 2 * self._negligible:
            marginals = np.empty((self._source.labels, n), np.float32)
            self.end(marginals, 0, n)
            self._everyone()
            self._returned = True
            self._source.rows(self.unary, 0, n)
            spread(marginals, self.values, np.float32(0), self.width, 0, n)
            return
        order = np.argsort(peaks[:count], kind="stable")
        mass = np.cumsum(peaks[order]) + (peaks[count] if self._some_share else 0)
        stay = np.sort(order[mass > self._negligible])
        width, lanes = row_layout(len(stay) + 1)
        if self._returned or width >= self.width:
            return
        leave = np.zeros(self.width, np.float32)
        leave[: count + self._some_share] = 1
        leave[stay] = 0
        shorten = _layout_kernels(self.lanes, self.width)[1]
        shorten(self.unary, self.values, n, width, stay, leave)
        self._active = self._active[stay]
        self.width, self.lanes = width, lanes
        self.hears = np.ones(width, np.float32)
        self.hears[len(stay)] = 0

    def end(self, out: NDArray[np.float32], first: int, last: int) -> None:
        """Write the marginals of a span of pixels to planes (K, N)."""
        _collect(self.values, self._active, out, self.width, first, last)
        if not self._some_share:
            return
        span, column = slice(first, last), len(self._active)
        shared = self.values.reshape(-1, self.width)[span, column].copy()
        level = self.unary.reshape(-1, self.width)[span, column].copy()
        for k in np.setdiff1d(np.arange(len(out)), self._active):
            self._source.plane(out[k, span], k, first, last)
            _divide(out[k, span], level, shared)


@compiled
def _divide(part, level, shared):
    """Labels divide their sum as their unary terms do."""
    for i in range(part.size):
        part[i] = exponential_of(part[i] - level[i]) * shared[i]


@compiled_in_order
def _collect(rows, active, planes, width, first, last):
    """Rows into the planes of the labels that have a lane of their own."""
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
        """In place: every number moves to the front, past those that are no longer needed."""
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
