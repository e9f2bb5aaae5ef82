"""``yolo-semantic`` and ``yolo``: what Ultralytics trains on, as index PNGs or as polygons."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8

from primaps.data.folder import IMAGE_SUFFIXES
from primaps.exchange.classes import NOTHING, Classes, with_colors
from primaps.exchange.documents import png, put, to_json
from primaps.exchange.labeled import LabeledImage, Read
from primaps.exchange.map_places import copy, subset
from primaps.exchange.source import Source
from primaps.geometry.outlines import keyhole, paint, parse_points
from primaps.utils.errors import InputError

IMAGES = "images"


def write_semantic(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``images``, ``masks`` (class k is k, 255 is no label) and ``data.yaml``."""
    found = set()
    for image in images:
        place = _place(image)
        copy(image, out / place)
        put(out / beside(place, "masks", ".png"), png(image.labels))
        found.add(subset(image.key))
    put(out / "data.yaml", _yaml(classes, found, masks=True))


def write(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``images``, ``labels`` (a line of class and polygon per region) and ``data.yaml``.

    A polygon runs through the centers of the outermost pixels, because Ultralytics fills it with
    the line included; holes are tied to it by lines that are walked there and back.
    """
    found = set()
    for image in images:
        rows = []
        for k, left, top, mask in image.parts().masks():
            line = keyhole(mask) + np.array([left + 0.5, top + 0.5])
            if len(line) < 3:  # fewer points would be taken for a box
                line = np.concatenate([line, line[-1:], line[-1:]])
            shares = line / [image.width, image.height]
            rows.append(" ".join([str(k), *(f"{one:.9g}" for one in shares.ravel())]))
        place = _place(image)
        copy(image, out / place)
        put(out / beside(place, "labels", ".txt"), "".join(f"{row}\n" for row in rows))
        found.add(subset(image.key))
    put(out / "data.yaml", _yaml(classes, found, masks=False))


def _place(image: LabeledImage) -> str:
    """Where the copy of an image lies. Folders of it that are called ``images`` get another name,
    since Ultralytics would look for labels beside them, among the images."""
    parts = [
        f"{part}_" if re.fullmatch("images_*", part) else part for part in image.place.split("/")
    ]
    return "/".join([IMAGES, *parts])


def beside(place: str, folder: str, suffix: str) -> str:
    """Where Ultralytics looks for the label of an image: the last folder ``images`` is replaced.

    Examples:
        >>> beside("images/train/a.b.jpg", "labels", ".txt")
        'labels/train/a.b.txt'
    """
    parts = place.split("/")
    last = max(i for i, part in enumerate(parts[:-1]) if part == IMAGES)
    parts[last] = folder
    return "/".join(parts).rsplit(".", 1)[0] + suffix


def read_semantic(source: Source) -> Read:
    """Read index PNGs; 255 is no label."""
    classes, masks = _classes(source)
    images = list(_images(source))

    def labeled() -> Iterator[tuple[str, UInt8[np.ndarray, "h w"]]]:
        for place, name in images:
            mask = beside(place, masks, ".png")
            labels = source.picture(mask)
            if labels.ndim != 2 or labels.dtype != np.uint8:
                raise InputError(f"{source.where(mask)} must have one channel of 8 bits")
            yield name, classes.normalized(labels, source.where(mask))

    return Read(classes, len(images), labeled())


def read(source: Source) -> Read:
    """Read polygons, in the order of the file; later ones lie on top."""
    classes, _ = _classes(source)
    images = list(_images(source))

    def labeled() -> Iterator[tuple[str, UInt8[np.ndarray, "h w"]]]:
        for place, name in images:
            height, width = source.size(place)
            labels = np.full((height, width), NOTHING, np.uint8)
            text = beside(place, "labels", ".txt")
            rows = (
                source.read(text).decode("utf-8", "replace").splitlines() if text in source else []
            )
            shapes = [_row(row, len(classes), source.where(text)) for row in rows if row.strip()]
            for k, shares in shapes:
                paint(labels, [shares * [width, height]], k, outline=True)
            yield name, labels

    return Read(classes, len(images), labeled())


def _row(row: str, count: int, where: str) -> tuple[int, Any]:
    number, *numbers = row.split()
    if not number.isdecimal() or int(number) >= count:
        raise InputError(f"{where} has the class {number!r}, but there are 0..{count - 1}")
    if len(numbers) == 4:
        raise InputError(f"{where} has boxes; labels of pixels come from polygons only")
    return int(number), parse_points(numbers, where)


def _images(source: Source) -> Iterator[tuple[str, str]]:
    """Images and their names in the collection."""
    for place in source.names:
        path = PurePosixPath(place)
        if path.parts[0] == IMAGES and path.suffix.lower() in IMAGE_SUFFIXES:
            parts = [part[:-1] if re.fullmatch("images_+", part) else part for part in path.parts]
            yield place, "/".join(parts[1:])


def _yaml(classes: Classes, found: set[str], masks: bool) -> str:
    """``data.yaml``; without a ``path``, so that the folder may be moved."""
    if found - {"train", "val"} or len(found) < 2:
        remark = "  # no images were set apart: scores on these mean little"
        rows = [f"train: {IMAGES}", f"val: {IMAGES}{remark}"]
    else:
        rows = [f"{name}: {IMAGES}/{name}" for name in ("train", "val")]
    rows += ["masks_dir: masks"] if masks else []
    rows += ["names:", *(f"  {k}: {to_json(name)}" for k, name in enumerate(classes.names))]
    return "\n".join(rows) + "\n"


def _classes(source: Source) -> tuple[Classes, str]:
    """Classes and the folder of masks, from ``data.yaml``."""
    import yaml

    name = source.find(".yaml", "YAML file")
    where = source.where(name)
    text = source.read(name)
    try:
        content = yaml.safe_load(text.decode("utf-8-sig"))
        names = content["names"]
        names = [names[k] for k in range(len(names))]  # a list, or a mapping of 0, 1, ...
        masks = content.get("masks_dir", "masks")
        if not all(isinstance(one, str | int) for one in [masks, *names]):
            raise TypeError
        return with_colors([str(one) for one in names], [None] * len(names)), str(masks)
    except InputError:
        raise
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise InputError(f"{where} must give 'names', a list or a mapping of 0, 1, ...") from None
