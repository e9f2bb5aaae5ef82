"""Compiled linear algebra for small symmetric float32 matrices: products, dominant eigenvector.

Loops over contiguous rows compile to vector instructions. A symmetric product costs half of a
general one, no BLAS threads compete with ours, and the order of all sums is fixed.
"""

# mypy: disallow-untyped-defs=False
from __future__ import annotations

import numpy as np

from primaps.utils.compiled import compiled

TOLERANCE = 1e-5  # residual of an eigenvector relative to its eigenvalue
MAX_STEPS = 96  # steps of the Lanczos process; real features need about 12


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
    limit = min(MAX_STEPS, size)
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
