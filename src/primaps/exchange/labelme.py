"""labelme: a JSON file beside each image, with a mask per region."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from jaxtyping import Float

from primaps.exchange.classes import Classes, classes_of
from primaps.exchange.files import (
    InputFiles,
    decode_image,
    get_field,
    image_size,
    png,
    safe_name,
    text_lines,
    write_file,
)
from primaps.exchange.labeled import ImageShapes, LabeledImage, Labels
from primaps.geometry.outlines import parse_points
from primaps.geometry.regions import NO_LABEL
from primaps.geometry.shapes import (
    Line,
    Pixels,
    Points,
    Polygon,
    Shape,
    ellipse,
    rectangle,
)
from primaps.utils.errors import InputError
from primaps.utils.validation import short

LABELS = "labels.txt"
SPECIAL = ("__ignore__", "_background_")
"""Labels for pixels without a label, and lines of ``labels.txt``; they are not classes."""


def write(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write each image, ``<key>.json`` beside it, and ``labels.txt``."""
    if reserved := [name for name in classes.names if name in SPECIAL]:
        raise InputError(f"the class name {reserved[0]!r} is reserved by labelme; rename it")
    write_file(out / LABELS, "\n".join(classes.names) + "\n")
    for image in images:
        shapes = []
        for k, left, top, mask in image.regions(per).masks():
            right, bottom = left + mask.shape[1] - 1, top + mask.shape[0] - 1
            shape: dict[str, Any] = {
                "label": classes.names[k],
                "points": [[float(left), float(top)], [float(right), float(bottom)]],
                "group_id": None,
                "description": "",
                "shape_type": "mask",
                "flags": {},
                "mask": base64.b64encode(png(mask)).decode("ascii"),
            }
            shapes.append(shape)
        content: dict[str, Any] = {
            "version": "5.4.1",  # the first version with masks in this form
            "flags": {},
            "shapes": shapes,
            "imagePath": image.copy_to(out / image.copy_name).name,
            "imageData": None,
            "imageHeight": image.height,
            "imageWidth": image.width,
        }
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        write_file(out / f"{image.key}.json", text)


def read(files: InputFiles) -> Labels:
    """Read areas; classes are those of ``labels.txt``, or all that occur, sorted.

    Areas with the labels ``__ignore__`` and ``_background_`` have no label. Lines and points are
    left out.
    """
    names = [name for name in files.names if name.lower().endswith(".json")]
    names = [name for name in names if PurePosixPath(name).name != "classes.json"]
    if not names:
        raise InputError(f"{files.path} has no JSON file of labelme")
    if LABELS in files:
        lines = text_lines(files.read(LABELS), files.where(LABELS))
        listed = [line for line in lines if line and line not in SPECIAL]
    else:
        shapes = (_labeled(files.json(name), files.where(name)) for name in names)
        listed = sorted({label for each in shapes for label, _ in each} - {*SPECIAL})
    index = {label: k for k, label in enumerate(listed)} | dict.fromkeys(SPECIAL, NO_LABEL)
    notes: Counter[str] = Counter()

    def images() -> Iterator[ImageShapes]:
        for name in names:
            content, where = files.json(name), files.where(name)
            labeled = _labeled(content, where)
            for label, _ in labeled:
                if label not in index:
                    raise InputError(f"{where}: {LABELS} does not have the label {label!r}; add it")
                if label in SPECIAL:
                    notes[f"shapes {label}, read as pixels without a label"] += 1
            size = _size(files, name, content, where)
            shapes = _classified(labeled, index, *size, where)
            yield ImageShapes(_image_path(files, name, content, where), *size, shapes)

    return Labels(classes_of(listed), len(names), images(), notes)


def _labeled(content: Any, where: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the label and the content of each shape."""
    shapes = get_field(content, "shapes", list, where)
    return [(get_field(shape, "label", str, where), shape) for shape in shapes]


def _image_path(files: InputFiles, name: str, content: Any, where: str) -> str:
    """Return the name of the image of a JSON file.

    The image may be in another folder, and its path may be of Windows. It is beside the JSON file,
    or has the name of the JSON file.
    """
    path = get_field(content, "imagePath", str, where)
    image = PureWindowsPath(safe_name(PureWindowsPath(path).name, where)).name
    beside = (PurePosixPath(name).parent / image).as_posix()
    if beside in files:
        return beside
    return PurePosixPath(name).with_suffix("").as_posix() + PurePosixPath(image).suffix


def _size(files: InputFiles, name: str, content: Any, where: str) -> tuple[int, int]:
    """Return height and width of the image of a JSON file, or of the image inside it."""
    width, height = content.get("imageWidth"), content.get("imageHeight")
    if (width is None or height is None) and content.get("imageData") is not None:
        return decode_image(_base64(content, "imageData", where), f"imageData of {where}").shape[:2]
    return image_size(width, height, where)


def _base64(content: Any, key: str, where: str) -> bytes:
    try:
        return base64.b64decode(get_field(content, key, str, where), validate=True)
    except ValueError:
        raise InputError(f"{where}: {key!r} is not base64; redraw or remove it") from None


def _classified(
    labeled: list[tuple[str, dict[str, Any]]],
    index: dict[str, int],
    height: int,
    width: int,
    where: str,
) -> Iterator[tuple[int, Shape]]:
    """Yield class and shape of the shapes of an image."""
    for label, shape in labeled:
        yield index[label], _shape(shape, height, width, where)


def _shape(content: dict[str, Any], height: int, width: int, where: str) -> Shape:
    kind = str(content.get("shape_type") or "polygon")
    minimum = {"polygon": 3, "oriented_rectangle": 4, "point": 1, "points": 1}.get(kind, 2)
    points = parse_points(get_field(content, "points", list, where), where, minimum)
    if kind == "mask":
        return _mask(content, points, height, width, where)
    if kind in ("polygon", "oriented_rectangle") or (kind == "rectangle" and len(points) == 4):
        return Polygon([points])
    if kind in ("rectangle", "circle") and len(points) == 2:
        (ax, ay), (bx, by) = points.tolist()
        if kind == "rectangle":
            return rectangle(ax, ay, bx, by)
        radius = math.hypot(bx - ax, by - ay)  # the second point lies on the circle
        return ellipse(ax, ay, radius, radius, where)
    if kind in ("line", "linestrip"):
        return Line(points)
    if kind in ("point", "points"):
        return Points(points)
    raise InputError(
        f"{where} has a shape of the type {short(kind)} with {len(points)} points, which is not "
        "supported; redraw it as a mask or polygon, or remove it"
    )


def _mask(
    content: dict[str, Any],
    points: Float[np.ndarray, "n 2"],
    height: int,
    width: int,
    where: str,
) -> Pixels:
    left, top = (int(one) for one in points[0])
    mask = decode_image(_base64(content, "mask", where), f"a mask of {where}", "L") > 0
    inside = top + mask.shape[0] <= height and left + mask.shape[1] <= width
    if min(left, top) < 0 or not inside:
        raise InputError(f"{where} has a mask outside of the image; redraw it")
    return Pixels(left, top, mask)
