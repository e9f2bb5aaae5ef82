"""``coco``: instances in one JSON file, masks as compressed run-length codes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from primaps.exchange.classes import NOTHING, Classes, with_colors
from primaps.exchange.documents import json_arrays
from primaps.exchange.errors import need, need_size, parse_json
from primaps.exchange.labeled import LabeledImage, Read
from primaps.exchange.source import Source, safe_name
from primaps.geometry.outlines import paint, parse_points
from primaps.geometry.rle import decode_coco, encode_coco
from primaps.utils.errors import InputError


def write(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``annotations.json``: an annotation per region or class, with area and box."""
    with json_arrays(
        out / "annotations.json",
        "images",
        "annotations",
        info={"description": "written by primaps"},
        licenses=[],
        categories=categories(classes),
    ) as add:
        number = 0
        for i, image in enumerate(images, 1):
            add("images", entry(image, i))
            regions = image.regions(per)
            if not len(regions.classes):
                continue
            boxes, areas, codes = regions.boxes(), regions.areas(), encode_coco(regions)
            for k, box, area, code in zip(regions.classes, boxes, areas, codes, strict=True):
                number += 1
                annotation = {
                    "id": number,
                    "image_id": i,
                    "category_id": int(k) + 1,
                    "segmentation": {"size": [image.height, image.width], "counts": code},
                    "area": int(area),
                    "bbox": box.tolist(),
                    "iscrowd": 0,
                }
                add("annotations", annotation)


def categories(classes: Classes) -> list[dict[str, Any]]:
    """COCO's list of classes; its numbers start at 1."""
    colors = classes.colors.tolist()
    return [
        {"id": k + 1, "name": name, "supercategory": "", "color": colors[k]}
        for k, name in enumerate(classes.names)
    ]


def entry(image: LabeledImage, number: int) -> dict[str, Any]:
    """An image in COCO's list."""
    return {
        "id": number,
        "file_name": image.name,
        "width": image.width,
        "height": image.height,
    }


def read(source: Source) -> Read:
    """Read instances: compressed or plain run lengths, or polygons; later ones lie on top."""
    name = source.find(".json", "JSON file")
    where = source.where(name)
    content = parse_json(source.read(name), where)
    numbers, classes = read_categories(content, where)
    by_image: dict[Any, list[Any]] = {}
    for annotation in need(content, "annotations", list, where):
        by_image.setdefault(need(annotation, "image_id", (int, str), where), []).append(annotation)
    listed = need(content, "images", list, where)
    known = {need(image, "id", (int, str), where) for image in listed}
    if strange := by_image.keys() - known:
        raise InputError(
            f"{where} has annotations of an image {min(strange, key=str)!r}, which is not listed"
        )

    def labeled() -> Iterator[tuple[str, UInt8[np.ndarray, "h w"]]]:
        for image in listed:
            file = safe_name(need(image, "file_name", str, where), where)
            about = f"{where}, {file}"
            size = need_size(image.get("width"), image.get("height"), about)
            labels = np.full(size, NOTHING, np.uint8, order="F")
            for annotation in by_image.pop(image["id"], []):
                _paint(labels, annotation, category(annotation, numbers, about), about)
            yield file, labels

    return Read(classes, len(listed), labeled())


def read_categories(content: Any, where: str) -> tuple[dict[int, int], Classes]:
    """Of each number of a category the class, and the classes in the order of these numbers."""
    found = need(content, "categories", list, where)
    ordered = sorted(found, key=lambda one: need(one, "id", int, where))
    numbers = {one["id"]: k for k, one in enumerate(ordered)}
    if len(numbers) < len(ordered):
        raise InputError(f"{where} has two categories with the same id")
    names = [need(one, "name", str, where) for one in ordered]
    return numbers, with_colors(names, [_color(one.get("color")) for one in ordered])


def category(annotation: Any, numbers: dict[int, int], where: str) -> int:
    """Class of an annotation."""
    number = need(annotation, "category_id", int, where)
    if number not in numbers:
        raise InputError(f"{where} has the category {number}, which is not listed")
    return numbers[number]


def _paint(labels: UInt8[np.ndarray, "h w"], annotation: Any, k: int, where: str) -> None:
    height, width = labels.shape
    shape: Any = need(annotation, "segmentation", (list, dict), where)
    if isinstance(shape, list):
        if not shape:
            raise InputError(f"{where} has a box without a mask: draw its outline, or remove it")
        paint(labels, [parse_points(ring, where) for ring in shape], k)
        return
    if need(shape, "size", list, where) != [height, width]:
        raise InputError(f"{where} has {width} x {height} pixels, but a mask of {shape['size']}")
    counts: Any = need(shape, "counts", (str, list), where)
    labels[decode_coco(counts, height, width, where)] = k


def _color(content: Any) -> list[int] | None:
    right = isinstance(content, list) and len(content) == 3
    right = right and all(isinstance(one, int) and 0 <= one < 256 for one in content)
    return content if right else None
