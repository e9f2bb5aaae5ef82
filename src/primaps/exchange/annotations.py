"""Annotations from files of other tools, label maps, the studio and answered questions."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt8
from PIL import Image

from primaps.classes.legend import HIDDEN, RESERVED
from primaps.data.collection import IMAGE_SUFFIXES, ImageFile, find_label
from primaps.data.images import image_size, load_label, opened
from primaps.data.stream import content_digest
from primaps.exchange.classes import read_classes
from primaps.exchange.files import InputFiles, get_field, open_files
from primaps.exchange.formats import find_format
from primaps.exchange.labeled import ImageShapes
from primaps.exchange.questions import is_question_folder, read_answers
from primaps.geometry.regions import NO_LABEL, class_regions
from primaps.geometry.rle import encode_coco
from primaps.geometry.shapes import Bounds, Line, Points, Polygon, Shape
from primaps.persistence import read_class_summary, read_legend
from primaps.results import MANIFEST
from primaps.teach.annotations import FILE, Annotation, iter_annotations, mask_geometry, now
from primaps.utils.errors import InputError, NotFoundError
from primaps.utils.inputs import read_json

logger = logging.getLogger("primaps")
LogCallback = Callable[[str], None]
STUDIO, CORRECTIONS, MODEL = "studio.json", "corrections", "model"
"""Files and folders in the output folder of a studio."""
UNCORRECTED = 65535
"""Value of a pixel without a correction in the 16-bit PNG files of a studio."""


def load_annotations(
    path: str | Path,
    images: Sequence[ImageFile] | None = None,
    *,
    source_format: str | None = None,
    names: Iterable[str] = (),
    log: LogCallback = logger.warning,
) -> list[Annotation]:
    """Read annotations of any kind.

    - ``annotations.jsonl``, or a folder with it
    - a folder that ``primaps ask`` wrote and a person answered, or the CSV file in it
    - the output folder of the studio: its corrections
    - a folder of label maps (PNG, 255 is unlabeled) with ``classes.json``
    - a file, folder or zip file of another tool (:data:`primaps.exchange.formats.FORMATS`): points,
      lines, boxes, polygons and masks

    Images are found by their keys, then by their file names if only one image has this name.

    Args:
        path: file, folder or zip file.
        images: images of the collection; None keeps the names in the file, and checks nothing.
        source_format: name of a format of another tool; None detects it.
        names: known class names, for the spelling of answers.
        log: called with one sentence about each kind of annotation that is left out.

    Raises:
        NotFoundError: The path does not exist.
        InputError: A file is malformed, has no annotations, annotates none of the images, or an
            image at another size.
        ImageError: A label map is damaged.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise NotFoundError(f"{path} does not exist; give a file or folder of annotations")
    listed = list(_read(path, images, source_format, names, log))
    if not listed:
        raise InputError(f"{path} has no annotations; annotate some images first")
    return listed if images is None else _matched(listed, images, path, log)


def _read(
    path: Path,
    images: Sequence[ImageFile] | None,
    source_format: str | None,
    names: Iterable[str],
    log: LogCallback,
) -> Iterator[Annotation]:
    """Yield the annotations of a path, with images named as in it."""
    if source_format is not None:
        yield from _read_tool(path, source_format, log)
    elif path.suffix.lower() == ".jsonl":
        yield from iter_annotations(path, log)
    elif is_question_folder(path):
        yield from read_answers(path, names)
    elif (path / FILE).is_file() or (path / STUDIO).is_file():
        if (path / STUDIO).is_file():
            yield from _read_corrections(path, log)
        if (path / FILE).is_file():
            yield from iter_annotations(path, log)
    elif (path / "classes.json").is_file() and not any(path.rglob("metadata.jsonl")):
        yield from _read_label_maps(path, images, log)
    else:
        yield from _read_tool(path, None, log)


def region_at(
    images: Sequence[ImageFile], image: str, point: tuple[float, float], name: str
) -> Annotation:
    """Return the annotation of a point in an image of a collection.

    Args:
        images: images of the collection.
        image: key, path or file name of the image.
        point: (x, y) in pixels of the image.
        name: class name.

    Raises:
        NotFoundError: No image, or more than one, has this name.
        InputError: The point is outside the image, or a class cannot have the name.
    """
    file = _Images(images).find(image)
    if file is None:
        raise NotFoundError(
            f"the collection has no image {image!r}, or several; give its path without the suffix, "
            f"such as {images[0].key}"
        )
    width, height = image_size(file.source)
    digest, time = content_digest(file), now()
    return Annotation(
        file.key, digest, "point", name, [*point], (height, width), time=time, source="find"
    )


