"""Principal mask proposals on the CPU: one compiled function per image, images on threads.

The features of the unassigned tokens are represented by one small symmetric matrix that fits into
the CPU cache. While more tokens than channels are unassigned, it is their scatter matrix (C x C),
from which the features of each new mask are subtracted. After that it is their Gram matrix (n x n):
later masks need only a submatrix of it, and it contains the cosine similarities. The Lanczos
process finds the dominant eigenvector. Linear algebra is written as loops over contiguous rows,
which compile to vector instructions: a symmetric product costs half of a general one, and no BLAS
threads compete with ours. The order of all sums is fixed; results depend neither on the number of
threads nor on the batch.
"""

# mypy: disallow-untyped-defs=False
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from primaps.proposals.batched import FLAT, TOLERANCE, ImageProposals
from primaps.utils.compiled import compiled, in_threads

STALE = 1e-3  # recompute a matrix once subtraction has left less than this share of it
TIE = np.float32(1 - 1e-6)  # cosines within this factor of the largest are equal: first is taken
MAX_LANCZOS = 96  # steps; real features need about 12
_ONE = np.float32(1)
_TINY = np.float32(1e-12)


def propose_cpu(
    features: Tensor, threshold: float, coverage: float, anchor: bool
) -> list[ImageProposals]:
    """Return the proposals of each image of (B, C, N) float32 features."""

    def one(f: np.ndarray) -> ImageProposals:
        arrays = propose_image(f, np.float32(threshold), coverage, anchor)
        return ImageProposals(*map(torch.from_numpy, arrays))

    maps = features.detach().contiguous().numpy()
    return in_threads(len(maps), lambda i: one(maps[i]))


@compiled
def propose_image(f, threshold, coverage, anchor):
    """Return masks, similarities, anchors and shares of one image with features f (C, N)."""
    c, n = f.shape
    masks, values = np.zeros(n, np.int64), np.zeros(n, np.float32)
    anchors, shares = np.empty(n, np.int64), np.empty(n, np.float32)
    squares = np.zeros(n, np.float32)
    for i in range(c):
        for j in range(n):
            squares[j] += f[i, j] * f[i, j]
    # The similarities of a zero feature are exactly zero.
    inverse = np.zeros(n, np.float32)
    for j in range(n):
        if squares[j] > _TINY * _TINY:
            inverse[j] = _ONE / np.sqrt(squares[j])
    out = (masks, values, anchors, shares)
    free, number = np.arange(n), np.int64(0)  # unassigned tokens, and masks so far
    max_free = int(np.floor((1 - coverage) * n + 1e-9))  # tokens that may stay unassigned
    # Eq. 7: continue with the unassigned tokens until enough are assigned. Tokens that stay 0 are
    # ignored (Eq. 8).
    while len(free) > max_free:
        if len(free) > c:
            free, number = _by_scatter(f, inverse, free, max_free, threshold, anchor, out, number)
        else:
            free, number = _by_gram(f, inverse, free, max_free, threshold, anchor, out, number)
    return masks, values, anchors[:number].copy(), shares[:number].copy()


@compiled
def _by_scatter(f, inverse, free, max_free, threshold, anchor, out, number):
    """Find masks while more than C tokens are free, or until the matrix is stale."""
    c = len(f)
    mean = _mean(f, free)
    scatter = self_product(_rows_of_channels(f, mean, free))  # Eq. 2, times the number of tokens
    energy = trace(scatter)
    total = np.zeros(c, np.float32)  # sum of the free features minus `mean`
    while True:
        # Eq. 2: center the scatter matrix at the mean of the tokens that are still free.
        n = np.float32(len(free))
        matrix, now = scatter.copy(), mean.copy()
        for i in range(c):
            now[i] += total[i] / n
            for j in range(c):
                matrix[i, j] -= total[i] * total[j] / n
        # Eq. 3: first principal component; the mean represents features without variance.
        variance, share = trace(matrix), np.float32(0)
        if variance > FLAT * _energy(inverse, free):
            value, direction = dominant(matrix, c)
            share = value / variance
        else:
            direction = now
        cosines = _cosines(f, direction, inverse, free)
        first = _signed_anchor(cosines)  # Eq. 4
        if anchor:  # Eq. 5
            cosines = _cosines(f, f[:, free[first]].copy(), inverse, free)
        keep = _assign(cosines, threshold, free, first, share, out, number)  # Eq. 6
        taken, free = _split(free, keep)  # Eq. 7
        if len(taken) == 0:
            return taken, number  # only zero features are left
        number += 1
        # If fewer tokens are free than were taken, a new sum is cheaper, and exact.
        if len(free) <= max(max_free, c) or len(free) < len(taken):
            return free, number
        # Subtract the features of the mask from the scatter matrix.
        rows = _rows_of_channels(f, mean, taken)
        add_self_product(rows, scatter, -_ONE)
        for i in range(c):
            total[i] -= sum_of(rows[i])
        if trace(scatter) - inner(total, total) / np.float32(len(free)) < STALE * energy:
            return free, number


