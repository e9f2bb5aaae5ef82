"""Compiled prediction of boosted trees that are stored as arrays."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Integer

from primaps.utils.compiled import compiled, in_threads

BLOCK = 4096
"""Pixels that a thread predicts at once: their features fit into the cache of a core."""


def boosted(
    x: Float[np.ndarray, "n f"],
    feature: Integer[np.ndarray, "t m"],
    threshold: Float[np.ndarray, "t m"],
    children: Integer[np.ndarray, "t m 2"],
    value: Float[np.ndarray, "t m"],
    baseline: Float[np.ndarray, " k"],
) -> Float[np.ndarray, "n k"]:
    """Return the sums of the values of the leaves that rows reach, on all threads.

    Args:
        x: features of each row.
        feature: feature that each node compares, -1 for a leaf. Tree t is of class t mod K.
        threshold: rows with at most this value go to the first child.
        children: numbers of the two child nodes.
        value: value of each leaf.
        baseline: value that is added for each class.

    Examples:
        >>> nodes = np.array([[0, -1, -1]]), np.array([[0.5, 0, 0]], np.float32)
        >>> children = np.array([[[1, 2], [0, 0], [0, 0]]])
        >>> boosted(np.array([[0.1], [0.9]], np.float32), *nodes, children,
        ...         np.array([[0, -1, 1]], np.float32), np.zeros(1, np.float32)).tolist()
        [[-1.0], [1.0]]
    """
    out = np.repeat(baseline.astype(np.float32)[None], len(x), 0)
    rows = np.ascontiguousarray(x, np.float32)
    trees = (
        np.ascontiguousarray(feature, np.int16), np.ascontiguousarray(threshold, np.float32),
        np.ascontiguousarray(children, np.int16), np.ascontiguousarray(value, np.float32),
    )  # fmt: skip
    blocks = [slice(start, start + BLOCK) for start in range(0, len(x), BLOCK)]
    in_threads(len(blocks), lambda i: _add(rows[blocks[i]], *trees, out[blocks[i]]))
    return out


@compiled
def _add(x, feature, threshold, children, value, out):  # type: ignore[no-untyped-def]
    classes = out.shape[1]
    for tree in range(len(feature)):
        k = tree % classes
        for i in range(len(x)):
            node = 0
            while feature[tree, node] >= 0:
                larger = x[i, feature[tree, node]] > threshold[tree, node]
                node = children[tree, node, 1 if larger else 0]
            out[i, k] += value[tree, node]
