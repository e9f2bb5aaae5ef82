"""Opens a scene by the reader that its kind of file needs."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from primaps.data import load_image
from primaps.data.reading import opened, upright
from primaps.scenes.geotiff import open_geotiff
from primaps.scenes.source import Block, Box, Scene, damage_named
from primaps.scenes.tiff import open_tiff
from primaps.utils.errors import InputError, NotFoundError

TIFF = frozenset(
    (".tif", ".tiff", ".btf", ".tf2", ".tf8", ".svs", ".ndpi", ".scn", ".bif", ".qptiff")
)
GDAL = frozenset((".vrt", ".jp2", ".img"))
"""Formats of maps that are no TIFF."""
MAPS = frozenset((".tif", ".tiff", ".btf", ".tf2", ".tf8"))
"""Of which one may say where it lies: slides do not, and some are TIFF but for their name."""
GDAL_TAGS = (33550, 33922, 34264, 34735, 42112, 42113)
"""Of TIFF: place on a map, metadata and nodata of GDAL."""


def open_scene(path: str | Path, bands: Sequence[int] | None = None) -> Scene:
    """Open an image of any size: a GeoTIFF, a plain TIFF or BigTIFF, a slide, a photo.

    Args:
        bands: those shown as red, green and blue, counted from 1; None leaves it to the file.

    Raises:
        NotFoundError: there is no such file.
        SceneError: it is damaged, or nothing says which of its bands to show.
        InputError: it has no such band.
        MissingPackageError: it needs a package that is not installed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise NotFoundError(f"{path} " + ("is no file" if path.exists() else "does not exist"))
    suffix = path.suffix.lower()
    with damage_named(path):
        if suffix in GDAL or (suffix in MAPS and _is_map(path)):
            return open_geotiff(path, bands)
        return open_tiff(path, bands) if suffix in TIFF else _open_photo(path, bands)


def in_memory(image: Image.Image, path: str | Path = "image") -> Scene:
    """A photo as a scene: 8-bit RGB.

    Examples:
        >>> scene = in_memory(Image.new("RGB", (4, 3), "red"))
        >>> scene.sizes, scene.read(0, Box(0, 1, 0, 2))[0].tolist()
        (((3, 4),), [[[255, 255]], [[0, 0]], [[0, 0]]])
    """
    clear = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    alpha = np.asarray(image.convert("RGBA").getchannel("A")) if clear else None
    pixels = np.asarray(load_image(image))

    def read(level: int, box: Box) -> Block:
        inside = slice(box.top, box.bottom), slice(box.left, box.right)
        values = pixels[inside].transpose(2, 0, 1)
        valid = np.ones(values.shape[1:], bool) if alpha is None else alpha[inside] > 0
        return values, valid

    return Scene(Path(path), ((image.height, image.width),), read, True, whole=alpha is None)


def _open_photo(path: Path, bands: Sequence[int] | None) -> Scene:
    if bands is not None:
        raise InputError(f"{path} is a photo in red, green and blue: leave --bands out")
    with opened(path) as image:
        return in_memory(upright(image), path)


def _is_map(path: Path) -> bool:
    """Whether a TIFF says where it lies, or was written by GDAL."""
    if any(path.with_suffix(end).is_file() for end in (".tfw", ".tifw", ".TFW")):
        return True
    with path.open("rb") as file:
        return not tiff_tags(file).isdisjoint(GDAL_TAGS)


def tiff_tags(file: BinaryIO) -> set[int]:
    """Numbers of the tags of the first image of a TIFF or BigTIFF, in either order of bytes.

    Raises:
        ValueError: the file is neither.
    """
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
    kind = struct.unpack(f"{order}H", head[2:4])[0] if order and len(head) >= 8 else 0
    if kind not in (42, 43):
        raise ValueError("it does not begin as a TIFF does")
    big = kind == 43
    at, number, size = (8, "Q", 20) if big else (4, "L", 12)
    count = "Q" if big else "H"
    file.seek(struct.unpack_from(order + number, head, at)[0])
    entries = struct.unpack(order + count, file.read(struct.calcsize("<" + count)))[0]
    data = file.read(min(entries, 65_536) * size)
    return {struct.unpack_from(f"{order}H", data, i)[0] for i in range(0, len(data) - 1, size)}
