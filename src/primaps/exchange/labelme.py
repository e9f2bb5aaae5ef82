"""``labelme``: a JSON file beside each image, with a mask per region."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8

from primaps.exchange.classes import NOTHING, Classes, with_colors
from primaps.exchange.documents import png, put
from primaps.exchange.errors import need, need_size, parse_json
from primaps.exchange.labeled import LabeledImage, Read
from primaps.exchange.map_places import copy
from primaps.exchange.source import Source, decode, safe_name
from primaps.geometry.outlines import paint, parse_points
from primaps.utils.errors import InputError

LABELS = "labels.txt"
SPECIAL = ("__ignore__", "_background_")
"""Lines that labelme's own scripts expect in ``labels.txt``; they are no classes."""


def write(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write each image, ``<key>.json`` beside it, and ``labels.txt``."""
    if clash := [name for name in classes.names if name in SPECIAL]:
        raise InputError(f"a class is named {clash[0]!r}, which labelme keeps for itself")
    put(out / LABELS, "\n".join(classes.names) + "\n")
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
            "version": "5.4.1",  # the first with masks as they are here
            "flags": {},
            "shapes": shapes,
            "imagePath": copy(image, out / image.place).name,
            "imageData": None,
            "imageHeight": image.height,
            "imageWidth": image.width,
        }
        put(out / f"{image.key}.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def read(source: Source) -> Read:
    """Read masks and polygons; classes are those of ``labels.txt``, or all that occur, sorted."""
    names = [name for name in source.names if name.lower().endswith(".json")]
    names = [name for name in names if PurePosixPath(name).name != "classes.json"]
    if not names:
        raise InputError(f"{source.path} has no JSON file of labelme")
    if LABELS in source:
        lines = source.read(LABELS).decode("utf-8-sig", "replace").splitlines()
        listed = [line for line in lines if line.strip() and line not in SPECIAL]
    else:
        listed = sorted({label for name in names for label, _ in _shapes(*_load(source, name))})
    index = {label: k for k, label in enumerate(listed)}

    def labeled() -> Iterator[tuple[str, UInt8[np.ndarray, "h w"]]]:
        for name in names:
            content, where = _load(source, name)
            size = need_size(content.get("imageWidth"), content.get("imageHeight"), where)
            labels = np.full(size, NOTHING, np.uint8)
            for label, shape in _shapes(content, where):
                if label not in index:
                    raise InputError(f"{where} has the label {label!r}, which {LABELS} has not")
                _paint(labels, shape, index[label], where)
            image = safe_name(need(content, "imagePath", str, where), where)
            # Labels may lie in another folder than the image: the place of the JSON counts.
            yield str(PurePosixPath(name).with_suffix("")) + PurePosixPath(image).suffix, labels

    return Read(with_colors(listed, [None] * len(listed)), len(names), labeled())


def _load(source: Source, name: str) -> tuple[dict[str, Any], str]:
    where = source.where(name)
    content = parse_json(source.read(name), where)
    need(content, "shapes", list, where)
    return content, where


def _shapes(content: dict[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for shape in content["shapes"]:
        yield need(shape, "label", str, where), shape


def _paint(labels: UInt8[np.ndarray, "h w"], shape: dict[str, Any], k: int, where: str) -> None:
    kind = shape.get("shape_type", "polygon")
    if kind == "polygon":
        paint(labels, [parse_points(need(shape, "points", list, where), where)], k)
    elif kind == "mask":
        corners = parse_points(need(shape, "points", list, where), where, minimum=2)
        left, top = (int(one) for one in corners[0])
        try:
            packed = base64.b64decode(need(shape, "mask", str, where), validate=True)
        except ValueError:
            raise InputError(f"{where}: a mask is not written in base 64") from None
        mask = decode(packed, f"a mask of {where}", "L") > 0
        part = labels[max(top, 0) :, max(left, 0) :][: mask.shape[0], : mask.shape[1]]
        if min(left, top) < 0 or part.shape != mask.shape:
            raise InputError(f"{where} has a mask outside of the image")
        part[mask] = k
    else:
        raise InputError(
            f"{where} has a shape of the type {kind!r}: only masks and polygons say which pixels "
            "they have, so turn it into one of these or remove it"
        )
