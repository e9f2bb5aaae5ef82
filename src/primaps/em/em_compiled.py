"""The steps of EM at image size, compiled for CPUs: upsampling, softmax and loss in one pass.

A row of the image is computed for all classes at once, and only classes and labels are stored at
image size. Bilinear upsampling is separable: columns are expanded first (h x K x W numbers, which
stay in the CPU cache), rows are blended when needed, and the gradient is summed the same way. The
innermost loop runs over pixels and compiles to vector instructions for any K.

The results equal the torch operations of :mod:`primaps.em.em` up to rounding. Images are computed
on several threads; the order of all sums is fixed, and results do not depend on the number of
threads.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from primaps.features.feature_cache import MASKS
from primaps.utils.bilinear import axes
from primaps.utils.compiled import compiled, exponential, in_threads

Floats = NDArray[np.float32]


def assign(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`primaps.em.em.assign`."""
    small, mask = _numpy(logits), masks.to(torch.uint8).contiguous().numpy()
    spans = axes(small.shape[-2:], mask.shape[1:])
    pseudo = np.empty(mask.shape, np.int16)
    counts = np.zeros((len(mask), MASKS, small.shape[1]), np.int32)
    in_threads(len(mask), lambda i: _assign(small[i], *spans, mask[i], pseudo[i], counts[i]))
    return torch.from_numpy(pseudo), torch.from_numpy(counts)