@compiled
def _by_gram(f, inverse, free, max_free, threshold, anchor, out, number):
    """Find masks from the Gram matrix of the free tokens, or until the matrix is stale."""
    mean = _mean(f, free)
    rows = _rows_of_tokens(f, mean, free)
    gram = self_product(rows)  # Eq. 2: its eigenvalues are those of the scatter matrix
    offset = np.zeros(len(free), np.float32)  # product of each centered feature with `mean`
    for i in range(len(free)):
        offset[i] = inner(rows[i, : len(mean)], mean)
    square = inner(mean, mean)
    while True:
        # Eq. 2: center the Gram matrix at the mean of the tokens that are still free.
        n = len(free)
        average, cosines = np.empty(n, np.float32), np.empty(n, np.float32)
        for i in range(n):
            average[i] = sum_of(gram[i]) / np.float32(n)
        middle, drift = sum_of(average) / np.float32(n), sum_of(offset) / np.float32(n)
        matrix = np.zeros_like(gram)
        for i in range(n):
            for j in range(n):
                matrix[i, j] = gram[i, j] - average[i] - average[j] + middle
        # Eq. 3: cosines with the first principal component, from the eigenvector of the Gram
        # matrix: the projections of the centered features, plus the projection of their mean.
        variance, share = trace(matrix), np.float32(0)
        if variance > FLAT * _energy(inverse, free):
            value, u = dominant(matrix, n)
            share = value / variance
            length = np.sqrt(value)
            plus = (inner(u, offset) + inner(u, average)) / length
            for i in range(n):
                cosines[i] = (length * u[i] + plus) * inverse[free[i]]
        else:
            length = np.sqrt(max(middle + 2 * drift + square, _TINY))
            for i in range(n):
                cosines[i] = (offset[i] + average[i] + drift + square) / length * inverse[free[i]]
        first = _signed_anchor(cosines)  # Eq. 4
        if anchor:  # Eq. 5
            for i in range(n):
                product = gram[first, i] + offset[i] + offset[first] + square
                cosines[i] = product * inverse[free[i]] * inverse[free[first]]
        keep = _assign(cosines, threshold, free, first, share, out, number)  # Eq. 6
        taken, free = _split(free, keep)  # Eq. 7
        if len(taken) == 0:
            return taken, number
        number += 1
        if len(free) <= max_free:
            return free, number
        # The Gram matrix of the tokens that are still free is a submatrix.
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
            total += sum_of(gram[i])
        if energy - total / np.float32(len(free)) < STALE * energy:
            return free, number


@compiled
def _assign(cosines, threshold, free, first, share, out, number):
    """Record one mask (Eq. 6); return True where a token stays free."""
    masks, values, anchors, shares = out
    top = cosines[0]
    for cosine in cosines:
        top = max(top, cosine)
    keep = np.ones(len(free), np.bool_)
    if top > 0:
        for i in range(len(free)):
            if cosines[i] > threshold * top:
                keep[i] = False
                masks[free[i]] = number + 1
                values[free[i]] = cosines[i] / top
        anchors[number], shares[number] = free[first], share
    return keep


@compiled
def _signed_anchor(cosines):
    """Return the token with the largest absolute cosine (Eq. 4), and make that cosine positive."""
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


@compiled
def _split(free, keep):
    """Return the tokens that are taken, and those that stay free."""
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


@compiled
def _mean(f, free):
    mean = np.empty(len(f), np.float32)
    for i in range(len(f)):
        total = np.float32(0)
        for j in free:
            total += f[i, j]
        mean[i] = total / np.float32(len(free))
    return mean


@compiled
def _cosines(f, x, inverse, free):
    """Return the cosine of x with the feature of each free token."""
    products = np.zeros(f.shape[1], np.float32)
    for i in range(len(f)):
        for j in range(len(products)):
            products[j] += x[i] * f[i, j]
    out = np.empty(len(free), np.float32)
    length = max(np.sqrt(inner(x, x)), _TINY)
    for j in range(len(free)):
        out[j] = products[free[j]] / length * inverse[free[j]]
    return out


@compiled
def _padded(size, multiple):
    return (size + multiple - 1) // multiple * multiple


@compiled
def _rows_of_channels(f, mean, free):
    """Return centered features, one row per channel, padded with zeros for the vector loops."""
    rows = np.zeros((_padded(len(f), 4), _padded(len(free), 16)), np.float32)
    for i in range(len(f)):
        for j in range(len(free)):
            rows[i, j] = f[i, free[j]] - mean[i]
    return rows


@compiled
def _rows_of_tokens(f, mean, free):
    """Return centered features, one row per free token, padded with zeros."""
    rows = np.zeros((_padded(len(free), 4), _padded(len(f), 16)), np.float32)
    for block in range(0, len(free), 16):  # as many rows as stay in the cache
        for i in range(len(f)):
            for j in range(block, min(block + 16, len(free))):
                rows[j, i] = f[i, free[j]] - mean[i]
    return rows


