"""Regions of a label map: a class each, or the connected parts of classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Integer
from scipy.ndimage import find_objects
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from primaps.geometry.regions import NO_LABEL as NOTHING


@dataclass(frozen=True)
class Regions:
    """Regions 1..N of an image.

    Attributes:
        numbers: the region of every pixel; 0 is none.
        classes: class of each region.
    """

    numbers: Integer[np.ndarray, "h w"]
    classes: Integer[np.ndarray, " n"]

    def boxes(self) -> Iterator[tuple[int, int, int, Bool[np.ndarray, "bh bw"]]]:
        """Of each region its class, left, top, and its mask in the tight box."""
        for i, (rows, columns) in enumerate(find_objects(self.numbers)):
            mask = self.numbers[rows, columns] == i + 1
            yield int(self.classes[i]), columns.start, rows.start, mask


def split(labels: Integer[np.ndarray, "h w"], per: str) -> Regions:
    """Regions of a map of classes, in the order in which rows meet them.

    Args:
        labels: classes; 255 is no label.
        per: ``class`` for one region per class, or ``region`` for one per connected part (pixels
            that share a side).

    Examples:
        >>> labels = np.array([[7, 255, 7], [7, 2, 2]])
        >>> split(labels, "region").numbers.tolist()
        [[1, 0, 2], [1, 3, 3]]
        >>> split(labels, "class").classes.tolist()
        [2, 7]
    """
    return of_values(labels) if per == "class" else parts(labels, labels)


def of_values(
    values: Integer[np.ndarray, "h w"], none: int = NOTHING, label: int | None = None
) -> Regions:
    """A region for every value that occurs except ``none``, of class ``label`` or of the value."""
    present = np.flatnonzero(np.bincount(values.ravel(), minlength=none + 1))
    present = present[present != none]
    table = np.zeros(max(none, int(values.max())) + 1, np.int32)
    table[present] = np.arange(1, len(present) + 1)
    return Regions(table[values], present if label is None else np.full_like(present, label))


def parts(values: Integer[np.ndarray, "h w"], labels: Integer[np.ndarray, "h w"]) -> Regions:
    """The connected parts of values, which lie in one class each; 255 is no label."""
    numbers, firsts = connected(values)
    classes = labels.ravel()[firsts]
    labeled = classes != NOTHING
    table = np.where(labeled, labeled.cumsum(), 0).astype(np.int32)
    return Regions(table[numbers], classes[labeled].astype(np.int64))


def connected(
    labels: Integer[np.ndarray, "h w"],
) -> tuple[Integer[np.ndarray, "h w"], Integer[np.ndarray, " n"]]:
    """The connected part 0..N-1 of every pixel, and the first pixel of each part, row by row.

    Parts are those of a graph whose nodes are the runs of equal values in rows, and whose edges are
    pairs of runs with the same value in neighboring rows: there are far fewer runs than pixels.
    """
    starts = np.ones(labels.shape, bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    run = starts.ravel().cumsum(dtype=np.int32).reshape(labels.shape) - 1
    touching = labels[1:] == labels[:-1]
    # Of the pixels that two runs share, the first is enough: where either of them starts.
    first = touching & (starts[1:] | starts[:-1])
    edges = run[:-1][first], run[1:][first]
    count = int(run[-1, -1]) + 1
    graph = coo_matrix((np.ones(len(edges[0]), bool), edges), shape=(count, count))
    parts = connected_components(graph, directed=False)[1]
    # scipy numbers parts in the order of their first node, but does not promise it.
    firsts = np.unique(parts, return_index=True)[1]
    order = np.empty(len(firsts), np.int32)
    order[np.argsort(firsts)] = np.arange(len(firsts))
    return order[parts][run], np.flatnonzero(starts)[np.sort(firsts)]
