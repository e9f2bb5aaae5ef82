"""Principal mask proposals on the CPU: one compiled function per image, images on threads.

The features of the unassigned tokens are represented by one small symmetric matrix that fits into
the CPU cache. While more tokens than channels are unassigned, it is their scatter matrix (C x C),
from which the features of each new mask are subtracted. After that it is their Gram matrix (n x n):
later masks need only a submatrix of it, and it contains the cosine similarities. The Lanczos
process finds the dominant eigenvector (:mod:`primaps.proposals.eigenvectors`). The order of all
sums is fixed; results depend neither on the number of threads nor on the batch.
"""

# mypy: disallow-untyped-defs=False
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from primaps.proposals.batched import FLAT, ImageProposals
from primaps.proposals.eigenvectors import (
    add_self_product,
    dominant,
    inner,
    self_product,
    sum_of,
    trace,
)
from primaps.utils.compiled import compiled, in_threads

STALE = 1e-3  # recompute a matrix once subtraction has left less than this share of it
TIE = np.float32(1 - 1e-6)  # cosines within this factor of the largest are equal: first is taken
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
    stop = int(np.floor((1 - coverage) * n + 1e-9))  # tokens that may stay unassigned
    # Eq. 7: continue with the unassigned tokens until enough are assigned. Tokens that stay 0 are
    # ignored (Eq. 8).
    while len(free) > stop:
        if len(free) > c:
            free, number = _by_scatter(f, inverse, free, stop, threshold, anchor, out, number)
        else:
            free, number = _by_gram(f, inverse, free, stop, threshold, anchor, out, number)
    return masks, values, anchors[:number].copy(), shares[:number].copy()


@compiled
def _by_scatter(f, inverse, free, stop, threshold, anchor, out, number):
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
        if len(free) <= max(stop, c) or len(free) < len(taken):
            return free, number
        # Subtract the features of the mask from the scatter matrix.
        rows = _rows_of_channels(f, mean, taken)
        add_self_product(rows, scatter, -_ONE)
        for i in range(c):
            total[i] -= sum_of(rows[i])
        if trace(scatter) - inner(total, total) / np.float32(len(free)) < STALE * energy:
            return free, number


@compiled
def _by_gram(f, inverse, free, stop, threshold, anchor, out, number):
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
        if len(free) <= stop:
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