def confidence_sum(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """See :func:`primaps.em.em.confidence_sum`."""
    small, spans = _numpy(logits), axes(logits.shape[-2:], size)
    sums = in_threads(len(small), lambda i: _confidence(small[i], *spans))
    return torch.from_numpy(np.sum([np.zeros(small.shape[1]), *sums], axis=0))


def weighted_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """See :func:`primaps.em.em.weighted_cross_entropy`."""
    small, label = _numpy(logits), labels.to(torch.int16).contiguous().numpy()
    spans = axes(small.shape[-2:], label.shape[1:])
    weight, gradient = weights.float().numpy(), np.zeros_like(small)
    losses = in_threads(
        len(small), lambda i: _gradient(small[i], *spans, label[i], weight, gradient[i])
    )
    return torch.tensor(sum(losses), dtype=torch.float64), torch.from_numpy(gradient)


def _numpy(logits: Tensor) -> Floats:
    return logits.detach().float().contiguous().numpy()


@compiled
def _expand(logits, x0, x1, fx):  # type: ignore[no-untyped-def]
    """Upsample the columns of logits (K, h, w) to (h, K, W)."""
    classes, height = logits.shape[:2]
    out = np.empty((height, classes, len(x0)), np.float32)
    for y in range(height):
        for k in range(classes):
            row, target = logits[k, y], out[y, k]
            for j in range(len(x0)):
                target[j] = row[x0[j]] + fx[j] * (row[x1[j]] - row[x0[j]])
    return out


@compiled
def _row(low, high, blend, z, top):  # type: ignore[no-untyped-def]
    """Blend one row of logits z (K, W) and find the largest value per pixel."""
    for k in range(len(z)):
        a, b, target = low[k], high[k], z[k]
        if k == 0:
            for j in range(len(top)):
                target[j] = a[j] + blend * (b[j] - a[j])
                top[j] = target[j]
        else:
            for j in range(len(top)):
                value = a[j] + blend * (b[j] - a[j])
                target[j] = value
                top[j] = max(top[j], value)


@compiled
def _softmax(z, top, total):  # type: ignore[no-untyped-def]
    """Replace z by e^(z - top), and total by its sum over classes."""
    total[:] = 0
    for k in range(len(z)):
        row = z[k]
        for j in range(len(top)):
            value = exponential(row[j] - top[j])
            row[j] = value
            total[j] += value


@compiled
def _classes(logits, y0, y1, fy, x0, x1, fx, out):  # type: ignore[no-untyped-def]
    wide = _expand(logits, x0, x1, fx)
    top = np.empty(len(x0), np.float32)
    for i in range(len(y0)):
        low, high, blend, winner = wide[y0[i]], wide[y1[i]], fy[i], out[i]
        for j in range(len(x0)):
            top[j] = low[0, j] + blend * (high[0, j] - low[0, j])
            winner[j] = 0
        for k in range(1, len(logits)):
            a, b = low[k], high[k]
            for j in range(len(x0)):
                value = a[j] + blend * (b[j] - a[j])
                winner[j] = k if value > top[j] else winner[j]
                top[j] = max(top[j], value)


@compiled
def _assign(logits, y0, y1, fy, x0, x1, fx, masks, pseudo, counts):  # type: ignore[no-untyped-def]
    """E-step: count the predicted classes per mask, and give each mask its most frequent class."""
    _classes(logits, y0, y1, fy, x0, x1, fx, pseudo)
    for i in range(len(y0)):
        for j in range(len(x0)):
            counts[masks[i, j], pseudo[i, j]] += 1
    winner = np.empty(len(counts), np.int16)
    winner[0] = -1
    for mask in range(1, len(counts)):
        winner[mask] = np.argmax(counts[mask])
    for i in range(len(y0)):
        for j in range(len(x0)):
            pseudo[i, j] = winner[masks[i, j]]


@compiled
def _confidence(logits, y0, y1, fy, x0, x1, fx):  # type: ignore[no-untyped-def]
    """Sum the softmax probability of each class over the pixels: chi of Eq. 10, times pixels."""
    classes = len(logits)
    wide = _expand(logits, x0, x1, fx)
    z = np.empty((classes, len(x0)), np.float32)
    top, total = np.empty(len(x0), np.float32), np.empty(len(x0), np.float32)
    sums = np.zeros(classes)
    for i in range(len(y0)):
        _row(wide[y0[i]], wide[y1[i]], fy[i], z, top)
        _softmax(z, top, total)
        for j in range(len(x0)):
            total[j] = np.float32(1) / total[j]
        for k in range(classes):
            row, share = z[k], np.float32(0)
            for j in range(len(x0)):
                share += row[j] * total[j]
            sums[k] += share
    return sums


@compiled
def _gradient(logits, y0, y1, fy, x0, x1, fx, labels, weights, out):  # type: ignore[no-untyped-def]
    """Sum the weighted cross-entropy of Eq. 10; add its gradient to ``out`` (K, h, w)."""
    classes = len(logits)
    wide = _expand(logits, x0, x1, fx)
    back = np.zeros_like(wide)
    z = np.empty((classes, len(x0)), np.float32)
    top, total = np.empty(len(x0), np.float32), np.empty(len(x0), np.float32)
    loss = 0.0
    for i in range(len(y0)):
        _row(wide[y0[i]], wide[y1[i]], fy[i], z, top)
        _softmax(z, top, total)
        label = labels[i]
        for j in range(len(x0)):  # total becomes the factor of each probability
            if label[j] >= 0:
                weight = weights[label[j]]
                chance = max(z[label[j], j] / total[j], np.float32(1e-37))
                loss -= weight * np.log(chance)
                total[j] = weight / total[j]
            else:
                total[j] = 0
        blend, low, high = fy[i], back[y0[i]], back[y1[i]]
        for k in range(classes):
            row, a, b = z[k], low[k], high[k]
            for j in range(len(x0)):
                value = row[j] * total[j]
                value -= weights[k] if label[j] == k else np.float32(0)
                a[j] += (np.float32(1) - blend) * value
                b[j] += blend * value
    for y in range(wide.shape[0]):
        for k in range(classes):
            source, target = back[y, k], out[k, y]
            for j in range(len(x0)):
                target[x0[j]] += (np.float32(1) - fx[j]) * source[j]
                target[x1[j]] += fx[j] * source[j]
    return loss
