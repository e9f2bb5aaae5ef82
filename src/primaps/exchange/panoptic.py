"""``coco-panoptic``: PNGs whose colors number the segments, and a JSON file that names them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from primaps.exchange.classes import NOTHING, Classes
from primaps.exchange.coco import categories, category, entry, read_categories
from primaps.exchange.documents import json_arrays, png, put
from primaps.exchange.errors import need, parse_json
from primaps.exchange.labeled import LabeledImage, Read
from primaps.exchange.source import Source, safe_name
from primaps.utils.errors import InputError

FOLDER = "panoptic"


def write(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``panoptic.json`` and ``panoptic/<key>.png``: number = R + 256 G + 65536 B, 0 is none.

    Classes are stuff (``isthing`` 0), proposals are things.
    """
    with json_arrays(
        out / f"{FOLDER}.json",
        "images",
        "annotations",
        "categories",
        info={"description": "written by primaps"},
        licenses=[],
    ) as add:
        thing = 0
        for i, image in enumerate(images, 1):
            thing = int(image.masks is not None)
            regions = image.regions(per)
            count = len(regions.classes)
            segments = []
            if count:
                boxes, areas = regions.boxes(), regions.areas()
                for n, (k, box, area) in enumerate(zip(regions.classes, boxes, areas, strict=True)):
                    segment = {"id": n + 1, "category_id": int(k) + 1, "iscrowd": 0}
                    segments.append({**segment, "area": int(area), "bbox": box.tolist()})
            shifted = [regions.numbers >> shift & 255 for shift in (0, 8, 16)]
            put(out / FOLDER / f"{image.key}.png", png(np.stack(shifted, 2).astype(np.uint8)))
            add("images", entry(image, i))
            file = f"{image.key}.png"
            add("annotations", {"image_id": i, "file_name": file, "segments_info": segments})
        for one in categories(classes):
            add("categories", {**one, "isthing": thing})


def read(source: Source) -> Read:
    """Read ``*.json`` and its PNGs in a folder beside it, or in the same folder."""
    name = source.find(".json", "JSON file")
    where = source.where(name)
    content = parse_json(source.read(name), where)
    numbers, classes = read_categories(content, where)
    files = {
        need(image, "id", (int, str), where): safe_name(need(image, "file_name", str, where), where)
        for image in need(content, "images", list, where)
    }
    annotations: list[Any] = need(content, "annotations", list, where)
    pictures = {_tail(one): one for one in source.names if one.lower().endswith(".png")}

    def labeled() -> Iterator[tuple[str, UInt8[np.ndarray, "h w"]]]:
        for annotation in annotations:
            number = need(annotation, "image_id", (int, str), where)
            if number not in files:
                raise InputError(f"{where} has segments of an image {number!r} that is not listed")
            file = safe_name(need(annotation, "file_name", str, where), where)
            place = pictures.get(file) or file
            colors = source.picture(place, "RGB").astype(np.int64)
            codes = colors @ np.array([1, 256, 65536])
            segments = {0: NOTHING}
            for segment in need(annotation, "segments_info", list, where):
                k = category(segment, numbers, f"{where}, {file}")
                segments[need(segment, "id", int, where)] = k
            present, inverse = np.unique(codes, return_inverse=True)
            if strange := set(present.tolist()) - segments.keys():
                raise InputError(
                    f"{source.where(place)} has the segment {min(strange)}, which {where} does not "
                    "list"
                )
            table = np.array([segments[one] for one in present.tolist()], np.uint8)
            yield files[number], table[inverse].reshape(codes.shape)

    return Read(classes, len(annotations), labeled())


def _tail(name: str) -> str:
    """A path without its first folder, which COCO's lists leave out."""
    return name.split("/", 1)[-1]