@compiled
def _energy(inverse, free):
    total = np.float32(0)
    for j in free:
        if inverse[j] > 0:
            total += _ONE / (inverse[j] * inverse[j])
    return total


@compiled
def sum_of(x):
    total = np.float32(0)
    for each in x:
        total += each
    return total


@compiled
def trace(matrix):
    total = np.float32(0)
    for i in range(len(matrix)):
        total += matrix[i, i]
    return total


@compiled
def self_product(a):
    """Return a @ a.T for a (R, K) with R a multiple of 4."""
    out = np.zeros((len(a), len(a)), np.float32)
    add_self_product(a, out, np.float32(1))
    return out


@compiled
def add_self_product(a, out, sign):
    """Add sign * a @ a.T to the symmetric out (R, R), for a (R, K) with R a multiple of 4."""
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


@compiled
def dominant(matrix, size):
    """Return the largest eigenvalue and its unit eigenvector of a positive semidefinite matrix.

    The Lanczos process with full reorthogonalization runs until the residual is below TOLERANCE
    times the eigenvalue. Rows beyond ``size`` are padding.
    """
    limit = min(MAX_LANCZOS, size)
    basis = np.zeros((limit + 1, len(matrix)), np.float32)
    alpha, beta = np.zeros(limit), np.zeros(limit)
    fill_start(basis[0], size)
    w, overlap = np.empty(len(matrix), np.float32), np.empty(limit, np.float32)
    value, weights = 0.0, np.ones(1)
    for k in range(limit):
        multiply(matrix, basis[k], w)
        for repeat in range(2):  # classical Gram-Schmidt twice
            multiply(basis[: k + 1], w, overlap)
            if repeat == 0:
                alpha[k] = overlap[k]
            for i in range(k + 1):
                for j in range(len(w)):
                    w[j] -= overlap[i] * basis[i, j]
        beta[k] = np.sqrt(np.float64(inner(w, w)))
        last = k == limit - 1 or beta[k] <= 1e-7 * (alpha[0] + beta[0])
        if last or k % 3 == 2:
            value, weights = top_of_tridiagonal(alpha, beta, k + 1)
            if last or beta[k] * abs(weights[k]) <= TOLERANCE * value:
                break
        for j in range(size):
            basis[k + 1, j] = w[j] / np.float32(beta[k])
    vector = np.zeros(size, np.float32)
    for i in range(len(weights)):
        for j in range(size):
            vector[j] += np.float32(weights[i]) * basis[i, j]
    length = np.sqrt(inner(vector, vector))
    for j in range(size):
        vector[j] /= length
    return np.float32(value), vector


@compiled
def multiply(rows, x, out):
    """Compute out[i] = rows[i] . x."""
    for i in range(len(rows)):
        out[i] = inner(rows[i], x)


@compiled
def inner(x, y):
    total = np.float32(0)
    for j in range(len(x)):
        total += x[j] * y[j]
    return total


@compiled
def fill_start(x, size):
    """Fill x with a fixed unit vector without structure (a linear congruential sequence)."""
    state = np.uint32(1)
    for i in range(size):
        state = np.uint32(state * np.uint32(1664525) + np.uint32(1013904223))
        x[i] = np.float32(state) / np.float32(2**31) - np.float32(1)
    length = np.sqrt(inner(x, x))
    for i in range(size):
        x[i] /= length


@compiled
def top_of_tridiagonal(alpha, beta, k):
    """Return the largest eigenvalue and eigenvector of a k x k tridiagonal matrix.

    Its diagonal is ``alpha`` and its off-diagonal ``beta``.
    """
    bound = alpha[0] + beta[0]
    for i in range(1, k):
        bound = max(bound, alpha[i] + beta[i - 1] + (beta[i] if i < k - 1 else 0.0))
    # Newton's method on the characteristic polynomial converges to its largest root from above.
    x = bound * (1 + 1e-9)
    pivots = np.empty(k)
    for _ in range(200):
        step = 1 / _factorize(alpha, beta, x, pivots)
        if not step > 1e-10 * x:
            break
        x -= step
    # One inverse iteration slightly above the root, where the factorization is stable.
    _factorize(alpha, beta, x * (1 + 1e-9), pivots)
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


@compiled
def _factorize(alpha, beta, x, pivots):
    """Compute the pivots of x - T, and return the logarithmic derivative of its determinant."""
    pivots[0] = x - alpha[0]
    slope = 1.0
    total = slope / pivots[0]
    for i in range(1, len(pivots)):
        ratio = beta[i - 1] / pivots[i - 1]
        slope = 1 + ratio * ratio * slope
        pivots[i] = x - alpha[i] - ratio * beta[i - 1]
        total += slope / pivots[i]
    return total
