# mypy: disable-error-code="no-untyped-def"
# (numba infers the types of compiled functions)
"""The permutohedral lattice on the CPU, built by compiled loops.

The lattice points are those of :mod:`primaps.crf.lattice`, in a form for the filter of
:mod:`primaps.crf.compiled`: 32-bit corner indices and, for every direction, *chains* of consecutive
lattice points. Along a chain the blur runs in place, reads and writes every row once, and skips
points without neighbors, about a quarter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from primaps.crf.lattice import _TOO_FAR, LARGEST
from primaps.crf.simd import prefetch
from primaps.utils.compiled import compiled_in_order
from primaps.utils.errors import InputError

PREFETCH_DISTANCE = 256
"""Lattice points between a prefetch and its use. Hardware cannot predict the order of the rows;
prefetching made the blur up to 8 times faster on the machine of the benchmark."""


@dataclass(frozen=True)
class SparseLattice:
    """A lattice of N positions with M lattice points.

    Attributes:
        vertices: (N, d + 1) corners of the simplex of every position, 0..M-1.
        weights: (N, d + 1) barycentric weights, times D^(-1/2) of the position.
        chains: for each direction the points of its chains, with M before the first chain and
            after every chain.
        size: number of lattice points M.
    """

    vertices: NDArray[np.int32]
    weights: NDArray[np.float32]
    chains: list[NDArray[np.int32]]
    size: int


def build(positions: NDArray[np.float32], run: Callable = map) -> SparseLattice:
    """Build the lattice, with the symmetric normalization folded into its weights.

    Args:
        positions: (N, d) float32, in units of the standard deviation.
        run: ``map``, or the ``map`` of an executor for independent directions.

    Raises:
        InputError: the positions spread over so many standard deviations that lattice keys
            overflow.
    """
    n, d = positions.shape
    scale = [math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2)) for i in range(d)]
    low, place, steps = _key_layout(positions, scale)
    keys, weights = _embedding(d)(positions, np.array(scale, np.float32), low, place, steps)
    bits = (n * (d + 1)).bit_length()  # in real images a fifth of the corners are distinct
    vertices, table, distinct, mass = _number(keys, weights, bits)
    chains = list(run(lambda step: _chains(table, bits, distinct, step), steps))
    for chain in chains:
        _blur_mass(mass, chain)
    _normalize(weights, vertices, mass)
    return SparseLattice(vertices, weights, chains, len(distinct))


def _key_layout(positions, scale):
    """Return the digits of packed keys, as ``_pack`` of the lattice module.

    The range of the keys is bounded by the range of the positions instead of measured.
    """
    d = len(scale)
    low, high = _extent(positions)
    low, high = low * scale, high * scale
    bounds = []
    for j in range(d):
        below = low[j:].sum() - (j * high[j - 1] if j else 0)
        above = high[j:].sum() - (j * low[j - 1] if j else 0)
        # Rounding and the walk to the last corner move a key by at most d + 1 each; a step by d.
        bounds.append((math.floor(below) - 3 * (d + 1), math.ceil(above) + 3 * (d + 1)))
    radix = [above - below + 1 for below, above in bounds]
    if math.prod(radix) >= 2**62 or max(map(abs, sum(bounds, ()))) >= LARGEST:
        raise InputError(_TOO_FAR.format(d))
    place = [math.prod(radix[i + 1 :]) for i in range(d)]
    steps = [sum(place) - (place[j] * (d + 1) if j < d else 0) for j in range(d + 1)]
    return np.array([b for b, _ in bounds]), np.array(place), np.array(steps)


@compiled_in_order
def _extent(positions):
    n, d = positions.shape
    low = positions[0].astype(np.float64)
    high = positions[0].astype(np.float64)
    for i in range(n):
        for a in range(d):
            low[a] = min(low[a], positions[i, a])
            high[a] = max(high[a], positions[i, a])
    return low, high


@cache
def _embedding(d):
    """Compile ``lattice.embed`` for one d, to unroll its short loops."""
    corners = d + 1

    @compiled_in_order
    def embed(positions, scale, low, place, steps):
        n = positions.shape[0]
        keys = np.empty((n, corners), np.int64)
        weights = np.empty((n, corners), np.float32)
        elevated = np.empty(corners, np.float32)
        offset = np.empty(corners, np.float32)
        ordered = np.empty(corners, np.float32)
        base = np.empty(corners, np.int32)
        rank = np.empty(corners, np.int32)
        axis = np.empty(corners, np.int32)
        cell = np.float32(d + 1)
        for i in range(n):
            total = np.float32(0)
            for k in range(d):
                j = d - k
                scaled = positions[i, j - 1] * scale[j - 1]
                elevated[j] = total - np.float32(j) * scaled
                total += scaled
            elevated[0] = total

            excess = np.int32(0)
            for j in range(corners):
                rounded = np.int32(np.rint(elevated[j] / cell))
                excess += rounded
                base[j] = rounded * corners
                offset[j] = elevated[j] - np.float32(base[j])
                rank[j] = 0
            for a in range(d):
                for b in range(a + 1, corners):
                    below = np.int32(offset[a] < offset[b])
                    rank[a] += below
                    rank[b] += 1 - below

            key = np.int64(0)
            for j in range(corners):
                r = rank[j] + excess
                wrap = np.int32(r < 0) - np.int32(r > d)
                r += wrap * corners
                base[j] += wrap * corners
                axis[r] = j
                ordered[r] = (elevated[j] - np.float32(base[j])) / cell
                if j < d:
                    key += (base[j] - low[j]) * place[j]

            # Consecutive corners differ by a step along one lattice direction.
            keys[i, 0] = key
            weights[i, 0] = 1 + ordered[d] - ordered[0]
            for r in range(1, corners):
                key += steps[axis[corners - r]]
                keys[i, r] = key
                weights[i, r] = ordered[d - r] - ordered[corners - r]
        return keys, weights

    return embed


@compiled_in_order
def _slot(key, shift):
    """Fibonacci hashing: the top bits of the key times 2^64 / golden ratio."""
    return np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> shift)


@compiled_in_order
def _find(table, distinct, key, slot):
    """Return the first slot from ``slot`` on that has the id of the key or is free."""
    while table[slot] >= 0 and distinct[table[slot]] != key:
        slot = (slot + 1) & (table.size - 1)
    return slot


@compiled_in_order
def _number(keys, weights, bits):
    """Number the distinct keys in order of occurrence, and splat ones.

    Returns corner ids, the hash table of ids with 2^bits slots, the keys by id, and the splat of
    ones followed by two zeros.
    """
    n, corners = keys.shape
    entries = n * corners
    flat = keys.ravel()
    weight = weights.ravel()
    vertices = np.empty((n, corners), np.int32)
    ids = vertices.ravel()
    distinct = np.empty(entries, np.int64)
    mass = np.zeros(entries + 2, np.float32)
    table = np.full(1 << bits, -1, np.int32)
    shift = np.uint64(64 - bits)
    m = 0
    for e in range(entries):
        if e + 32 < entries:
            prefetch(table, _slot(flat[e + 32], shift))
        key = flat[e]
        slot = _find(table, distinct, key, _slot(key, shift))
        k = table[slot]
        if k < 0:
            k = m
            table[slot] = k
            distinct[k] = key
            m += 1
        ids[e] = k
        mass[k] += weight[e]
    return vertices, table, distinct[:m].copy(), mass[: m + 2].copy()


@compiled_in_order
def _chains(table, bits, distinct, step):
    """Return the chains of one direction, each followed by the separator M."""
    m = distinct.size
    shift = np.uint64(64 - bits)
    after = np.empty(m + 1, np.int32)
    first = np.ones(m + 1, np.bool_)
    for i in range(m):
        if i + 64 < m:
            prefetch(table, _slot(distinct[i + 64] + step, shift))
        key = distinct[i] + step
        slot = _slot(key, shift)
        k = table[slot]
        found = distinct[max(k, 0)] == key
        if k >= 0 and not found:  # rare in a sparse table
            k = table[_find(table, distinct, key, slot)]
            found = k >= 0
        after[i] = k if found else m
        first[after[i]] = False

    chain = np.empty(2 * m + 2, np.int32)
    chain[0] = m
    e = 1
    for i in range(m):
        if first[i] and after[i] < m:
            k = i
            while k < m:
                chain[e] = k
                e += 1
                k = after[k]
            chain[e] = m
            e += 1
    return chain[:e].copy()


@compiled_in_order
def _blur_mass(mass, chain):
    """Blur one number per lattice point; ``blur`` of the compiled module blurs rows of labels."""
    m = mass.size - 2
    before = np.float32(0)
    here = np.float32(0)
    for e in range(chain.size - 1):
        k = chain[e]
        following = mass[chain[e + 1]]
        # Row M stays zero; its writes are redirected to row M + 1.
        mass[k + (k == m)] = here + np.float32(0.5) * (before + following)
        before, here = here, following


@compiled_in_order
def _normalize(weights, vertices, mass):
    """Multiply the weights of position i by D_i^(-1/2), with D = S^T B S 1.

    The constant factor of ``Lattice.filter`` cancels in D^(-1/2) k D^(-1/2).
    """
    n, corners = weights.shape
    for i in range(n):
        degree = np.float32(0)
        for c in range(corners):
            degree += mass[vertices[i, c]] * weights[i, c]
        factor = np.float32(1) / np.sqrt(degree)
        for c in range(corners):
            weights[i, c] *= factor