class _Images:
    """Images of a collection by the names that files of annotations have for them."""

    def __init__(self, images: Sequence[ImageFile]) -> None:
        self.by_key = {file.key: file for file in images}

    @cached_property
    def _by_name(self) -> dict[str, list[ImageFile]]:
        found: dict[str, list[ImageFile]] = defaultdict(list)
        for file in self.by_key.values():
            path = PurePosixPath(file.key)
            full = str(path.parent / PurePosixPath(str(file.source).replace("\\", "/")).name)
            for name in dict.fromkeys([full, str(path), PurePosixPath(full).name, path.name]):
                found[name.casefold()].append(file)
        return found

    def find(self, name: str) -> ImageFile | None:
        """Return the image with this key, path or file name; None if none or several have it."""
        if name in self.by_key:
            return self.by_key[name]
        path = PurePosixPath(name)
        bare = path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else path
        for candidate in (path, bare, PurePosixPath(path.name), PurePosixPath(bare.name)):
            found = self._by_name.get(str(candidate).casefold(), [])
            if len(found) == 1:
                return found[0]
        return None


def _matched(
    annotations: Sequence[Annotation], images: Sequence[ImageFile], path: Path, log: LogCallback
) -> list[Annotation]:
    """Return annotations with the keys of their images; check sizes."""
    known, found = _Images(images), list[Annotation]()
    files: dict[str, ImageFile | None] = {}
    sizes: dict[str, tuple[int, int]] = {}
    absent: Counter[str] = Counter()
    for one in annotations:
        if one.image not in files:
            files[one.image] = known.find(one.image)
        if (file := files[one.image]) is None:
            absent[one.image] += 1
            continue
        if file.key not in sizes:
            width, height = image_size(file.source)
            sizes[file.key] = height, width
        if one.size != (expected := sizes[file.key]):
            turned = " (was the image rotated?)" if one.size == expected[::-1] else ""
            raise InputError(
                f"{path}: the image {file.key} has {expected[1]} x {expected[0]} pixels, but was "
                f"annotated with {one.size[1]} x {one.size[0]}{turned}; annotate the image as it is"
            )
        found.append(one if one.image == file.key else replace(one, image=file.key))
    if absent:
        text = (
            f"{path}: {sum(absent.values()):,} of {len(annotations):,} annotations are of "
            f"{len(absent):,} images that the collection does not have, or has several times; the "
            f"first is {next(iter(absent))}"
        )
        if not found:
            raise InputError(f"{text}; give the images that were annotated")
        log(f"{text}; they were left out")
    return found


