"""COCO: instances with run-length encoded masks, and panoptic PNGs with a JSON file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from primaps.exchange.classes import Classes, classes_of
from primaps.exchange.files import (
    InputFiles,
    get_field,
    image_size,
    json_arrays,
    png,
    safe_name,
    write_file,
)
from primaps.exchange.labeled import ImageShapes, LabeledImage, Labels, label_map_image
from primaps.geometry.outlines import parse_points
from primaps.geometry.regions import NO_LABEL
from primaps.geometry.rle import decode_coco, encode_coco
from primaps.geometry.shapes import Bounds, Pixels, Polygon, Shape
from primaps.utils.errors import InputError

HEAD: dict[str, Any] = {"info": {"description": "written by primaps"}, "licenses": []}
PANOPTIC = "panoptic"


def write(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``annotations.json``: an annotation per region or class, with area and box."""
    path, listed = out / "annotations.json", _categories(classes)
    with json_arrays(path, "images", "annotations", **HEAD, categories=listed) as add:
        annotation_id = 0
        for image_id, image in enumerate(images, 1):
            add("images", _image_entry(image, image_id))
            regions = image.regions(per)
            rows = zip(
                regions.classes, regions.boxes(), regions.areas(), encode_coco(regions), strict=True
            )
            for k, box, area, code in rows:
                annotation_id += 1
                annotation = {
                    "id": annotation_id,
                    "image_id": image_id,
                    "category_id": int(k) + 1,
                    "segmentation": {"size": [image.height, image.width], "counts": code},
                    "area": int(area),
                    "bbox": box.tolist(),
                    "iscrowd": 0,
                }
                add("annotations", annotation)


