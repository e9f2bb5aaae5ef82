"""Run-length codes: COCO's (down columns, compressed into letters) and that of masks in boxes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer

from primaps.exchange.errors import ExchangeError

_LETTER = 48  # COCO's letters start at "0": 5 bits of a number each, and a bit for "more follow"


def runs(mask: Bool[np.ndarray, " n"]) -> Integer[np.ndarray, " m"]:
    """Lengths of the runs of a row of bits, the first of zeros.

    Examples:
        >>> runs(np.array([True, True, False])).tolist()
        [0, 2, 1]
    """
    edges = np.flatnonzero(mask[1:] != mask[:-1]) + 1
    lengths = np.diff(edges, prepend=0, append=len(mask))
    return np.concatenate([[0], lengths]) if len(mask) and mask[0] else lengths


def unrun(lengths: Any, size: int, where: str) -> Bool[np.ndarray, " n"]:
    """The bits of runs, the first of zeros.

    Args:
        lengths: numbers; files of others may have anything in their place.

    Raises:
        ExchangeError: they are no whole numbers, negative, or do not add up to ``size``.
    """
    numbers = _checked(lengths, size, where)
    return np.repeat(np.arange(len(numbers)) % 2 == 1, numbers)


def ones(lengths: Any, size: int, where: str) -> Integer[np.ndarray, " n"]:
    """Where the bits of runs are set: few numbers for a small mask in a large image.

    Raises:
        ExchangeError: as :func:`unrun`.

    Examples:
        >>> ones([2, 3, 4, 1], 10, "a.json").tolist()
        [2, 3, 4, 9]
    """
    numbers = _checked(lengths, size, where)
    starts, counts = numbers.cumsum()[0::2], numbers[1::2]
    starts = starts[: len(counts)]
    return np.repeat(starts - counts.cumsum() + counts, counts) + np.arange(counts.sum())


def _checked(lengths: Any, size: int, where: str) -> Integer[np.ndarray, " n"]:
    try:
        numbers = np.asarray(lengths)
        if numbers.size and numbers.dtype.kind not in "iu":
            raise ValueError
        fits = numbers.ndim == 1 and (numbers >= 0).all() and (numbers <= size).all()
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits or numbers.sum() != size:
        raise ExchangeError(f"{where}: the run lengths of a mask do not give its {size} pixels")
    return numbers.astype(np.int64)


def column_runs(
    numbers: Integer[np.ndarray, "h w"], count: int
) -> tuple[list[Integer[np.ndarray, " _"]], Integer[np.ndarray, "n 4"], Integer[np.ndarray, " n"]]:
    """Of regions 1..count of an image the run lengths down its columns, the boxes and the areas.

    All regions at once, from the runs of the image, so that the time does not grow with their
    number.

    Returns:
        run lengths as COCO counts them, the first of zeros; left, top, width, height; pixels.

    Examples:
        >>> lengths, boxes, areas = column_runs(np.array([[0, 1], [0, 1], [2, 1]]), 2)
        >>> [one.tolist() for one in lengths], boxes.tolist(), areas.tolist()
        ([[3, 3], [2, 1, 3]], [[1, 0, 1, 3], [0, 2, 1, 1]], [3, 1])
    """
    height = numbers.shape[0]
    columns = numbers.ravel(order="F")
    begins = np.ones(len(columns), bool)
    begins[1:] = columns[1:] != columns[:-1]
    begins[::height] = True  # pieces that stay within a column, from which boxes can be read
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], len(columns))
    region = columns[starts]
    order = np.argsort(region, kind="stable")
    order = order[np.searchsorted(region[order], 1) :]
    starts, ends, region = starts[order], ends[order], region[order]
    first = np.searchsorted(region, np.arange(1, count + 1))

    left = np.minimum.reduceat(starts // height, first)
    top = np.minimum.reduceat(starts % height, first)
    right = np.maximum.reduceat(starts // height, first)
    bottom = np.maximum.reduceat((ends - 1) % height, first)
    boxes = np.stack([left, top, right - left + 1, bottom - top + 1], 1)
    areas = np.add.reduceat(ends - starts, first)

    joined = np.zeros(len(starts), bool)  # a piece that goes on where the one before it ended
    joined[1:] = (starts[1:] == ends[:-1]) & (region[1:] == region[:-1])
    keep = ~joined
    last = np.append(keep[1:], True)
    starts, ends, region = starts[keep], ends[last], region[keep]
    bounds = 2 * np.searchsorted(region, np.arange(1, count + 2))
    # Of each region starts and ends in turn, and then the end of the image.
    edges = np.insert(np.stack([starts, ends], 1).ravel(), bounds[1:], len(columns))
    bounds += np.arange(count + 1)
    steps = np.diff(edges, prepend=0)
    steps[bounds[:-1]] = edges[bounds[:-1]]
    lengths = [steps[a:b] if steps[b - 1] else steps[a : b - 1] for a, b in pairwise(bounds)]
    return lengths, boxes, areas


def compress(lengths: Sequence[Integer[np.ndarray, " _"]]) -> list[str]:
    """Run lengths of many masks in COCO's letters.

    From the fourth on, a length is written as its difference to the last but one; numbers are cut
    into groups of 5 bits, the lowest first, until what remains is the sign.

    Examples:
        >>> compress([np.array([3, 3]), np.array([2, 1, 100])])
        ['33', '21T3']
    """
    if not lengths:
        return []
    numbers = np.concatenate(lengths).astype(np.int64)
    sizes = np.array([len(one) for one in lengths])
    begin = sizes.cumsum() - sizes
    place = np.arange(len(numbers)) - np.repeat(begin, sizes)
    values = numbers.copy()
    later = np.flatnonzero(place > 2)
    values[later] -= numbers[later - 2]
    letters = np.zeros((len(values), 8), np.uint8)
    active = np.ones(len(values), bool)
    for group in range(letters.shape[1]):
        bits = values & 31
        values >>= 5
        more = np.where(bits & 16, values != -1, values != 0)
        letters[active, group] = (bits + 32 * more + _LETTER)[active]
        active &= more
        if not active.any():
            break
    used = (letters != 0).sum(1)
    text = letters[letters != 0].tobytes().decode("ascii")
    ends = np.add.reduceat(used, begin).cumsum()
    return [text[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def decompress(text: str, where: str) -> Integer[np.ndarray, " m"]:
    """Run lengths of one mask from COCO's letters.

    Raises:
        ExchangeError: the text has other letters or ends within a number.

    Examples:
        >>> decompress("21T3", "a.json").tolist()
        [2, 1, 100]
    """
    letters = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) - _LETTER
    last = np.flatnonzero(letters & 32 == 0)
    if not letters.size:
        return letters
    bad = (letters < 0).any() or (letters > 63).any() or not len(last)
    starts = np.append(0, last[:-1] + 1)
    sizes = last - starts + 1
    if bad or last[-1] != len(letters) - 1 or sizes.max() > 8:
        raise ExchangeError(f"{where}: a mask is no compressed run-length code; is it cut off?")
    group = np.arange(len(letters)) - np.repeat(starts, sizes)
    values = np.add.reduceat((letters & 31) << (5 * group), starts)
    values -= np.where(letters[last] & 16, 1 << (5 * sizes), 0)
    for parity in (0, 1):  # differences of every other number add up from the second on
        column = values[1 + parity :: 2] if parity == 0 else values[2::2]
        column[:] = column.cumsum()
    return values
