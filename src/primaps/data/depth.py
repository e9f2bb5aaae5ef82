"""The depth of a collection: how many bits the values of images of more than 8 bits have.

Cameras and microscopes store values of 10, 12 or 14 bits in files of 16 bits. The file does not say
so, and the maximum of one image may be small because the image is dark. The depth is therefore
decided once, from the images of the collection, and every image is scaled from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TypeVar

from PIL import Image

from primaps.data.collection import ImageFile, sample_items
from primaps.data.images import Stored, is_deep, value_bits
from primaps.data.stream import content_digest, read

F = TypeVar("F", bound=ImageFile)
EIGHT_BIT_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".avif",
                                ".bmp", ".mat"))  # fmt: skip
"""Suffixes of files that Pillow always reads in 8 bits; they are not opened."""
SAMPLE = 128
"""Maximum number of images that the depth is decided from; a smaller collection is read whole."""


def at_depth(
    files: Sequence[F], depth: int | None = None, of: Sequence[ImageFile] | None = None
) -> list[F]:
    """Return the files of a collection with the depth that their images are read with.

    8-bit and floating-point images are not affected. Files that have a depth already keep it.

    Args:
        files: images to read.
        depth: bits of the values, such as ``depth_`` of a model; None decides it from the
            collection with :func:`collection_depth`.
        of: the whole collection, if ``files`` are a part of it.

    Examples:
        >>> import numpy as np
        >>> dark, bright = (Image.fromarray(np.full((8, 8), v, np.uint16)) for v in (700, 4000))
        >>> files = at_depth([ImageFile(dark, "dark"), ImageFile(bright, "bright")])
        >>> [(file.depth, file.load().getpixel((0, 0))[0]) for file in files]
        [(12, 44), (12, 249)]
    """
    if any(file.depth is not None for file in files):
        return list(files)
    if depth is None:
        depth = collection_depth(files if of is None else of)
    return list(files) if depth is None else [replace(file, depth=depth) for file in files]


def collection_depth(files: Sequence[ImageFile]) -> int | None:
    """Return the smallest of 8, 10, 12, 14, 16, 24 or 32 bits that holds the values of images.

    The maximum is that of all images of more than 8 bits if there are at most :data:`SAMPLE`
    candidates, and otherwise of a sample of them that is always the same. Images that cannot be
    read are left out. Formats of 8 bits, such as JPEG, are not opened; of other 8-bit images only
    the header is read.

    Returns:
        None if no image has integers of more than 8 bits and all candidates were read.
    """
    candidates = [file for file in files if _may_be_deep(file)]
    sample = sample_items(candidates, SAMPLE)
    found: list[int] = []
    for _, bits in read(sample, lambda file: value_bits(file.source), _ignore, ahead=4):
        if bits is not None:
            found.append(bits[0])
            if bits[0] == bits[1]:
                break  # no image of this kind has more
    if not found:
        return None if len(sample) == len(candidates) else 8
    return max(found)


def _may_be_deep(file: ImageFile) -> bool:
    source = file.source
    if isinstance(source, Image.Image):
        return source.mode not in ("RGB", "L") or bool(getattr(source, "tile", None))
    name = str(source) if isinstance(source, Stored) else source.name
    return PurePosixPath(name).suffix.lower() not in EIGHT_BIT_SUFFIXES


def _ignore(sentence: str) -> None:
    """Drop a sentence about an image that cannot be read; reading it later reports it."""


def pixel_digest(file: ImageFile) -> str:
    """Compute the digest of the pixels that an image is read with, for caches of what follows.

    It is the SHA-256 of the file (:func:`primaps.data.content_digest`), and for images of more than
    8 bits it also depends on the depth.

    Raises:
        ImageError: the file cannot be read.
    """
    digest = content_digest(file)
    if file.depth is None or not _may_be_deep(file) or not is_deep(file.source):
        return digest
    return hashlib.sha256(f"{digest} {file.depth}".encode()).hexdigest()