def write_panoptic(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``panoptic.json`` and ``panoptic/<key>.png``, in which id = R + 256 G + 65536 B.

    The id 0 means no segment. Classes are stuff (``isthing`` 0), mask proposals are things.
    """
    arrays = ("images", "annotations", "categories")
    with json_arrays(out / f"{PANOPTIC}.json", *arrays, **HEAD) as add:
        thing = 0
        for image_id, image in enumerate(images, 1):
            thing = int(image.masks is not None)
            regions = image.regions(per)
            rows = zip(regions.classes, regions.boxes(), regions.areas(), strict=True)
            segments = [
                {"id": n, "category_id": int(k) + 1, "iscrowd": 0, "area": int(area),
                 "bbox": box.tolist()}
                for n, (k, box, area) in enumerate(rows, 1)
            ]  # fmt: skip
            rgb = np.stack([regions.numbers >> shift & 255 for shift in (0, 8, 16)], 2)
            name = f"{image.key}.png"
            write_file(out / PANOPTIC / name, png(rgb.astype(np.uint8)))
            add("images", _image_entry(image, image_id))
            entry = {"image_id": image_id, "file_name": name, "segments_info": segments}
            add("annotations", entry)
        for category in _categories(classes):
            add("categories", {**category, "isthing": thing})


def _categories(classes: Classes) -> list[dict[str, Any]]:
    """Return COCO's list of classes; their ids start at 1."""
    pairs = zip(classes.names, classes.colors.tolist(), strict=True)
    return [
        {"id": k, "name": name, "supercategory": "", "color": color}
        for k, (name, color) in enumerate(pairs, 1)
    ]


def _image_entry(image: LabeledImage, image_id: int) -> dict[str, Any]:
    return {
        "id": image_id,
        "file_name": image.name,
        "width": image.width,
        "height": image.height,
    }


def read(files: InputFiles) -> Labels:
    """Read instances: compressed or plain run lengths, or polygons; later ones lie on top.

    The polygons of an annotation are filled and united as pycocotools does. Keypoints are left out.
    """
    content, where = _load(files)
    class_by_id, classes = _read_categories(content, where)
    by_image: dict[Any, list[Any]] = {}
    for annotation in get_field(content, "annotations", list, where):
        image_id = get_field(annotation, "image_id", (int, str), where)
        by_image.setdefault(image_id, []).append(annotation)
    listed = get_field(content, "images", list, where)
    known = {get_field(image, "id", (int, str), where) for image in listed}
    if unknown := by_image.keys() - known:
        raise InputError(
            f"{where}: an annotation has the image_id {min(unknown, key=str)!r}, which no image "
            "has; export it again"
        )

    def images() -> Iterator[ImageShapes]:
        for image in listed:
            file = safe_name(get_field(image, "file_name", str, where), where)
            place = f"{where}, {file}"
            size = image_size(image.get("width"), image.get("height"), place)
            annotations = by_image.pop(image["id"], [])
            shapes = _classified(annotations, class_by_id, *size, place)
            yield ImageShapes(file, *size, shapes)

    return Labels(classes, len(listed), images())


def read_panoptic(files: InputFiles) -> Labels:
    """Read the JSON file and its PNGs, in a folder beside it or in the same folder."""
    content, where = _load(files)
    class_by_id, classes = _read_categories(content, where)
    names = {
        get_field(image, "id", (int, str), where): safe_name(
            get_field(image, "file_name", str, where), where
        )
        for image in get_field(content, "images", list, where)
    }
    annotations: list[Any] = get_field(content, "annotations", list, where)
    # The file names of COCO's lists leave out the folder.
    pngs = {one.split("/", 1)[-1]: one for one in files.names if one.lower().endswith(".png")}

    def images() -> Iterator[ImageShapes]:
        for annotation in annotations:
            image_id = get_field(annotation, "image_id", (int, str), where)
            if image_id not in names:
                raise InputError(
                    f"{where}: an annotation has the image_id {image_id!r}, which no image has; "
                    "export it again"
                )
            file = safe_name(get_field(annotation, "file_name", str, where), where)
            path = pngs.get(file, file)
            ids = files.image(path, "RGB").astype(np.int64) @ np.array([1, 256, 65536])
            segments = {0: NO_LABEL}
            for segment in get_field(annotation, "segments_info", list, where):
                k = _class_of(segment, class_by_id, f"{where}, {file}")
                segments[get_field(segment, "id", int, where)] = k
            present, inverse = np.unique(ids, return_inverse=True)
            if unknown := set(present.tolist()) - segments.keys():
                raise InputError(
                    f"{files.where(path)} has the segment {min(unknown)}, which {where} does not "
                    "list; export it again"
                )
            table = np.array([segments[one] for one in present.tolist()], np.uint8)
            yield label_map_image(names[image_id], table[inverse].reshape(ids.shape))

    return Labels(classes, len(annotations), images())


def _load(files: InputFiles) -> tuple[Any, str]:
    name = files.find(".json")
    return files.json(name), files.where(name)


def _read_categories(content: Any, where: str) -> tuple[dict[int, int], Classes]:
    """Return the class of each category id, and the classes in the order of the ids."""
    listed = get_field(content, "categories", list, where)
    ordered = sorted(listed, key=lambda one: get_field(one, "id", int, where))
    class_by_id = {one["id"]: k for k, one in enumerate(ordered)}
    if len(class_by_id) < len(ordered):
        raise InputError(f"{where}: two categories have the same id; rename one of them")
    names = [get_field(one, "name", str, where) for one in ordered]
    return class_by_id, classes_of(names, [_color(one.get("color")) for one in ordered])


def _color(content: Any) -> list[int] | None:
    valid = isinstance(content, list) and len(content) == 3
    valid = valid and all(isinstance(one, int) and 0 <= one < 256 for one in content)
    return content if valid else None


def _class_of(annotation: Any, class_by_id: dict[int, int], where: str) -> int:
    category_id = get_field(annotation, "category_id", int, where)
    if category_id not in class_by_id:
        raise InputError(
            f"{where}: an annotation has the category_id {category_id}, which no category has; "
            "export it again"
        )
    return class_by_id[category_id]


def _classified(
    annotations: list[Any], class_by_id: dict[int, int], height: int, width: int, where: str
) -> Iterator[tuple[int, Shape]]:
    """Yield class and area of the annotations of an image."""
    for one in annotations:
        yield _class_of(one, class_by_id, where), _shape(one, height, width, where)


def _box(content: list[Any], where: str) -> list[float]:
    corners = parse_points(content, where, 2).ravel().tolist()
    if len(corners) != 4:
        raise InputError(f"{where}: a bbox must have 4 numbers, got {len(corners)}; correct it")
    return corners


def _shape(annotation: Any, height: int, width: int, where: str) -> Shape:
    """Return the area of an annotation."""
    if not annotation.get("segmentation", True) or "segmentation" not in annotation:
        left, top, columns, rows = _box(get_field(annotation, "bbox", list, where), where)
        return Bounds(np.array([[left, top], [left + columns, top + rows]]))
    content: Any = get_field(annotation, "segmentation", (list, dict), where)
    if isinstance(content, list):
        return Polygon([parse_points(ring, where) for ring in content], "coco")
    if get_field(content, "size", list, where) != [height, width]:
        raise InputError(
            f"{where}: a mask has the size {content['size']}, but the image {[height, width]}; "
            "export it again"
        )
    counts: Any = get_field(content, "counts", (str, list), where)
    return Pixels.from_columns(decode_coco(counts, height * width, where), height)
