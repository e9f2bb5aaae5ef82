# mypy: disable-error-code="no-untyped-def"
# (numba infers the types of compiled functions)
"""Mean field for CPUs: the update of :mod:`primaps.crf.mean_field`, compiled and fused.

All kernels together are one sparse map W (lattice points x pixels) and one blur B, with the
normalizations D^(-1/2) and the square roots of the kernel weights folded into W, so that

    sum_m w_m D_m^(-1/2) k_m D_m^(-1/2) Q = W^T B W Q.

One iteration is W (``splat``), B (``blur``), and W^T together with the softmax (``update``).
Labels are innermost, padded to the width of vector registers, so every step handles a whole row
of labels at once (:mod:`primaps.crf.compiled_rows`), and rows are prefetched, since what bounds it
is waiting for memory.

Several images are spread over threads one by one. A single image is split by labels for the
filter, which handles each label independently, and by pixels for the update. Neither changes the
order of any sum, so results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from primaps.crf.compiled_lattice import PREFETCH_DISTANCE, SparseLattice
from primaps.crf.compiled_rows import Rows, Workspace
from primaps.crf.compiled_unary import FLOOR, Unary
from primaps.crf.simd import (
    at,
    axpy,
    distance,
    exponential,
    fill,
    largest,
    load,
    maximum,
    muladd,
    plus,
    prefetch,
    scaled,
    store,
    subtract,
    total,
)
from primaps.utils.compiled import compiled_in_order

LINE = 16
"""Numbers in a cache line. Shorter rows fit the cache as they are and are not prefetched."""


@dataclass(frozen=True)
class SparseMap:
    """The lattices of all kernels as one: W and B of the module's equation.

    Attributes:
        vertices: (N, E) rows of the lattice array that pixel i touches.
        weights: (N, E) entries of W.
        chains: the chains of all directions, one after the other; see ``SparseLattice``.
        size: lattice points M; row M is zero and row M + 1 is scrap.
    """

    vertices: NDArray[np.int32]
    weights: NDArray[np.float32]
    chains: NDArray[np.int32]
    size: int


def join(lattices: Sequence[SparseLattice], kernel_weights: Sequence[float]) -> SparseMap:
    """Put the lattices of several kernels side by side."""
    size = sum(lattice.size for lattice in lattices)
    n = len(lattices[0].vertices)
    entries = sum(lattice.vertices.shape[1] for lattice in lattices)
    vertices = np.empty((n, entries), np.int32)
    weights = np.empty((n, entries), np.float32)
    chains = np.full(
        sum(c.size for la in lattices for c in la.chains) + PREFETCH_DISTANCE + 1, size, np.int32
    )
    point = column = filled = 0
    for lattice, weight in zip(lattices, kernel_weights, strict=True):
        factor = np.float32(weight**0.5)
        _join_entries(lattice.vertices, lattice.weights, vertices, weights, column, point, factor)
        for chain in lattice.chains:
            _join_chain(chain, chains, filled, lattice.size, point)
            filled += chain.size
        point, column = point + lattice.size, column + lattice.vertices.shape[1]
    return SparseMap(vertices, weights, chains, size)


@compiled_in_order
def _join_entries(vertices, weights, all_vertices, all_weights, column, point, factor):
    n, corners = vertices.shape
    for i in range(n):
        for c in range(corners):
            all_vertices[i, column + c] = vertices[i, c] + point
            all_weights[i, column + c] = weights[i, c] * factor


@compiled_in_order
def _join_chain(chain, chains, filled, size, point):
    """Copy a chain; its separators become those of ``chains``, which it is filled with."""
    for e in range(chain.size):
        if chain[e] < size:
            chains[filled + e] = chain[e] + point


def mean_field(
    unary: Unary,
    kernels: SparseMap,
    out: NDArray[np.float32],
    *,
    compatibility: NDArray[np.float32] | None,
    iterations: int,
    tolerance: float | None,
    negligible: float,
    measure: bool,
    threads: int,
    workspace: Workspace,
) -> list[float]:
    """As ``mean_field.mean_field``; the marginals go to ``out``, (K, N).

    Args:
        negligible: see :class:`primaps.crf.CRFParameters`.
        measure: whether the changes are wanted; they are measured with a tolerance anyway.
        threads: how many threads share the work.
        workspace: where to take memory from.
    """
    labels, n = unary.labels, unary.pixels
    potts = compatibility is None
    rows = Rows(unary, negligible, workspace)
    points = workspace("points", (kernels.size + 2) * rows.width)
    penalties = np.zeros((labels, rows.width), np.float32)
    if compatibility is not None:
        penalties[:, :labels] = -compatibility.T
    vertices, weights = kernels.vertices.ravel(), kernels.weights.ravel()
    entries = kernels.vertices.shape[1]
    cuts = [n * part // threads for part in range(threads + 1)]
    spans = list(pairwise(cuts))
    measure = measure or tolerance is not None
    changes: list[float] = []

    def filter_labels(offset: int) -> None:
        splat(rows.values, vertices, weights, points, n, offset, kernels.size)
        blur(points, kernels.chains, kernels.size, offset)

    def update_span(span: tuple[int, int]) -> tuple[float, NDArray[np.float32]]:
        data = (rows.unary, points, vertices, weights, rows.hears, penalties, rows.values)
        return update(*data, measure, *span)

    with ThreadPoolExecutor(threads) as pool:
        run = pool.map if threads > 1 else map
        list(run(lambda span: rows.begin(*span), spans))
        for iteration in range(iterations):
            split = rows.lanes
            while threads * split > rows.width and split > 4:
                split //= 2
            splat, blur = _filter(split, rows.width, entries)
            update = _update(rows.lanes, rows.width, entries, potts)
            list(run(filter_labels, range(0, rows.width, split)))
            moved, peaks = zip(*run(update_span, spans), strict=True)
            if measure:
                changes.append(sum(moved) / (n * labels))
                if tolerance is not None and changes[-1] < tolerance:
                    break
            if potts and iteration < iterations - 1:
                rows.shorten(np.max(peaks, 0))
        del points
        workspace.release("points")
        list(run(lambda span: rows.end(out, *span), spans))
    return changes


@cache
def _filter(lanes, width, entries):
    """The kernels of W and B for ``lanes`` labels starting at ``offset`` of every row."""

    @compiled_in_order
    def splat(values, vertices, weights, points, n, offset, size):
        zero = fill(np.float32(0), lanes)
        for k in range(size + 2):
            store(points, k * width + offset, zero)
        limit = n * entries - 1
        for i in range(n):
            row = load(values, i * width + offset, lanes)
            if lanes >= LINE:
                for e in range((i + 16) * entries, (i + 17) * entries):
                    k = at(vertices, min(e, limit)) * width + offset
                    for part in range(0, lanes, LINE):
                        prefetch(points, k + part)
            for e in range(i * entries, (i + 1) * entries):
                k = at(vertices, e) * width + offset
                store(points, k, axpy(at(weights, e), row, load(points, k, lanes)))

    @compiled_in_order
    def blur(points, chains, size, offset):
        half = np.float32(0.5)
        before = fill(np.float32(0), lanes)
        here = before
        for e in range(chains.size - PREFETCH_DISTANCE):
            k = at(chains, e + PREFETCH_DISTANCE) * width + offset
            for part in range(0, lanes, LINE):
                prefetch(points, k + part)
            following = load(points, at(chains, e + 1) * width + offset, lanes)
            # Row M, between the chains, stays zero: what would be written there goes to M + 1.
            k = at(chains, e)
            k += k == size
            store(points, k * width + offset, axpy(half, plus(before, following), here))
            before = here
            here = following

    return splat, blur


@cache
def _update(lanes, width, entries, potts):
    """The kernel of W^T and the softmax, for pixels ``first`` to ``last``.

    Numba keeps compiled functions by what they enclose: plain numbers here, never another compiled
    function, which would be a new one in every process.
    """

    @compiled_in_order
    def update(unary, points, vertices, weights, hears, penalties, values, measure, first, last):
        """New marginals into ``values``; returns the sum of changes and each lane's maximum."""
        row = np.zeros(width, np.float32)
        messages = np.zeros(width, np.float32)
        peaks = np.zeros(width, np.float32)
        penalty = penalties.ravel()
        moved = 0.0
        for i in range(first, last):
            if width >= LINE:
                ahead = min(i + 16, last - 1) * entries
                for e in range(ahead, ahead + entries):
                    for o in range(0, width, LINE):
                        prefetch(points, at(vertices, e) * width + o)
            top = fill(np.float32(FLOOR), lanes)
            for o in range(0, width, lanes):
                message = fill(np.float32(0), lanes)
                for e in range(i * entries, (i + 1) * entries):
                    k = at(vertices, e) * width + o
                    message = axpy(at(weights, e), load(points, k, lanes), message)
                if potts:
                    # A message counts for its label: see mean_field.mean_field.
                    own = load(unary, i * width + o, lanes)
                    belief = muladd(message, load(hears, o, lanes), own)
                    top = maximum(top, belief)
                    store(row, o, belief)
                else:
                    store(messages, o, message)
            if not potts:
                for o in range(0, width, lanes):
                    belief = load(unary, i * width + o, lanes)
                    for k in range(penalties.shape[0]):
                        belief = axpy(at(messages, k), load(penalty, k * width + o, lanes), belief)
                    top = maximum(top, belief)
                    store(row, o, belief)
            highest = largest(top)
            mass = fill(np.float32(0), lanes)
            for o in range(0, width, lanes):
                part = exponential(subtract(load(row, o, lanes), highest))
                mass = plus(mass, part)
                store(row, o, part)
            factor = np.float32(1) / total(mass)
            for o in range(0, width, lanes):
                part = scaled(load(row, o, lanes), factor)
                if measure:
                    moved += total(distance(part, load(values, i * width + o, lanes)))
                store(values, i * width + o, part)
                store(peaks, o, maximum(load(peaks, o, lanes), part))
        return moved, peaks

    return update
