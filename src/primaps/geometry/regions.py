"""Regions of a label map: one per class, or one per connected component."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Integer
from scipy.ndimage import find_objects
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

NO_LABEL = 255
"""Value of a pixel without a label."""


@dataclass(frozen=True)
class Regions:
    """Regions 1..N of a label map.

    Attributes:
        numbers: Region of every pixel; 0 means no region.
        classes: Class of each region.
    """

    numbers: Integer[np.ndarray, "h w"]
    classes: Integer[np.ndarray, " n"]

    def slices(self) -> list[tuple[slice, slice]]:
        """Return the bounding box of each region as slices of rows and columns."""
        return find_objects(self.numbers, len(self.classes))

    def boxes(self) -> Integer[np.ndarray, "n 4"]:
        """Return left, top, width and height of each region."""
        corners = [
            (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
            for rows, columns in self.slices()
        ]
        return np.array(corners, np.int64).reshape(-1, 4)

    def areas(self) -> Integer[np.ndarray, " n"]:
        """Return the number of pixels of each region."""
        return np.bincount(self.numbers.ravel(), minlength=len(self.classes) + 1)[1:]

    def masks(self) -> Iterator[tuple[int, int, int, Bool[np.ndarray, "bh bw"]]]:
        """Yield class, left, top, and the mask in the bounding box of each region."""
        for i, (rows, columns) in enumerate(self.slices()):
            mask = self.numbers[rows, columns] == i + 1
            yield int(self.classes[i]), columns.start, rows.start, mask


def class_regions(labels: Integer[np.ndarray, "h w"], nothing: int = NO_LABEL) -> Regions:
    """Make one region of all pixels with the same value.

    Args:
        labels: Values 0..K-1, or ``nothing`` where there is no label.

    Examples:
        >>> class_regions(np.array([[7, 255, 7], [7, 2, 2]])).classes.tolist()
        [2, 7]
    """
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=nothing + 1))
    present = present[present != nothing]
    table = np.zeros(max(nothing, int(labels.max())) + 1, np.int32)
    table[present] = np.arange(1, len(present) + 1)
    return Regions(table[labels], present)


def connected_regions(labels: Integer[np.ndarray, "h w"], nothing: int = NO_LABEL) -> Regions:
    """Make one region of each connected component: pixels of one value that share sides.

    Regions are numbered in the order in which rows meet them.

    Args:
        labels: Values, or ``nothing`` where there is no label.

    Examples:
        >>> connected_regions(np.array([[7, 255, 7], [7, 2, 2]])).numbers.tolist()
        [[1, 0, 2], [1, 3, 3]]
    """
    # Nodes of a graph are the runs of equal values in rows, edges are pairs of touching runs with
    # the same value. There are far fewer runs than pixels.
    starts = np.ones(labels.shape, bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    run = starts.ravel().cumsum(dtype=np.int32).reshape(labels.shape) - 1
    # One pixel of two touching runs is enough: the one at which either of them starts.
    first = (labels[1:] == labels[:-1]) & (starts[1:] | starts[:-1])
    edges = run[:-1][first], run[1:][first]
    count = int(run[-1, -1]) + 1
    graph = coo_matrix((np.ones(len(edges[0]), bool), edges), shape=(count, count))
    components = connected_components(graph, directed=False)[1]

    _, firsts = np.unique(components, return_index=True)
    classes = labels.ravel()[np.flatnonzero(starts)[firsts]].astype(np.int64)
    labeled = np.flatnonzero(classes != nothing)
    labeled = labeled[np.argsort(firsts[labeled])]
    table = np.zeros(len(firsts), np.int32)
    table[labeled] = np.arange(1, len(labeled) + 1)
    return Regions(table[components][run], classes[labeled])
