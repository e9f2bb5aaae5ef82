"""labelme: a JSON file beside each image, with a mask per region."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8

from primaps.exchange.classes import Classes, classes_of
from primaps.exchange.files import (
    InputFiles,
    decode_image,
    get_field,
    image_size,
    png,
    safe_name,
    write_file,
)
from primaps.exchange.labeled import LabeledImage, Labels
from primaps.geometry.outlines import paint, parse_points
from primaps.geometry.regions import NO_LABEL
from primaps.utils.errors import InputError

LABELS = "labels.txt"
SPECIAL = ("__ignore__", "_background_")
"""Lines of ``labels.txt`` for scripts of labelme; they are not classes."""


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
    """Read masks and polygons; classes are those of ``labels.txt``, or all that occur, sorted."""
    names = [name for name in files.names if name.lower().endswith(".json")]
    names = [name for name in names if PurePosixPath(name).name != "classes.json"]
    if not names:
        raise InputError(f"{files.path} has no JSON file of labelme")
    if LABELS in files:
        lines = files.read(LABELS).decode("utf-8-sig", "replace").splitlines()
        listed = [line for line in lines if line.strip() and line not in SPECIAL]
    else:
        shapes = (_shapes(files.json(name), files.where(name)) for name in names)
        listed = sorted({label for each in shapes for label, _ in each})
    index = {label: k for k, label in enumerate(listed)}

    def images() -> Iterator[tuple[str, UInt8[np.ndarray, "h w"]]]:
        for name in names:
            content, where = files.json(name), files.where(name)
            shapes = _shapes(content, where)
            image = safe_name(get_field(content, "imagePath", str, where), where)
            size = image_size(content.get("imageWidth"), content.get("imageHeight"), where)
            labels = np.full(size, NO_LABEL, np.uint8)
            for label, shape in shapes:
                if label not in index:
                    raise InputError(f"{where}: {LABELS} does not have the label {label!r}; add it")
                _paint(labels, shape, index[label], where)
            # The image may be in another folder; the label map is named after the JSON file.
            yield str(PurePosixPath(name).with_suffix("")) + PurePosixPath(image).suffix, labels

    return Labels(classes_of(listed), len(names), images())


def _shapes(content: Any, where: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the label and the content of each shape."""
    shapes = get_field(content, "shapes", list, where)
    return [(get_field(shape, "label", str, where), shape) for shape in shapes]


def _paint(labels: UInt8[np.ndarray, "h w"], shape: dict[str, Any], k: int, where: str) -> None:
    kind = shape.get("shape_type", "polygon")
    if kind == "polygon":
        paint(labels, [parse_points(get_field(shape, "points", list, where), where)], k)
    elif kind == "mask":
        corners = parse_points(get_field(shape, "points", list, where), where, minimum=2)
        left, top = (int(one) for one in corners[0])
        try:
            content = base64.b64decode(get_field(shape, "mask", str, where), validate=True)
        except ValueError:
            raise InputError(f"{where}: a mask is not base64; redraw it") from None
        mask = decode_image(content, f"a mask of {where}", "L") > 0
        box = labels[max(top, 0) :, max(left, 0) :][: mask.shape[0], : mask.shape[1]]
        if min(left, top) < 0 or box.shape != mask.shape:
            raise InputError(f"{where} has a mask outside of the image; redraw it")
        box[mask] = k
    else:
        raise InputError(
            f"{where} has a shape of the type {kind!r}; only masks and polygons have pixels, so "
            "redraw it as one of these or remove it"
        )
