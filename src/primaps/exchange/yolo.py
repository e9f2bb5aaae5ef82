"""Ultralytics: images with index PNGs (``yolo-semantic``) or polygons (``yolo``)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from primaps.data.collection import IMAGE_SUFFIXES
from primaps.exchange.classes import Classes, classes_of
from primaps.exchange.files import InputFiles, png, to_json, write_file
from primaps.exchange.labeled import LabeledImage, Labels
from primaps.geometry.outlines import keyhole, parse_points
from primaps.geometry.regions import NO_LABEL
from primaps.utils.errors import InputError

IMAGES = "images"


def write_semantic(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``images``, ``masks`` (class k is k, 255 is no label) and ``data.yaml``."""
    splits = set()
    for image in images:
        path = _copy(image, out)
        write_file(out / label_path(path, "masks", ".png"), png(image.labels))
        splits.add(image.split)
    write_file(out / "data.yaml", _yaml(classes, splits, ["masks_dir: masks"]))


def write(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``images``, ``labels`` (a line of class and polygon per region) and ``data.yaml``.

    A polygon runs through the centers of the outermost pixels, because Ultralytics draws the line
    as well. A line that is traversed in both directions connects each hole to it.
    """
    splits = set()
    for image in images:
        rows = []
        for k, left, top, mask in image.connected_regions().masks():
            line = keyhole(mask) + np.array([left + 0.5, top + 0.5])
            if len(line) < 3:  # fewer points would be a box
                line = np.concatenate([line, line[-1:], line[-1:]])
            fractions = line / [image.width, image.height]
            rows.append(" ".join([str(k), *(f"{one:.9g}" for one in fractions.ravel())]))
        path = _copy(image, out)
        content = "".join(f"{row}\n" for row in rows)
        write_file(out / label_path(path, "labels", ".txt"), content)
        splits.add(image.split)
    write_file(out / "data.yaml", _yaml(classes, splits))


def _copy(image: LabeledImage, out: Path) -> str:
    """Copy an image and return the relative path of the copy.

    Folders with the name ``images`` are renamed in the copy, because Ultralytics would search for
    labels beside them.
    """
    parts = image.copy_name.split("/")
    parts = [f"{part}_" if re.fullmatch("images_*", part) else part for part in parts]
    path = "/".join([IMAGES, *parts])
    image.copy_to(out / path)
    return path


def label_path(path: str, folder: str, suffix: str) -> str:
    """Return the path of the label of an image: the last folder ``images`` is replaced.

    Examples:
        >>> label_path("images/train/a.b.jpg", "labels", ".txt")
        'labels/train/a.b.txt'
    """
    parts = path.split("/")
    last = max(i for i, part in enumerate(parts[:-1]) if part == IMAGES)
    parts[last] = folder
    return "/".join(parts).rsplit(".", 1)[0] + suffix


def _yaml(classes: Classes, splits: set[str], extra: Iterable[str] = ()) -> str:
    """Return ``data.yaml``, without ``path``: the folder can be moved."""
    if splits == {"train", "val"}:
        rows = [f"{name}: {IMAGES}/{name}" for name in ("train", "val")]
    else:
        rows = [f"train: {IMAGES}", f"val: {IMAGES}  # the training images: not a validation"]
    rows += [*extra, "names:"]
    rows += [f"  {k}: {to_json(name)}" for k, name in enumerate(classes.names)]
    return "\n".join(rows) + "\n"


def read_semantic(files: InputFiles) -> Labels:
    """Read index PNGs; 255 is no label."""
    classes, masks = _read_yaml(files)
    listed = _listed_images(files)

    def images() -> Iterator[tuple[str, UInt8[np.ndarray, "h w"]]]:
        for path, name in listed:
            mask = label_path(path, masks, ".png")
            yield name, classes.normalized(files.label_map(mask), files.where(mask))

    return Labels(classes, len(listed), images())


def read(files: InputFiles) -> Labels:
    """Read polygons; later ones lie on top."""
    classes, _ = _read_yaml(files)
    listed = _listed_images(files)

    def images() -> Iterator[tuple[str, UInt8[np.ndarray, "h w"]]]:
        for path, name in listed:
            height, width = files.size(path)
            text = label_path(path, "labels", ".txt")
            lines = files.read(text).decode("utf-8", "replace") if text in files else ""
            shapes = [
                _read_row(row, len(classes), files.where(text))
                for row in lines.splitlines()
                if row.strip()
            ]
            image = Image.new("L", (width, height), NO_LABEL)
            draw = ImageDraw.Draw(image)
            for k, fractions in shapes:
                pixels = np.floor(fractions * [width, height]).tolist()
                draw.polygon([(x, y) for x, y in pixels], fill=k, outline=k)
            yield name, np.asarray(image)

    return Labels(classes, len(listed), images())


def _read_row(row: str, count: int, where: str) -> tuple[int, Float[np.ndarray, "n 2"]]:
    number, *numbers = row.split()
    if not number.isdecimal() or int(number) >= count:
        raise InputError(f"{where}: class must be between 0 and {count - 1}, got {number!r}")
    if len(numbers) == 4:
        raise InputError(f"{where} has boxes, which do not define pixels; export polygons")
    return int(number), parse_points(numbers, where)


def _listed_images(files: InputFiles) -> list[tuple[str, str]]:
    """Return the path of each image, and its name before folders were renamed."""
    found = []
    for path in files.names:
        parts = PurePosixPath(path).parts
        if parts[0] == IMAGES and PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES:
            renamed = [part[:-1] if re.fullmatch("images_+", part) else part for part in parts[1:]]
            found.append((path, "/".join(renamed)))
    return found


def _read_yaml(files: InputFiles) -> tuple[Classes, str]:
    """Return the classes and the folder of masks of ``data.yaml``."""
    import yaml

    name = files.find(".yaml")
    text = files.read(name)
    try:
        content = yaml.safe_load(text.decode("utf-8-sig"))
        listed = content["names"]
        names = [listed[k] for k in range(len(listed))]  # a list, or a mapping of 0, 1, ...
        masks = content.get("masks_dir", "masks")
        if not all(isinstance(one, str | int) for one in [masks, *names]):
            raise TypeError
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise InputError(
            f"{files.where(name)}: 'names' must be a list or a mapping of 0, 1, ...; correct it"
        ) from None
    return classes_of([str(one) for one in names]), str(masks)