def _read_label_maps(
    folder: Path, images: Sequence[ImageFile] | None, log: LogCallback
) -> Iterator[Annotation]:
    """Yield an annotation per label map."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        command = read_json(manifest, dict[str, Any], max_bytes=1 << 28).get("command")
        raise InputError(
            f"{folder} has results of {command}, not annotations; copy the label maps that you "
            "corrected, and classes.json, to another folder"
        )
    classes = read_classes(folder)
    maps = {path: path.relative_to(folder).with_suffix("").as_posix() for path in _maps(folder)}
    if images is not None:  # find_label knows how label maps of images with equal names are named
        keys = {found: file.key for file in images if (found := find_label(file, folder))}
        maps = {path: keys.get(path, key) for path, key in maps.items()}
    empty = 0
    for path, key in maps.items():
        labels = classes.normalized(load_label(path), path)
        if (labels == NO_LABEL).all():
            empty += 1
            continue
        yield _label_map(key, labels, classes.names, str(path), "label map")
    if empty:
        log(f"{folder}: {empty:,} label maps have no labeled pixel and were left out")


def _maps(folder: Path) -> list[Path]:
    suffixes = (".png", ".tif", ".tiff")
    return sorted(path for path in folder.rglob("[!.]*") if path.suffix.lower() in suffixes)


def _label_map(
    key: str, labels: UInt8[np.ndarray, "h w"], names: Sequence[str], where: str, source: str
) -> Annotation:
    """Return the annotation of a label map with at least one labeled pixel."""
    regions, (height, width) = class_regions(labels), labels.shape
    geometry = {
        names[k]: {"size": [height, width], "counts": counts}
        for k, counts in zip(regions.classes.tolist(), encode_coco(regions), strict=True)
    }
    try:
        return Annotation(key, None, "label_map", None, geometry, (height, width), source=source)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _read_corrections(out: Path, log: LogCallback) -> Iterator[Annotation]:
    """Yield the corrections of a studio as a label map per image."""
    hint = "give the output folder of the studio"
    record = read_json(out / STUDIO, dict[str, Any], hint)
    where = str(out / STUDIO)
    folder = Path(get_field(record, "model", str, where) or out / MODEL)
    summary = read_class_summary(folder)
    if summary is None:
        if any((out / CORRECTIONS).rglob("[!.]*.png")):
            raise InputError(
                f"{folder} has no model, which {out / CORRECTIONS} refers to; restore it"
            )
        return
    legend = read_legend(folder, summary.tree)
    values, names = legend.table().numpy(), legend.names
    unnamed: Counter[str] = Counter()
    for image in get_field(record, "images", list, where):
        key = get_field(image, "key", str, where)
        path = out / CORRECTIONS / f"{key}.png"
        if not path.is_file():
            continue
        size = (get_field(image, "width", int, where), get_field(image, "height", int, where))
        labels = _corrected(path, size, values)
        for k in np.unique(labels[labels != HIDDEN]).tolist():
            if RESERVED.fullmatch(names[k]):
                unnamed[names[k]] += 1
                labels[labels == k] = HIDDEN
        if (labels != HIDDEN).any():
            yield _label_map(key, labels, names, str(path), "studio")
    if unnamed:
        log(
            f"{out}: corrections of {', '.join(sorted(unnamed))} were left out, because a class "
            "without a name cannot be taught; name it in the studio"
        )


def _corrected(
    path: Path, size: tuple[int, int], values: Integer[np.ndarray, " l"]
) -> UInt8[np.ndarray, "h w"]:
    """Return the class of each corrected pixel, 255 elsewhere."""
    with opened(path) as image:
        leaves = np.asarray(image.resize(size, Image.Resampling.NEAREST)).astype(np.int64)
    known = leaves != UNCORRECTED
    if known.any() and leaves[known].max() >= len(values):
        raise InputError(
            f"{path} refers to the class {leaves[known].max()}, but the model has {len(values)}; "
            "restore the model that was corrected"
        )
    return np.where(known, values[np.where(known, leaves, 0)], HIDDEN).astype(np.uint8)


_SIGNS = {
    "labelmap.txt": "cvat-mask",
    "metadata.jsonl": "hf",
    "labeling_config.xml": "labelstudio",
}
"""File names that only one format has."""


def detect_format(files: InputFiles) -> str:
    """Return the name of the format of another tool that files have.

    Raises:
        InputError: No format is recognized.
    """
    names = files.names
    for name in names:
        if known := _SIGNS.get(PurePosixPath(name).name):
            return known
    if any(PurePosixPath(name).name in ("data.yaml", "data.yml") for name in names):
        polygons = any("labels" in PurePosixPath(name).parts for name in names)
        return "yolo" if polygons else "yolo-semantic"
    if any(name.lower().endswith(".xml") for name in names):
        return "cvat"
    for name in (name for name in names if name.lower().endswith(".json")):
        content = files.json(name)
        if isinstance(content, list):
            return "labelstudio"
        if isinstance(content, dict) and "shapes" in content:
            return "labelme"
        if isinstance(content, dict) and "images" in content and "annotations" in content:
            listed = content["annotations"]
            first: Any = listed[0] if isinstance(listed, list) and listed else {}
            panoptic = isinstance(first, dict) and "segments_info" in first
            return "coco-panoptic" if panoptic else "coco"
    raise InputError(
        f"{files.path} has no annotations that are recognized; give {FILE}, a folder of label maps "
        "with classes.json, or the format of a tool (docs/exchange.md)"
    )


def _read_tool(path: Path, source_format: str | None, log: LogCallback) -> Iterator[Annotation]:
    """Yield the annotations of a file, folder or zip file of another tool."""
    with open_files(path) as files:
        name = source_format or detect_format(files)
        row = find_format(name, reading=True)
        assert row.read is not None
        try:
            found = row.read(files)
        except InputError as error:
            raise InputError(f"{'' if str(path) in str(error) else f'{path}: '}{error}") from None
        empty = 0
        for image in found.images:
            for one in _from_image(image, found.classes.names, f"{path}, {image.name}", name):
                empty += one is None
                if one is not None:
                    yield one
        for text, number in found.notes.items():
            log(f"{path}: {number:,} {text}")
        if empty:
            log(f"{path}: {empty:,} areas without pixels were left out")


def _from_image(
    image: ImageShapes, names: Sequence[str], where: str, source: str
) -> Iterator[Annotation | None]:
    """Yield the annotations of an image; None for an area without pixels."""
    if image.base is not None and (image.base != NO_LABEL).any():
        yield _label_map(image.name, image.base, names, where, source)
    size = (image.height, image.width)
    for k, shape in image.shapes:
        if k >= len(names):  # an area without a label
            continue
        try:
            for kind, geometry in _geometries(shape, size):
                yield (
                    Annotation(image.name, None, kind, names[k], geometry, size, source=source)
                    if geometry is not None
                    else None
                )
        except InputError as error:
            raise InputError(f"{where}: {error}") from None


def _geometries(shape: Shape, size: tuple[int, int]) -> Iterator[tuple[Any, Any]]:
    """Yield kind and geometry of the annotations of a shape."""
    if isinstance(shape, Points):
        yield from (("point", point) for point in shape.points.tolist())
    elif isinstance(shape, Line):
        yield "scribble", {"points": shape.points.tolist(), "width": 1}
    elif isinstance(shape, Polygon) and (
        shape.rule == "center" or (shape.rule == "coco" and len(shape.rings) == 1)
    ):
        rings = [ring.tolist() for ring in shape.rings]
        yield ("box", _box(shape.rings[0])) if shape.box else ("polygon", rings)
    elif isinstance(shape, Bounds):
        yield "box", _box(shape.corners)
    else:
        left, top, region = shape.region(*size)
        mask = np.zeros(size, bool)
        mask[top : top + region.shape[0], left : left + region.shape[1]] = region
        yield "mask", mask_geometry(mask) if mask.any() else None


def _box(corners: Float[np.ndarray, "n 2"]) -> list[float]:
    (left, top), (right, bottom) = corners.min(0).tolist(), corners.max(0).tolist()
    return [left, top, right - left, bottom - top]
