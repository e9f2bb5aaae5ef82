# mypy: disable-error-code="no-untyped-def"
# (numba infers the types of compiled functions)
"""The dense CRF on the CPU: the update of :mod:`primaps.crf.mean_field`, compiled and fused.

All kernels together are one sparse map W (lattice points x pixels) and one blur B. The
normalizations D^(-1/2) and the square roots of the kernel weights are folded into W:

    sum_m w_m D_m^(-1/2) k_m D_m^(-1/2) Q = W^T B W Q.

One iteration consists of W (``splat``), B (``blur``), and W^T fused with the softmax (``update``).
The innermost loop runs over the labels of a row (:mod:`primaps.crf.compiled_rows`). Rows are
prefetched, because memory latency dominates the time.

Several images run on one thread each. A single image is split by labels for the filter, which
treats labels independently, and by pixels for the update. The order of all sums is fixed; results
do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from primaps.crf import compiled_lattice, inputs
from primaps.crf.compiled_lattice import PREFETCH_DISTANCE, SparseLattice
from primaps.crf.compiled_rows import (
    FLOOR,
    Buffers,
    LabelRows,
    Unary,
    of_logits,
    of_planes,
    row_layout,
)
from primaps.crf.inputs import CRFParameters
from primaps.crf.kernels import spatial_features
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
"""Float32 numbers per cache line. Shorter rows stay in the cache and are not prefetched."""
MEMORY = 4 * 2**30
"""Estimated maximum memory in bytes of the images that are solved at the same time."""
_IDLE: list[Buffers] = []
"""Buffers for the next images, as many as there were images at the same time."""


def release_buffers() -> None:
    """Free the buffers that are kept for the next images."""
    _IDLE.clear()


def solve(
    crf: CRFParameters,
    images: list[Tensor],
    name: str,
    values: list[Tensor],
    out: list[Tensor],
    changes: Float[Tensor, "b iterations"],
    measure: bool,
) -> None:
    """Solve a list of images, and write the results to ``out`` and ``changes``.

    With at least as many images as threads, each thread solves whole images; otherwise the images
    are solved one after the other, each on all threads.
    """
    threads = torch.get_num_threads()
    workers = min(threads, max(1, MEMORY // max(map(_footprint, out))))
    apart = 1 < workers <= len(values)

    def work(i: int) -> None:
        try:
            buffers = _IDLE.pop()
        except IndexError:
            buffers = Buffers()
        change = _solve_one(
            crf,
            _unary(name, values[i], (out[i].shape[1], out[i].shape[2])),
            images[i].cpu().numpy(),
            out[i].numpy(),
            measure,
            1 if apart else threads,
            buffers,
        )
        if buffers.reusable:
            _IDLE.append(buffers)
        changes[i, : len(change)] = torch.tensor(change)

    if not apart:
        for i in range(len(values)):
            work(i)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(len(values))))


def _unary(name: str, values: Float[Tensor, "k h w"], size: tuple[int, int]) -> Unary:
    if values.shape[1:] == size:
        return of_planes(inputs.log_unary_numpy(name, values))
    logits = values.detach().float().contiguous().numpy()
    inputs.checked_top(name, logits)
    return of_logits(logits, size)


def _solve_one(
    crf: CRFParameters,
    unary: Unary,
    image: NDArray[np.uint8],
    out: NDArray[np.float32],
    measure: bool,
    threads: int,
    buffers: Buffers,
) -> list[float]:
    kernels = _kernels(crf, image, threads)
    if kernels is None:
        rows = LabelRows(unary, 0.0, buffers)
        rows.begin(0, unary.pixels)
        rows.end(out.reshape(unary.labels, -1), 0, unary.pixels)
        return [0.0] * crf.iterations
    penalties = None
    if crf.compatibility is not None:
        penalties = torch.as_tensor(crf.compatibility, dtype=torch.float32).cpu().numpy()
    return mean_field_compiled(
        unary,
        kernels,
        out.reshape(unary.labels, -1),
        compatibility=penalties,
        iterations=crf.iterations,
        tolerance=crf.tolerance,
        negligible=crf.negligible,
        measure=measure,
        threads=threads,
        buffers=buffers,
    )


@dataclass(frozen=True)
class SparseMap:
    """The lattices of all kernels together: W and B of the equation in the module docstring.

    Attributes:
        vertices: (N, E) lattice points of pixel i.
        weights: (N, E) entries of W.
        chains: chains of all directions, one after the other; see ``SparseLattice``.
        size: number of lattice points M; row M is zero and row M + 1 is unused.
    """

    vertices: NDArray[np.int32]
    weights: NDArray[np.float32]
    chains: NDArray[np.int32]
    size: int


def join(lattices: Sequence[SparseLattice], kernel_weights: Sequence[float]) -> SparseMap:
    """Join the lattices of several kernels."""
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
    """Copy a chain without its separators; ``chains`` is filled with its own."""
    for e in range(chain.size):
        if chain[e] < size:
            chains[filled + e] = chain[e] + point


def mean_field_compiled(
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
    buffers: Buffers,
) -> list[float]:
    """Run :func:`primaps.crf.mean_field`, and write the marginals (K, N) to ``out``.

    Args:
        negligible: see :class:`primaps.crf.CRFParameters`.
        measure: measure the changes; they are always measured with a tolerance.
        threads: number of threads.
        buffers: memory for intermediate results.

    Returns:
        The mean absolute change of the marginals in each iteration, if measured.
    """
    labels, n = unary.labels, unary.pixels
    potts = compatibility is None
    rows = LabelRows(unary, negligible, buffers)
    points = buffers("points", (kernels.size + 2) * rows.width)
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
        data = (rows.unary, points, vertices, weights, rows.receives, penalties, rows.values)
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
        buffers.release("points")
        list(run(lambda span: rows.end(out, *span), spans))
    return changes


@cache
def _filter(lanes, width, entries):
    """Compile W and B for ``lanes`` labels starting at ``offset`` of every row."""

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
            # Row M separates chains and stays zero; its writes are redirected to row M + 1.
            k = at(chains, e)
            k += k == size
            store(points, k * width + offset, axpy(half, plus(before, following), here))
            before = here
            here = following

    return splat, blur


@cache
def _update(lanes, width, entries, potts):
    """Compile W^T and the softmax, for pixels ``first`` to ``last``.

    numba caches a compiled function by the values that it encloses. These are plain numbers here;
    an enclosed compiled function would be different in every process.
    """

    @compiled_in_order
    def update(unary, points, vertices, weights, receives, penalties, values, measure, first, last):
        """Write new marginals; return the sum of changes and the maximum of each lane."""
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
                    # With Potts, the message of a label only counts for itself: see mean_field.
                    own = load(unary, i * width + o, lanes)
                    belief = muladd(message, load(receives, o, lanes), own)
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


def _kernels(crf: CRFParameters, image: NDArray[np.uint8], threads: int) -> SparseMap | None:
    """Build both kernels as one sparse map; None if both weights are 0."""
    _, height, width = image.shape
    lattices, weights = [], []
    if crf.bilateral_weight:
        features = _bilateral_features(
            image, np.float32(crf.theta_alpha), np.float32(crf.theta_beta)
        )
        with ThreadPoolExecutor(threads) as pool:
            lattices.append(compiled_lattice.build(features, pool.map if threads > 1 else map))
        weights.append(crf.bilateral_weight)
    if crf.gaussian_weight:
        lattices.append(_spatial_lattice(height, width, crf.theta_gamma))
        weights.append(crf.gaussian_weight)
    return join(lattices, weights) if lattices else None


@compiled_in_order
def _bilateral_features(image, theta_alpha, theta_beta):
    """:func:`primaps.crf.kernels.bilateral_features` on one thread."""
    channels, height, width = image.shape
    features = np.empty((height * width, 2 + channels), np.float32)
    for y in range(height):
        for x in range(width):
            i = y * width + x
            features[i, 0] = np.float32(x) / theta_alpha
            features[i, 1] = np.float32(y) / theta_alpha
            for c in range(channels):
                features[i, 2 + c] = np.float32(image[c, y, x]) / theta_beta
    return features


@lru_cache(maxsize=8)
def _spatial_lattice(height: int, width: int, theta: float) -> compiled_lattice.SparseLattice:
    """Build the lattice of the Gaussian kernel, which depends only on the image size."""
    return compiled_lattice.build(spatial_features(height, width, theta).numpy())


def _footprint(values: Tensor) -> int:
    """Estimate the bytes of one image: unary, marginals and about four lattice points per pixel."""
    labels, height, width = values.shape
    row = 4 * row_layout(labels)[0]
    return height * width * (6 * row + 200)
