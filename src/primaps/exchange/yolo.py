"""Ultralytics: images with index PNGs (``yolo-semantic``) or polygons (``yolo``)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from primaps.data.collection import IMAGE_SUFFIXES
from primaps.exchange.classes import Classes, classes_of
from primaps.exchange.files import InputFiles, png, text_lines, to_json, write_file
from primaps.exchange.labeled import ImageShapes, LabeledImage, Labels, label_map_image
from primaps.geometry.outlines import keyhole, parse_points
from primaps.geometry.shapes import Polygon, Shape
from primaps.utils.errors import InputError
from primaps.utils.validation import short

IMAGES = "images"
NAMES, LIST = ("data.yaml", "data.yml"), "classes.txt"
"""Files with the names of the classes: of Ultralytics and Roboflow, and of Label Studio."""
SPLITS = {"valid": "val", "validation": "val"}
"""Names of splits, as other tools write them, and as primaps does."""


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


@dataclass(frozen=True)
class _Layout:
    """Files of a data set.

    Attributes:
        classes: Classes that the data set names.
        images: Path of each image, and its name.
        labels: Path of the label file of each image.
        notes: Number of label files without an image.
    """

    classes: Classes
    images: list[tuple[str, str]]
    labels: list[str]
    notes: Counter[str]


def read_semantic(files: InputFiles) -> Labels:
    """Read index PNGs; 255 is no label."""
    layout = _read_layout(files, ".png")

    def images() -> Iterator[ImageShapes]:
        for (_, name), mask in zip(layout.images, layout.labels, strict=True):
            found = layout.classes.normalized(files.label_map(mask), files.where(mask))
            yield label_map_image(name, found)

    return Labels(layout.classes, len(layout.images), images(), layout.notes)


def read(files: InputFiles) -> Labels:
    """Read polygons; later ones lie on top. An image without a label file has no labels."""
    layout = _read_layout(files, ".txt")

    def images() -> Iterator[ImageShapes]:
        for (path, name), text in zip(layout.images, layout.labels, strict=True):
            size, where = files.size(path), files.where(text)
            rows = text_lines(files.read(text), where) if text in files else []
            yield ImageShapes(name, *size, _polygons(rows, len(layout.classes), *size, where))

    return Labels(layout.classes, len(layout.images), images(), layout.notes)


def _polygons(
    rows: list[str], count: int, height: int, width: int, where: str
) -> Iterator[tuple[int, Shape]]:
    """Yield class and polygon of the lines of a label file."""
    for number, *numbers in map(str.split, filter(None, rows)):
        valid = number.isascii() and number.isdecimal() and len(number) < 9
        if not valid or int(number) >= count:
            raise InputError(
                f"{where}: class must be between 0 and {count - 1}, got {number[:20]!r}; correct it"
            )
        if len(numbers) == 4:
            raise InputError(f"{where} has boxes, which do not define pixels; export polygons")
        yield int(number), Polygon([parse_points(numbers, where) * [width, height]], "drawn")


def _read_layout(files: InputFiles, suffix: str) -> _Layout:
    """Find classes, images and label files.

    The images are in ``images/``, or in a folder ``images`` in each split, as Roboflow writes
    them. ``valid`` is the split ``val``.
    """
    file = _class_file(files)
    if file.endswith(".txt"):
        classes, masks = classes_of(text_lines(files.read(file), files.where(file))), "masks"
    else:
        classes, masks = _read_yaml(files, file)
    folder = masks if suffix == ".png" else "labels"
    base = file.rpartition("/")[0]
    paths = [one for one in files.names if not base or one.startswith(f"{base}/")]
    images, labels = [], []
    for path in paths:
        parts = path[len(base) :].strip("/").split("/")
        if IMAGES not in parts[:-1] or PurePosixPath(path).suffix.lower() not in IMAGE_SUFFIXES:
            continue
        last = len(parts) - 2 - parts[-2::-1].index(IMAGES)
        splits = [SPLITS.get(part, part) for part in parts[:last]]
        rest = [part[:-1] if re.fullmatch("images_+", part) else part for part in parts[last + 1 :]]
        images.append((path, "/".join([*splits, *rest])))
        labels.append(label_path(path, folder, suffix))
    spare = [one for one in paths if f"/{folder}/" in f"/{one}" and one.endswith(suffix)]
    notes = Counter({"label files without an image, left out": len({*spare} - {*labels})})
    return _Layout(classes, images, labels, +notes)


def _class_file(files: InputFiles) -> str:
    """Return the name of the file with the names of the classes."""
    names = [name for name in files.names if name.lower().endswith((".yaml", ".yml"))]
    found = [name for name in names if name.rpartition("/")[2].lower() in NAMES] or names
    found = found or [name for name in files.names if name.rpartition("/")[2] == LIST]
    if len(found) != 1:
        listed = f"{len(found)}, first {found[0]} and {found[1]}" if found else "none"
        raise InputError(
            f"{files.path} must have one data.yaml or {LIST} with the names of the classes, but "
            f"has {listed}"
        )
    return found[0]


def _read_yaml(files: InputFiles, name: str) -> tuple[Classes, str]:
    """Return the classes and the folder of masks of ``data.yaml``."""
    import yaml

    text, where = files.read(name), files.where(name)
    try:
        # All values are text: a class may have the name "no", which YAML takes for false.
        content = yaml.load(text.decode("utf-8-sig"), yaml.BaseLoader)
        listed = content["names"]
        if isinstance(listed, dict):
            listed = {int(key): value for key, value in listed.items()}
        names = [listed[k] for k in range(len(listed))]  # a list, or a mapping of 0, 1, ...
        masks = content.get("masks_dir", "masks")
        if isinstance(listed, str) or not all(isinstance(one, str) for one in [masks, *names]):
            raise TypeError
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise InputError(
            f"{where}: 'names' must be a list or a mapping of 0, 1, ...; correct it"
        ) from None
    if (count := content.get("nc", str(len(names)))) != str(len(names)):
        raise InputError(
            f"{where}: 'nc' is {short(count)}, but 'names' has {len(names)} classes; correct it"
        )
    return classes_of(names), masks
