"""Outlines of the regions of a label map that is too large for memory, strip by strip.

Twice over the map: first the regions of each strip, and which of them are one; then the sides of
their pixels, linked to lines. A line that leaves a strip waits for the rest of it; a region is
given away with the strip that it ends in. Rings are those of :mod:`primaps.exchange.outlines`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from primaps.exchange.regions import connected

STRIP_PIXELS = 4_000_000
"""Of the map that are looked at together."""
# A side of a pixel runs right, down, left or up, the region on its right hand. From the pixel to
# the one ahead of the side's end, to the one to the left of that, and to the corner it starts at.
_AHEAD = ((0, 1), (1, 0), (0, -1), (-1, 0))
_LEFT = ((-1, 1), (1, 1), (1, -1), (-1, -1))
_CORNER = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
Read = Callable[[int, int], Integer[np.ndarray, "h w"]]


@dataclass(frozen=True)
class Region:
    """A connected region.

    Attributes:
        label: of all its pixels.
        pixels: how many they are.
        rings: (x, y) on the grid of pixel corners, the outer one first and clockwise as seen.
    """

    label: int
    pixels: int
    rings: list[Integer[np.ndarray, "_ 2"]]


@dataclass(frozen=True)
class _Regions:
    """All regions of a map.

    Attributes:
        numbers: of each region of each strip, one strip after the other; -1 is no label.
        labels, pixels, last: of each region: its label, size and last strip.
    """

    numbers: Integer[np.ndarray, " n"]
    labels: Integer[np.ndarray, " r"]
    pixels: Integer[np.ndarray, " r"]
    last: Integer[np.ndarray, " r"]


def outlines(read: Read, height: int, width: int, nothing: int) -> Iterator[Region]:
    """Connected regions of a label map with their rings, in the order in which they end.

    Args:
        read: labels of rows from a first to a last, which is not included.
        nothing: label of no region.

    Examples:
        >>> labels = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
        >>> for region in outlines(lambda top, bottom: labels[top:bottom], 3, 3, 0):
        ...     print(region.label, region.pixels, [ring.tolist() for ring in region.rings])
        1 8 [[[0, 0], [3, 0], [3, 3], [0, 3]], [[2, 1], [1, 1], [1, 2], [2, 2]]]
    """
    step = max(1, STRIP_PIXELS // width)
    spans = [(top, min(height, top + step)) for top in range(0, height, step)]
    regions = _regions(read, spans, nothing)
    rings: dict[int, list[np.ndarray]] = defaultdict(list)
    waiting: dict[int, tuple[list[np.ndarray], int, int]] = {}
    for strip, (top, around) in enumerate(_numbered(read, spans, regions)):
        for region, ring in _rings(around, top, width, waiting):
            rings[region].append(ring)
        for region in sorted(r for r in rings if regions.last[r] == strip):
            ordered = sorted(rings.pop(region), key=_turns_left)
            yield Region(int(regions.labels[region]), int(regions.pixels[region]), ordered)


def _regions(read: Read, spans: list[tuple[int, int]], nothing: int) -> _Regions:
    labels, pixels, strips, pairs = [], [], [], []
    count, above = 0, None
    for strip, span in enumerate(spans):
        values = read(*span)
        numbers, firsts = connected(values)
        if above is not None:
            same = above[0] == values[0]
            pairs.append(np.stack([above[1][same], numbers[0][same] + count]))
        labels.append(values.ravel()[firsts].astype(np.int64))
        pixels.append(np.bincount(numbers.ravel(), minlength=len(firsts)))
        strips.append(np.full(len(firsts), strip))
        above = values[-1], numbers[-1] + count
        count += len(firsts)
    one, other = np.unique(np.concatenate([np.zeros((2, 0), int), *pairs], 1), axis=1)
    graph = coo_matrix((np.ones(len(one), bool), (one, other)), shape=(count, count))
    groups = connected_components(graph, directed=False)[1]
    label = np.concatenate(labels)
    shown = label != nothing
    firsts, numbers = np.unique(groups[shown], return_index=True, return_inverse=True)[1:]
    total, last = np.zeros(len(firsts), np.int64), np.zeros(len(firsts), np.int64)
    np.add.at(total, numbers, np.concatenate(pixels)[shown])
    np.maximum.at(last, numbers, np.concatenate(strips)[shown])
    every = np.full(count, -1, np.int64)
    every[shown] = numbers
    return _Regions(every, label[shown][firsts], total, last)


def _numbered(
    read: Read, spans: list[tuple[int, int]], regions: _Regions
) -> Iterator[tuple[int, Integer[np.ndarray, "h2 w2"]]]:
    """First row of each strip, and the regions of its pixels with one more pixel on every side."""
    count = 0

    def numbers(span: tuple[int, int]) -> np.ndarray:
        nonlocal count
        local, firsts = connected(read(*span))
        found = regions.numbers[local + count]
        count += len(firsts)
        return found

    here = numbers(spans[0])
    none = np.full_like(here[:1], -1)
    above = none
    for i, (top, _) in enumerate(spans):
        below = numbers(spans[i + 1]) if i + 1 < len(spans) else none
        yield top, np.pad(np.concatenate([above, here, below[:1]]), ((0, 0), (1, 1)),
                          constant_values=-1)  # fmt: skip
        above, here = here[-1:], below


def _rings(
    around: Integer[np.ndarray, "h2 w2"],
    top: int,
    width: int,
    waiting: dict[int, tuple[list[np.ndarray], int, int]],
) -> Iterator[tuple[int, Integer[np.ndarray, "n 2"]]]:
    """Rings that are complete with this strip, each with its region; lines that are not stay in
    ``waiting`` under their first side, with the side that follows and their region."""
    sides, followers, regions = _sides(around, top, width)
    order = np.argsort(sides)
    sides, followers, regions = sides[order], followers[order], regions[order]
    at = np.searchsorted(sides, followers).clip(max=max(0, len(sides) - 1))
    inside = sides[at] == followers if len(sides) else np.zeros(0, bool)
    after = np.where(inside, at, -1).tolist()
    led_to = np.zeros(len(sides), bool)
    led_to[at[inside]] = True
    seen = bytearray(len(sides))
    for start in [*np.flatnonzero(~led_to).tolist(), *np.flatnonzero(led_to).tolist()]:
        if seen[start]:
            continue
        path, here = [], start
        while here >= 0 and not seen[here]:
            seen[here] = 1
            path.append(here)
            here = after[here]
        line, region = _corners(sides[path]), int(regions[start])
        if led_to[start]:
            yield region, _ring([line], width)
        else:
            waiting[int(sides[start])] = [line], int(followers[path[-1]]), region
    for first in list(waiting):
        if first not in waiting:
            continue
        lines, follower, region = waiting.pop(first)
        while follower != first and follower in waiting:
            more, follower, _ = waiting.pop(follower)
            lines += more
        if follower == first:
            yield region, _ring(lines, width)
        else:
            waiting[first] = lines, follower, region


def _sides(
    around: Integer[np.ndarray, "h2 w2"], top: int, width: int
) -> tuple[Integer[np.ndarray, " n"], Integer[np.ndarray, " n"], Integer[np.ndarray, " n"]]:
    """Sides of pixels where their region ends, the side that follows each, and its region.

    A side is a number: that of its pixel in the map, times four, and its direction.
    """
    found = []
    here = around[1:-1, 1:-1]
    for kind, (ahead, left) in enumerate(zip(_AHEAD, _LEFT, strict=True)):
        across = left[0] - ahead[0], left[1] - ahead[1]
        beyond = around[1 + across[0] :, 1 + across[1] :][: here.shape[0], : here.shape[1]]
        y, x = np.nonzero((here >= 0) & (here != beyond))
        region, pixel = here[y, x], (y + top) * width + x
        straight = around[y + 1 + ahead[0], x + 1 + ahead[1]] == region
        turns = around[y + 1 + left[0], x + 1 + left[1]] == region
        follower = pixel * 4 + (kind + 1) % 4
        follower[straight] = (pixel + ahead[0] * width + ahead[1])[straight] * 4 + kind
        follower[turns] = (pixel + left[0] * width + left[1])[turns] * 4 + (kind + 3) % 4
        found.append((pixel * 4 + kind, follower, region))
    sides, followers, regions = (np.concatenate(each) for each in zip(*found, strict=True))
    return sides, followers, regions


def _corners(path: Integer[np.ndarray, " n"]) -> Integer[np.ndarray, " m"]:
    """The first side of a line, and those at which it turns."""
    turns = np.ones(len(path), bool)
    turns[1:] = path[1:] % 4 != path[:-1] % 4
    return path[turns]


def _ring(lines: list[np.ndarray], width: int) -> Integer[np.ndarray, "n 2"]:
    """(x, y) of the corners of a closed line."""
    sides = np.concatenate(lines)
    kinds = sides % 4
    turns = kinds != np.roll(kinds, 1)
    y, x = np.divmod(sides[turns] // 4, width)
    return np.stack([x, y], 1) + _CORNER[kinds[turns]]


def _turns_left(ring: Integer[np.ndarray, "n 2"]) -> bool:
    """Whether a ring goes round a hole."""
    (x, y), (u, v) = ring.T, np.roll(ring, -1, 0).T
    return bool((x * v - u * y).sum() < 0)
