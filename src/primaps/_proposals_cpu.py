"""Principal mask proposals on the CPU: one compiled function per image, threads over images.

The still unassigned positions are kept as one small symmetric matrix that stays in cache: while
there are more of them than channels the scatter matrix (C x C), down-dated by the features that a
mask takes away; then their Gram matrix (n x n), of which later masks need only a submatrix and
which holds their cosine similarities too. The Lanczos process gives its dominant eigenvector.
All sums run in one fixed order, so nothing depends on the threads or on the batch.
"""

# mypy: disallow-untyped-defs=False
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from torch import Tensor

FLAT = 1e-10  # variance below this share of the energy is rounding
STALE = 1e-3  # rebuild a matrix once down-dating has left less than this share of it
TIE = np.float32(1 - 1e-6)  # cosines this close to the largest are equal: the first one counts
TOLERANCE = 1e-5  # residual of an eigenvector relative to its eigenvalue
MAX_STEPS = 96  # of the Lanczos process; real features need about 12
_ONE = np.float32(1)
_TINY = np.float32(1e-12)
# All of it stays in this file: numba looks for changes only in the file of a cached function.
_compiled = njit(nogil=True, cache=True, fastmath=True, error_model="numpy")


def propose_cpu(
    features: Tensor, threshold: float, coverage: float, anchor: bool
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Per image of (B, C, N) float32: masks (N), similarities (N), anchors (Z), shares (Z)."""

    def one(f: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        masks, values, anchors, shares = propose_image(f, np.float32(threshold), coverage, anchor)
        return (
            torch.from_numpy(masks),
            torch.from_numpy(values),
            torch.from_numpy(anchors),
            torch.from_numpy(shares),
        )

    maps = features.detach().contiguous().numpy()
    workers = min(len(maps), torch.get_num_threads())
    if workers <= 1:
        return [one(f) for f in maps]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, maps))


@_compiled
def propose_image(f, threshold, coverage, anchor):
    """Masks, similarities, anchors and shares of one image, f (C, N)."""
    c, n = f.shape
    masks, values = np.zeros(n, np.int64), np.zeros(n, np.float32)
    anchors, shares = np.empty(n, np.int64), np.empty(n, np.float32)
    squares = np.zeros(n, np.float32)
    for i in range(c):
        for j in range(n):
            squares[j] += f[i, j] * f[i, j]
    # Where a feature is zero its similarities are zero, whatever the rounding of products.
    inverse = np.zeros(n, np.float32)
    for j in range(n):
        if squares[j] > _TINY * _TINY:
            inverse[j] = _ONE / np.sqrt(squares[j])
    out = (masks, values, anchors, shares)
    free, found = np.arange(n), np.int64(0)  # the unassigned positions, the masks so far
    stop = int(np.floor((1 - coverage) * n + 1e-9))  # so many may stay unassigned
    while len(free) > stop:
        if len(free) > c:
            free, found = _by_scatter(f, inverse, free, stop, threshold, anchor, out, found)
        else:
            free, found = _by_gram(f, inverse, free, stop, threshold, anchor, out, found)
    return masks, values, anchors[:found].copy(), shares[:found].copy()


@_compiled
def _by_scatter(f, inverse, free, stop, threshold, anchor, out, found):
    """Masks while more than C positions are free, or until the matrix is stale."""
    c = len(f)
    mean = _mean(f, free)
    scatter = _self_product(_rows_of_channels(f, mean, free))
    energy = _trace(scatter)
    total = np.zeros(c, np.float32)  # of the free features, about `mean`
    while True:
        n = np.float32(len(free))
        matrix, now = scatter.copy(), mean.copy()
        for i in range(c):
            now[i] += total[i] / n
            for j in range(c):
                matrix[i, j] -= total[i] * total[j] / n
        variance, share = _trace(matrix), np.float32(0)
        if variance > FLAT * _energy(inverse, free):
            value, direction = _dominant(matrix, c)
            share = value / variance
        else:
            direction = now
        cosines = _cosines(f, direction, inverse, free)
        first = _signed_anchor(cosines)
        if anchor:
            cosines = _cosines(f, f[:, free[first]].copy(), inverse, free)
        keep = _assign(cosines, threshold, free, first, share, out, found)
        taken, free = _split(free, keep)
        if len(taken) == 0:
            return taken, found  # nothing is similar to anything: features of zeros
        found += 1
        # Fewer kept than taken: summing over them anew is cheaper, and exact.
        if len(free) <= max(stop, c) or len(free) < len(taken):
            return free, found
        rows = _rows_of_channels(f, mean, taken)
        _add_self_product(rows, scatter, -_ONE)
        for i in range(c):
            total[i] -= _sum(rows[i])
        if _trace(scatter) - _inner(total, total) / np.float32(len(free)) < STALE * energy:
            return free, found


@_compiled
def _by_gram(f, inverse, free, stop, threshold, anchor, out, found):
    """Masks from the Gram matrix of the free positions, until enough or until it is stale."""
    mean = _mean(f, free)
    rows = _rows_of_positions(f, mean, free)
    gram = _self_product(rows)
    offset = np.zeros(len(free), np.float32)  # of each centred feature along `mean`
    for i in range(len(free)):
        offset[i] = _inner(rows[i, : len(mean)], mean)
    square = _inner(mean, mean)
    while True:
        n = len(free)
        average, cosines = np.empty(n, np.float32), np.empty(n, np.float32)
        for i in range(n):
            average[i] = _sum(gram[i]) / np.float32(n)
        middle, drift = _sum(average) / np.float32(n), _sum(offset) / np.float32(n)
        matrix = np.zeros_like(gram)
        for i in range(n):
            for j in range(n):
                matrix[i, j] = gram[i, j] - average[i] - average[j] + middle
        variance, share = _trace(matrix), np.float32(0)
        if variance > FLAT * _energy(inverse, free):
            value, u = _dominant(matrix, n)
            share = value / variance
            # The projections of the centred features, plus that of their mean.
            length = np.sqrt(value)
            plus = (_inner(u, offset) + _inner(u, average)) / length
            for i in range(n):
                cosines[i] = (length * u[i] + plus) * inverse[free[i]]
        else:
            length = np.sqrt(max(middle + 2 * drift + square, _TINY))
            for i in range(n):
                cosines[i] = (offset[i] + average[i] + drift + square) / length * inverse[free[i]]
        first = _signed_anchor(cosines)
        if anchor:
            for i in range(n):
                product = gram[first, i] + offset[i] + offset[first] + square
                cosines[i] = product * inverse[free[i]] * inverse[free[first]]
        keep = _assign(cosines, threshold, free, first, share, out, found)
        taken, free = _split(free, keep)
        if len(taken) == 0:
            return taken, found
        found += 1
        if len(free) <= stop:
            return free, found
        _, kept = _split(np.arange(n), keep)
        size = _padded(len(free), 4)
        smaller, energy = np.zeros((size, size), np.float32), np.float32(0)
        for i in range(len(kept)):
            offset[i] = offset[kept[i]]
            energy += gram[kept[i], kept[i]]
            for j in range(len(kept)):
                smaller[i, j] = gram[kept[i], kept[j]]
        gram, offset = smaller, offset[: len(kept)]
        total = np.float32(0)
        for i in range(len(kept)):
            total += _sum(gram[i])
        if energy - total / np.float32(len(free)) < STALE * energy:
            return free, found


@_compiled
def _assign(cosines, threshold, free, first, share, out, found):
    """Record one mask (Eq. 6); True where a position stays free."""
    masks, values, anchors, shares = out
    top = cosines[0]
    for cosine in cosines:
        top = max(top, cosine)
    keep = np.ones(len(free), np.bool_)
    if top > 0:
        for i in range(len(free)):
            if cosines[i] > threshold * top:
                keep[i] = False
                masks[free[i]] = found + 1
                values[free[i]] = cosines[i] / top
        anchors[found], shares[found] = free[first], share
    return keep


@_compiled
def _signed_anchor(cosines):
    """Where the absolute cosine with the component is largest; the sign that makes it positive."""
    top = np.float32(0)
    for cosine in cosines:
        top = max(top, abs(cosine))
    first = 0
    for i in range(len(cosines)):
        if abs(cosines[i]) >= TIE * top:
            first = i
            break
    if cosines[first] < 0:
        for i in range(len(cosines)):
            cosines[i] = -cosines[i]
    return first


@_compiled
def _split(free, keep):
    """Positions that were taken, and those that stay free."""
    count = 0
    for each in keep:
        count += each
    taken, kept = np.empty(len(free) - count, np.int64), np.empty(count, np.int64)
    count = 0
    for i in range(len(free)):
        if keep[i]:
            kept[count] = free[i]
            count += 1
        else:
            taken[i - count] = free[i]
    return taken, kept


@_compiled
def _mean(f, free):
    mean = np.empty(len(f), np.float32)
    for i in range(len(f)):
        total = np.float32(0)
        for j in free:
            total += f[i, j]
        mean[i] = total / np.float32(len(free))
    return mean


@_compiled
def _cosines(f, x, inverse, free):
    """Cosine of x with the feature of each free position."""
    products = np.zeros(f.shape[1], np.float32)
    for i in range(len(f)):
        for j in range(len(products)):
            products[j] += x[i] * f[i, j]
    out = np.empty(len(free), np.float32)
    length = max(np.sqrt(_inner(x, x)), _TINY)
    for j in range(len(free)):
        out[j] = products[free[j]] / length * inverse[free[j]]
    return out


@_compiled
def _padded(size, multiple):
    return (size + multiple - 1) // multiple * multiple


@_compiled
def _rows_of_channels(f, mean, free):
    """Centred features, a row per channel; zeros fill up what the vector loops like to have."""
    rows = np.zeros((_padded(len(f), 4), _padded(len(free), 16)), np.float32)
    for i in range(len(f)):
        for j in range(len(free)):
            rows[i, j] = f[i, free[j]] - mean[i]
    return rows


@_compiled
def _rows_of_positions(f, mean, free):
    """Centred features, a row per free position, filled up likewise."""
    rows = np.zeros((_padded(len(free), 4), _padded(len(f), 16)), np.float32)
    for block in range(0, len(free), 16):  # as many rows at a time as cache lines stay open
        for i in range(len(f)):
            for j in range(block, min(block + 16, len(free))):
                rows[j, i] = f[i, free[j]] - mean[i]
    return rows


@_compiled
def _energy(inverse, free):
    total = np.float32(0)
    for j in free:
        if inverse[j] > 0:
            total += _ONE / (inverse[j] * inverse[j])
    return total


@_compiled
def _sum(x):
    total = np.float32(0)
    for each in x:
        total += each
    return total


@_compiled
def _trace(matrix):
    total = np.float32(0)
    for i in range(len(matrix)):
        total += matrix[i, i]
    return total


@_compiled
def _self_product(a):
    """a @ a.T for a (R, K) with R a multiple of 4."""
    out = np.zeros((len(a), len(a)), np.float32)
    _add_self_product(a, out, np.float32(1))
    return out


@_compiled
def _add_self_product(a, out, sign):
    """out += sign * a @ a.T for a (R, K) with R a multiple of 4; out (R, R) is symmetric."""
    zero = np.float32(0)
    for i in range(0, len(a), 4):
        a0, a1, a2, a3 = a[i], a[i + 1], a[i + 2], a[i + 3]
        for j in range(0, i + 4, 4):
            b0, b1, b2, b3 = a[j], a[j + 1], a[j + 2], a[j + 3]
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = zero
            s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = zero
            for k in range(a.shape[1]):  # 16 sums in registers for 8 loads
                p0, p1, p2, p3 = a0[k], a1[k], a2[k], a3[k]
                q0, q1, q2, q3 = b0[k], b1[k], b2[k], b3[k]
                s00 += p0 * q0
                s01 += p0 * q1
                s02 += p0 * q2
                s03 += p0 * q3
                s10 += p1 * q0
                s11 += p1 * q1
                s12 += p1 * q2
                s13 += p1 * q3
                s20 += p2 * q0
                s21 += p2 * q1
                s22 += p2 * q2
                s23 += p2 * q3
                s30 += p3 * q0
                s31 += p3 * q1
                s32 += p3 * q2
                s33 += p3 * q3
            tile = (s00, s01, s02, s03, s10, s11, s12, s13, s20, s21, s22, s23, s30, s31, s32, s33)
            for r in range(4):
                for q in range(4 if j < i else r + 1):
                    out[i + r, j + q] += sign * tile[4 * r + q]
                    out[j + q, i + r] = out[i + r, j + q]


@_compiled
def _dominant(matrix, size):
    """Largest eigenvalue and its eigenvector (unit length) of a positive semidefinite matrix.

    Lanczos with full reorthogonalisation, until the residual is below TOLERANCE times the
    eigenvalue. ``size`` leaves out rows of padding at the end. Returns (value, vector (size)).
    """
    limit = min(MAX_STEPS, size)
    basis = np.zeros((limit + 1, len(matrix)), np.float32)
    alpha, beta = np.zeros(limit), np.zeros(limit)
    _fill_start(basis[0], size)
    w, overlap = np.empty(len(matrix), np.float32), np.empty(limit, np.float32)
    value, weights = 0.0, np.ones(1)
    for k in range(limit):
        _multiply(matrix, basis[k], w)
        for repeat in range(2):  # classical Gram-Schmidt, twice is enough
            _multiply(basis[: k + 1], w, overlap)
            if repeat == 0:
                alpha[k] = overlap[k]
            for i in range(k + 1):
                for j in range(len(w)):
                    w[j] -= overlap[i] * basis[i, j]
        beta[k] = np.sqrt(np.float64(_inner(w, w)))
        last = k == limit - 1 or beta[k] <= 1e-7 * (alpha[0] + beta[0])
        if last or k % 3 == 2:
            value, weights = _top_of_tridiagonal(alpha, beta, k + 1)
            if last or beta[k] * abs(weights[k]) <= TOLERANCE * value:
                break
        for j in range(size):
            basis[k + 1, j] = w[j] / np.float32(beta[k])
    vector = np.zeros(size, np.float32)
    for i in range(len(weights)):
        for j in range(size):
            vector[j] += np.float32(weights[i]) * basis[i, j]
    length = np.sqrt(_inner(vector, vector))
    for j in range(size):
        vector[j] /= length
    return np.float32(value), vector


@_compiled
def _multiply(rows, x, out):
    """out[i] = rows[i] . x"""
    for i in range(len(rows)):
        out[i] = _inner(rows[i], x)


@_compiled
def _inner(x, y):
    total = np.float32(0)
    for j in range(len(x)):
        total += x[j] * y[j]
    return total


@_compiled
def _fill_start(x, size):
    """A fixed unit vector without structure (a linear congruential sequence)."""
    state = np.uint32(1)
    for i in range(size):
        state = np.uint32(state * np.uint32(1664525) + np.uint32(1013904223))
        x[i] = np.float32(state) / np.float32(2**31) - _ONE
    length = np.sqrt(_inner(x, x))
    for i in range(size):
        x[i] /= length


@_compiled
def _top_of_tridiagonal(alpha, beta, k):
    """Largest eigenvalue and eigenvector of the k x k matrix of diagonals alpha and beta."""
    bound = alpha[0] + beta[0]
    for i in range(1, k):
        bound = max(bound, alpha[i] + beta[i - 1] + (beta[i] if i < k - 1 else 0.0))
    # Newton's method on the characteristic polynomial falls to its largest root from above.
    x = bound * (1 + 1e-9)
    pivots = np.empty(k)
    for _ in range(200):
        step = 1 / _factorise(alpha, beta, x, pivots)
        if not step > 1e-10 * x:
            break
        x -= step
    # One inverse iteration a hair above the root, where the factorisation is stable.
    _factorise(alpha, beta, x * (1 + 1e-9), pivots)
    s = np.zeros(k)
    s[0] = 1.0
    for i in range(1, k):
        s[i] = beta[i - 1] / pivots[i - 1] * s[i - 1]
    s[k - 1] /= pivots[k - 1]
    for i in range(k - 2, -1, -1):
        s[i] = (s[i] + beta[i] * s[i + 1]) / pivots[i]
    square = 0.0
    for i in range(k):
        square += s[i] * s[i]
    for i in range(k):
        s[i] /= np.sqrt(square)
    return x, s


@_compiled
def _factorise(alpha, beta, x, pivots):
    """Pivots of x - T; returns the logarithmic derivative of its determinant."""
    pivots[0] = x - alpha[0]
    slope = 1.0
    total = slope / pivots[0]
    for i in range(1, len(pivots)):
        ratio = beta[i - 1] / pivots[i - 1]
        slope = 1 + ratio * ratio * slope
        pivots[i] = x - alpha[i] - ratio * beta[i - 1]
        total += slope / pivots[i]
    return total
