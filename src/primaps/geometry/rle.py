"""Run-length encodings of masks: COCO's through pycocotools, and plain run lengths.

Files of other tools may hold anything in place of run lengths. Sums and types are checked before
memory of the size that they declare is allocated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer
from pycocotools import mask as coco

from primaps.geometry.regions import Regions
from primaps.utils.errors import InputError

_COMPRESSED = re.compile("(?:[P-o]{0,6}[0-O])*")
"""Numbers of at most seven letters; the last letter of each lies below "P"."""


def run_lengths(bits: Bool[np.ndarray, " n"]) -> Integer[np.ndarray, " m"]:
    """Return the lengths of runs of equal bits; the first run is of zeros and may be empty.

    Examples:
        >>> run_lengths(np.array([True, True, False])).tolist()
        [0, 2, 1]
    """
    edges = np.flatnonzero(bits[1:] != bits[:-1]) + 1
    lengths = np.diff(edges, prepend=0, append=len(bits))
    return np.concatenate([[0], lengths]) if len(bits) and bits[0] else lengths


def from_run_lengths(lengths: Any, size: int, where: str) -> Bool[np.ndarray, " n"]:
    """Return the bits of run lengths.

    Args:
        lengths: Integers, the first one for zeros. Anything else is rejected.
        size: Number of bits.
        where: File and image, for error messages.

    Raises:
        InputError: ``lengths`` are not non-negative integers with the sum ``size``.
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
    return np.repeat(np.arange(len(numbers)) % 2 == 1, numbers.astype(np.int64))


def encode_coco(regions: Regions) -> Iterator[str]:
    """Yield the compressed COCO encoding of each region.

    Examples:
        >>> numbers = np.array([[0, 1], [0, 1], [2, 1]])
        >>> list(encode_coco(Regions(numbers, np.array([5, 6]))))
        ['33', '213']
    """
    height, width = regions.numbers.shape
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
        content = {"size": [height, width], "counts": lengths.tolist()}
        yield coco.frPyObjects(content, height, width)["counts"].decode("ascii")


def decode_coco(counts: Any, height: int, width: int, where: str) -> Bool[np.ndarray, "h w"]:
    """Return the mask of a COCO encoding, compressed text or a list of run lengths.

    Args:
        counts: ``counts`` of the encoding.
        height: Height of the image, checked by the caller.
        width: Width of the image.
        where: File and image, for error messages.

    Raises:
        InputError: The encoding is damaged or does not have ``height * width`` pixels.

    Examples:
        >>> decode_coco("213", 3, 2, "a.json").astype(int).tolist()
        [[0, 0], [0, 0], [1, 0]]
    """
    if not isinstance(counts, str):
        return from_run_lengths(counts, height * width, where).reshape(width, height).T
    try:
        if not _COMPRESSED.fullmatch(counts):  # pycocotools would read beyond the end
            raise ValueError("not the letters of an encoding")
        content = {"size": [height, width], "counts": counts.encode("ascii")}
        return coco.decode(content).view(bool)
    except ValueError as error:
        raise InputError(
            f"{where}: a mask is not a COCO run-length encoding of {width} x {height} pixels "
            f"({error}); is the file cut off?"
        ) from None
