"""Run-length encodings of masks: COCO's, and plain run lengths.

pycocotools encodes. It is not used for decoding: it does not check the sum of run lengths, and
fills a mask whose run lengths are too short with uninitialized memory. Files of other tools
may hold anything in place of run lengths, so sums and types are checked before memory is allocated.
It reserves six letters per run length, which hold 29 bits, and writes a seventh beyond that memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer
from pycocotools import mask as coco

from primaps.geometry.regions import Regions
from primaps.utils.errors import InputError

_COMPRESSED = re.compile("(?:[P-o]{0,6}[0-O])*")
"""Numbers of at most seven letters, of which the last has no bit for "another letter follows"."""
_MAX_PIXELS = 2**29 - 1
_MAX_OUTLINE = 1 << 22
"""Maximum length of the outline of a polygon in pixels. pycocotools takes 100 bytes for each."""


def run_lengths(bits: Bool[np.ndarray, " n"]) -> Integer[np.ndarray, " m"]:
    """Return the lengths of runs of equal bits; the first run is of zeros and may be empty.

    Examples:
        >>> run_lengths(np.array([True, True, False])).tolist()
        [0, 2, 1]
    """
    edges = np.flatnonzero(bits[1:] != bits[:-1]) + 1
    lengths = np.diff(edges, prepend=0, append=len(bits))
    return np.concatenate([[0], lengths]) if len(bits) and bits[0] else lengths


def set_positions(lengths: Any, size: int, where: str) -> Integer[np.ndarray, " n"]:
    """Return the positions of the bits that run lengths set: few for a small mask of a large image.

    Args:
        lengths: Integers, the first one for zeros. Anything else is rejected.
        size: Number of bits.
        where: File and image, for error messages.

    Raises:
        InputError: ``lengths`` are not non-negative integers with the sum ``size``.

    Examples:
        >>> set_positions([2, 3, 4, 1], 10, "a.json").tolist()
        [2, 3, 4, 9]
    """
    try:
        numbers = np.asarray(lengths)
        if numbers.size and numbers.dtype.kind not in "iu":
            raise ValueError
        valid = numbers.ndim == 1 and (numbers >= 0).all() and (numbers <= size).all()
    except (TypeError, ValueError, OverflowError):
        valid = False
    if not valid or numbers.sum() != size:
        raise InputError(
            f"{where}: the run lengths of a mask must be integers with the sum {size}, the number "
            "of its pixels; export the file again"
        )
    numbers = numbers.astype(np.int64)
    counts = numbers[1::2]
    starts = numbers.cumsum()[0::2][: len(counts)]
    return np.repeat(starts - counts.cumsum() + counts, counts) + np.arange(counts.sum())


def encode_coco(regions: Regions) -> Iterator[str]:
    """Yield the compressed COCO encoding of each region.

    Raises:
        InputError: The image has 2^29 pixels or more, which pycocotools does not encode.

    Examples:
        >>> numbers = np.array([[0, 1], [0, 1], [2, 1]])
        >>> list(encode_coco(Regions(numbers, np.array([5, 6]))))
        ['33', '213']
    """
    height, width = regions.numbers.shape
    if height * width > _MAX_PIXELS:
        raise InputError(
            f"an image of {height} x {width} pixels is too large for COCO masks, which hold "
            f"{_MAX_PIXELS:,} pixels; cut it into tiles"
        )
    for i, (_, columns) in enumerate(regions.slices()):
        # Run lengths go down the columns; only the columns of the region are searched.
        mask = regions.numbers[:, columns] == i + 1
        lengths = run_lengths(mask.ravel(order="F"))
        lengths[0] += columns.start * height
        after = (width - columns.stop) * height
        if len(lengths) % 2:
            lengths[-1] += after
        elif after:
            lengths = np.append(lengths, after)
        content = {"size": [height, width], "counts": lengths}
        yield coco.frPyObjects(content, height, width)["counts"].decode("ascii")


def decode_coco(counts: Any, size: int, where: str) -> Integer[np.ndarray, " n"]:
    """Return the positions of the pixels of a COCO encoding, counted down the columns.

    Args:
        counts: ``counts`` of the encoding: compressed text, or a list of run lengths.
        size: Number of pixels of the image.
        where: File and image, for error messages.

    Raises:
        InputError: The encoding is damaged or has another number of pixels.

    Examples:
        >>> decode_coco("213", 6, "a.json").tolist()
        [2]
    """
    return set_positions(
        _decompress(counts, where) if isinstance(counts, str) else counts, size, where
    )


def polygon_positions(
    rings: Sequence[Float[np.ndarray, "_ 2"]], height: int, width: int
) -> Integer[np.ndarray, " n"]:
    """Return the positions of the pixels of polygons as pycocotools fills and unites them.

    Args:
        rings: Points (x, y) of closed lines, at least three each.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Raises:
        InputError: An outline is too long, because points lie far outside of the image.

    Examples:
        >>> rings = [np.array([[0, 0], [2, 0], [2, 1], [0, 1.0]]) + [left, 0] for left in (0, 1)]
        >>> polygon_positions(rings, 2, 4).tolist()
        [0, 2, 4]
    """
    for ring in rings:
        length = np.abs(np.diff(ring, axis=0, append=ring[:1])).max(1).sum()
        if length > _MAX_OUTLINE:
            raise InputError(
                f"the outline of a polygon has a length of {length:,.0f} pixels, but its image "
                f"{width} x {height}; remove or redraw it"
            )
    codes = coco.frPyObjects([ring.ravel().tolist() for ring in rings], height, width)
    united = coco.merge(codes)["counts"].decode("ascii")
    return decode_coco(united, height * width, "polygon")


def _decompress(text: str, where: str) -> Integer[np.ndarray, " m"]:
    """Return the run lengths of COCO's text.

    A letter has five bits of a number, lowest first, and a bit for "another letter follows". From
    the fourth number on, the difference to the number before the previous one is stored.
    """
    if not _COMPRESSED.fullmatch(text):
        raise InputError(
            f"{where}: a mask is not compressed COCO run lengths; is the file cut off?"
        )
    letters = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - ord("0")
    last = np.flatnonzero(letters < 32)
    starts = np.append(0, last[:-1] + 1)[: len(last)]
    sizes = last - starts + 1
    position = np.arange(len(letters)) - np.repeat(starts, sizes)
    numbers = np.add.reduceat((letters & 31) << (5 * position), starts) if len(last) else letters
    numbers -= np.where(letters[last] & 16, 1 << (5 * sizes), 0)
    for parity in (1, 2):
        numbers[parity::2] = numbers[parity::2].cumsum()
    return numbers
