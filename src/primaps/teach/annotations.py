"""Annotations: what a person says about regions of images, and the file ``annotations.jsonl``.

A line of the file is one annotation in JSON. The file is only appended to, so that a process that
is killed loses nothing that was confirmed, and files of several people can be merged.
"""

from __future__ import annotations

import errno
import heapq
import json
import logging
import math
import numbers
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, Literal, cast, get_args

import numpy as np
from jaxtyping import Bool, Float, Integer
from pydantic_core import from_json

from primaps.classes.legend import EditError, check_name
from primaps.geometry.outlines import MAX_COORDINATE, fill, parse_points, stroke
from primaps.geometry.regions import Regions
from primaps.geometry.rle import decode_coco, encode_coco
from primaps.results import OutputError
from primaps.utils.errors import InputError, NotFoundError
from primaps.utils.files import locked, named
from primaps.utils.inputs import parse_json
from primaps.utils.validation import short

logger = logging.getLogger("primaps")
FILE = "annotations.jsonl"
Kind = Literal["point", "scribble", "polygon", "box", "mask", "label_map"]
Answer = Literal["class", "unknown", "mixed"]
KINDS, ANSWERS = get_args(Kind), get_args(Answer)
MAX_SIDE = 10_000_000
"""Maximum height or width of an image in pixels."""
MAX_SOURCE = 200
"""Maximum length of a source."""
MAX_LINE = 256 << 20
"""Maximum size of a line in bytes; that of a dense label map has some megabytes."""
INCOMPLETE = ".incomplete"
"""Suffix of the file that incomplete last lines are moved to."""
UNLABELED = -1
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|\+00:00)")
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Annotation:
    """What a person says about a region of an image.

    Coordinates are in pixels of the image, from its upper left corner; pixel (0, 0) covers 0 to 1
    in both. They may be fractions. Geometries by kind:

    - ``point``: ``[x, y]``
    - ``scribble``: ``{"points": [[x, y], ...], "width": w}``
    - ``polygon``: rings ``[[[x, y], ...], ...]``, filled by the even-odd rule
    - ``box``: ``[x, y, width, height]``, a hint that the object fills most of
    - ``mask``: run lengths of COCO, ``{"size": [height, width], "counts": text}``
    - ``label_map``: class name to ``mask``, for each class of the image; other pixels are unlabeled

    Attributes:
        image: key of the image in its collection (:class:`primaps.data.collection.ImageFile`).
        digest: SHA-256 of the image file; None if unknown.
        kind: kind of the geometry.
        name: class name; None for a label map, and for the answers ``unknown`` and ``mixed``.
        geometry: the region.
        size: height and width of the image in pixels.
        negative: the region does *not* show the class ``name``.
        answer: ``class``; ``unknown`` if the person does not know; ``mixed`` if the region has
            several classes.
        time: time in UTC in ISO 8601; empty if unknown.
        source: program or person, such as ``ask`` or ``coco``.

    Raises:
        InputError: A field is malformed, or the region is outside the image.

    Examples:
        >>> found = Annotation("a", None, "point", "rust", [3.5, 1], (2, 8))
        >>> annotation_mask(found, 2, 8).nonzero()
        (array([1]), array([3]))
    """

    image: str
    digest: str | None
    kind: Kind
    name: str | None
    geometry: Any
    size: tuple[int, int]
    negative: bool = False
    answer: Answer = "class"
    time: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        _check_texts(self)
        object.__setattr__(self, "size", _size(self.size))
        object.__setattr__(self, "geometry", _geometry(self.kind, self.geometry, self.size))

    def to_json(self) -> str:
        """Return the line of ``annotations.jsonl``, without its end and without default values."""
        content: dict[str, Any] = {"image": self.image}
        if self.digest is not None:
            content["digest"] = self.digest
        content["kind"] = self.kind
        if self.name is not None:
            content["name"] = self.name
        content["geometry"] = self.geometry
        content["size"] = self.size
        if self.negative:
            content["negative"] = True
        if self.answer != "class":
            content["answer"] = self.answer
        content |= {key: text for key in ("time", "source") if (text := getattr(self, key))}
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Conflict:
    """Two annotations that contradict each other; the later one wins.

    Attributes:
        earlier: annotation that loses the pixels.
        later: annotation that keeps them.
        pixels: number of pixels that both cover.
    """

    earlier: Annotation
    later: Annotation
    pixels: int

    def __str__(self) -> str:
        said = [
            f"{'not ' if one.negative else ''}{one.name!r}" for one in (self.earlier, self.later)
        ]
        return f"{self.later.image}: {said[0]}, later {said[1]}, on {self.pixels:,} pixels"


def now() -> str:
    """Return the current time in UTC, for :attr:`Annotation.time`."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def check_class_name(name: object) -> str:
    """Return a class name; see :func:`primaps.classes.legend.check_name`.

    Raises:
        InputError: A class cannot have this name.
    """
    try:
        return check_name(name)
    except EditError as error:
        raise InputError(f"class name: {error}; rename the class") from None


def _check_texts(one: Annotation) -> None:
    """Check every field except size and geometry."""
    if not isinstance(one.image, str) or not one.image or "\0" in one.image:
        raise InputError(f"image is {short(one.image)}; it must be the key of an image")
    if one.digest is not None and not (
        isinstance(one.digest, str) and _DIGEST.fullmatch(one.digest)
    ):
        raise InputError(f"digest is {short(one.digest)}; it must be a SHA-256 in hexadecimal")
    if one.kind not in KINDS:
        raise InputError(f"kind is {short(one.kind)}; it must be one of {', '.join(KINDS)}")
    if one.answer not in ANSWERS:
        raise InputError(f"answer is {short(one.answer)}; it must be one of {', '.join(ANSWERS)}")
    if type(one.negative) is not bool:
        raise InputError(f"negative is {short(one.negative)}; it must be true or false")
    if one.kind == "label_map" or one.answer != "class":
        if one.name is not None or one.negative:
            what = "a label map" if one.kind == "label_map" else f"the answer {one.answer!r}"
            raise InputError(f"{what} has the class name {short(one.name)}; leave the name out")
        if one.kind == "label_map" and one.answer != "class":
            raise InputError(f"a label map has the answer {one.answer!r}; leave the answer out")
    else:
        check_class_name(one.name)
    if not isinstance(one.time, str) or (one.time and not _TIME.fullmatch(one.time)):
        raise InputError(
            f"time is {short(one.time)}; it must be in UTC, such as 2026-11-30T21:10:14Z"
        )
    if not isinstance(one.source, str) or len(one.source) > MAX_SOURCE:
        raise InputError(
            f"source is {short(one.source)}; it must have at most {MAX_SOURCE} characters"
        )


_SIZES: dict[Any, tuple[int, int]] = {}


def _size(content: Any) -> tuple[int, int]:
    """Return the size as a tuple that annotations of images of the same size share."""
    valid = isinstance(content, list | tuple) and len(content) == 2
    if not valid or not {type(one) for one in content} <= {int}:
        valid = False
    elif (known := _SIZES.get(tuple(content))) is not None:
        return known
    if not valid or not all(1 <= one <= MAX_SIDE for one in content):
        raise InputError(
            f"size is {short(content)}; it must be the height and width of the image in pixels, 1 "
            f"to {MAX_SIDE:,}"
        )
    size = (content[0], content[1])
    if len(_SIZES) > 1000:
        _SIZES.clear()
    return _SIZES.setdefault(size, size)


def _numbers(content: Any, count: int, what: str) -> list[float]:
    valid = isinstance(content, list | tuple | np.ndarray) and len(content) == count
    if not valid or not all(
        _is_number(one) and -MAX_COORDINATE <= one <= MAX_COORDINATE for one in content
    ):
        raise InputError(f"geometry is {short(content)}; {what}")
    return [one if type(one) in (int, float) else float(one) for one in content]


def _is_number(content: Any) -> bool:
    return type(content) in (int, float) or (
        isinstance(content, numbers.Real) and not isinstance(content, bool)
    )


def _geometry(kind: Kind, content: Any, size: tuple[int, int]) -> Any:
    """Return a geometry of plain lists.

    Raises:
        InputError: It is malformed, or outside the image.
    """
    if kind == "point":
        x, y = _numbers(content, 2, "a point must be [x, y]")
        _check_inside(x, y, x, y, size, "point")
        return [x, y]
    if kind == "box":
        x, y, w, h = _numbers(content, 4, "a box must be [x, y, width, height]")
        if min(w, h) <= 0:
            raise InputError(f"geometry is {short(content)}; width and height must be above 0")
        _check_inside(x, y, x + w, y + h, size, "box")
        return [x, y, w, h]
    if kind == "scribble":
        if not isinstance(content, dict) or content.keys() - {"width"} != {"points"}:
            raise InputError(
                f'geometry is {short(content)}; a scribble must be {{"points": [[x, y], ...], '
                '"width": w}'
            )
        points = _points(content["points"], 1)
        (line_width,) = _numbers([content.get("width", 1)], 1, "the width must be a number")
        if not 0 < line_width <= MAX_SIDE:
            raise InputError(f"the width of a scribble must be above 0, got {line_width:g}")
        _check_points(points, size, "scribble")
        return {"points": points.tolist(), "width": line_width}
    if kind == "polygon":
        if not isinstance(content, list | tuple) or not content:
            raise InputError(
                f"geometry is {short(content)}; a polygon must be rings [[[x, y], ...], ...]"
            )
        rings = [_points(ring, 3) for ring in content]
        _check_points(np.concatenate(rings), size, "polygon")
        return [ring.tolist() for ring in rings]
    if kind == "mask":
        return _mask(content, size)
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"geometry is {short(content)}; a label map must have a mask for each class name"
        )
    return {check_class_name(name): _mask(mask, size) for name, mask in content.items()}


def _points(content: Any, minimum: int) -> Float[np.ndarray, "n 2"]:
    if isinstance(content, np.ndarray):
        content = content.tolist()
    pairs = isinstance(content, list | tuple) and all(
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and _is_number(pair[0])
        and _is_number(pair[1])
        for pair in content
    )
    if not pairs:
        raise InputError(f"geometry is {short(content)}; points must be pairs of numbers [x, y]")
    return parse_points(content, "geometry", minimum)


def _check_points(points: Float[np.ndarray, "n 2"], size: tuple[int, int], what: str) -> None:
    (left, top), (right, bottom) = points.min(0), points.max(0)
    _check_inside(left, top, right, bottom, size, what)


def _check_inside(
    left: float, top: float, right: float, bottom: float, size: tuple[int, int], what: str
) -> None:
    height, width = size
    if left > width or top > height or right < 0 or bottom < 0:
        raise InputError(
            f"a {what} at x {left:g}, y {top:g} is outside the image of {width} x {height} pixels; "
            "correct or remove it"
        )


def _mask(content: Any, size: tuple[int, int]) -> dict[str, Any]:
    if not isinstance(content, dict) or content.keys() != {"size", "counts"}:
        raise InputError(
            f'geometry is {short(content)}; a mask must be {{"size": [height, width], "counts": '
            "run lengths of COCO}"
        )
    if [*content["size"]] != [*size] if isinstance(content["size"], list | tuple) else True:
        raise InputError(
            f"a mask has the size {short(content['size'])}, but its image {[*size]}; export it "
            "again from the image of this size"
        )
    if not len(decode_coco(content["counts"], size[0] * size[1], "geometry")):
        raise InputError("a mask covers no pixel; remove it")
    return {"size": [*size], "counts": content["counts"]}


def mask_geometry(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """Return the geometry of a mask of a whole image, for the kind ``mask``.

    Examples:
        >>> mask_geometry(np.array([[False, True], [False, True]]))
        {'size': [2, 2], 'counts': '22'}
    """
    (counts,) = encode_coco(Regions(mask.astype(np.uint8), np.zeros(1, np.int64)))
    return {"size": [*mask.shape], "counts": counts}


def annotation_region(annotation: Annotation) -> tuple[int, int, Bool[np.ndarray, "bh bw"]]:
    """Return left, top and the mask of the pixels of an annotation in its bounding box.

    A point covers one pixel, a scribble at least the pixels that its line crosses, a polygon the
    pixels whose centers it contains, at least one. A label map covers its labeled pixels.

    Examples:
        >>> box = Annotation("a", None, "box", "rust", [1, 0, 2, 1], (4, 4))
        >>> annotation_region(box)
        (1, 0, array([[ True,  True]]))
    """
    return _region(annotation.kind, annotation.geometry, annotation.size)


def _region(
    kind: str, geometry: Any, size: tuple[int, int]
) -> tuple[int, int, Bool[np.ndarray, "bh bw"]]:
    height, width = size
    if kind == "point":
        x, y = geometry
        return _pixel(x, width), _pixel(y, height), np.ones((1, 1), bool)
    if kind in ("mask", "label_map"):
        masks = [geometry] if kind == "mask" else list(geometry.values())
        return _decoded([mask["counts"] for mask in masks], size)
    if kind == "box":
        x, y, w, h = geometry
        left, top = _pixel(round(x), width), _pixel(round(y), height)
        right = min(max(round(x + w), left + 1), width)
        bottom = min(max(round(y + h), top + 1), height)
        return left, top, np.ones((bottom - top, right - left), bool)
    rings = [np.array(geometry["points"])] if kind == "scribble" else list(map(np.array, geometry))
    margin = geometry["width"] / 2 + 1 if kind == "scribble" else 0
    points = np.concatenate(rings)
    low = [_pixel(points[:, i].min() - margin, size[1 - i]) for i in (0, 1)]
    high = [_pixel(points[:, i].max() + margin, size[1 - i]) + 1 for i in (0, 1)]
    shape = high[1] - low[1], high[0] - low[0]
    if kind == "scribble":
        mask = stroke(rings[0] - low, geometry["width"], *shape)
    else:
        mask = fill([ring - low for ring in rings], *shape)
    if not mask.any():  # thinner than a pixel, or beside the image
        x, y = points.mean(0)
        mask[_pixel(y - low[1], shape[0]), _pixel(x - low[0], shape[1])] = True
    (rows, columns) = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    tight = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return low[0] + int(columns[0]), low[1] + int(rows[0]), tight


def _pixel(position: float, count: int) -> int:
    return min(max(math.floor(position), 0), count - 1)


def _decoded(
    counts: Sequence[Any], size: tuple[int, int]
) -> tuple[int, int, Bool[np.ndarray, "bh bw"]]:
    """Return left, top and the union of masks in their bounding box."""
    height, width = size
    pixels = np.concatenate([decode_coco(one, height * width, "geometry") for one in counts])
    columns, rows = np.divmod(pixels, height)
    left, top = int(columns.min()), int(rows.min())
    mask = np.zeros((int(rows.max()) - top + 1, int(columns.max()) - left + 1), bool)
    mask[rows - top, columns - left] = True
    return left, top, mask


def annotation_point(annotation: Annotation) -> tuple[float, float]:
    """Return a point (x, y) of an annotation: the center of its pixel that is nearest to its mean.

    Examples:
        >>> annotation_point(Annotation("a", None, "box", "rust", [1, 0, 3, 1], (4, 4)))
        (2.5, 0.5)
    """
    left, top, region = annotation_region(annotation)
    rows, columns = region.nonzero()
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return float(left + columns[nearest] + 0.5), float(top + rows[nearest] + 0.5)


def annotation_mask(annotation: Annotation, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Return the pixels that an annotation covers, see :func:`annotation_region`.

    Args:
        annotation: the annotation.
        height: height of the mask in pixels. If the annotation refers to another size, its
            geometry is scaled; its region keeps at least one pixel.
        width: width of the mask in pixels.
    """
    mask = np.zeros((height, width), bool)
    left, top, region = annotation_region(scaled(annotation, height, width))
    mask[top : top + region.shape[0], left : left + region.shape[1]] = region
    return mask


def scaled(annotation: Annotation, height: int, width: int) -> Annotation:
    """Return an annotation for its image at another size; masks are scaled by nearest neighbor."""
    if annotation.size == (height, width):
        return annotation
    scale = np.array([width / annotation.size[1], height / annotation.size[0]])
    old, kind = annotation.geometry, annotation.kind
    new: Any
    if kind in ("point", "box"):
        new = (np.array(old) * np.tile(scale, len(old) // 2)).tolist()
    elif kind == "scribble":
        line_width = float(old["width"] * np.sqrt(scale.prod()))
        new = {"points": (np.array(old["points"]) * scale).tolist(), "width": line_width}
    elif kind == "polygon":
        new = [(np.array(ring) * scale).tolist() for ring in old]
    elif kind == "mask":
        new = _scaled_mask(old, annotation.size, (height, width))
    else:
        new = {
            name: _scaled_mask(mask, annotation.size, (height, width)) for name, mask in old.items()
        }
    return replace(annotation, geometry=new, size=(height, width))


def _scaled_mask(
    geometry: dict[str, Any], size: tuple[int, int], wanted: tuple[int, int]
) -> dict[str, Any]:
    left, top, region = _region("mask", geometry, size)
    rows, columns = (
        np.floor((np.arange(new) + 0.5) * old / new).astype(int) - first
        for new, old, first in zip(wanted, size, (top, left), strict=True)
    )
    mask = np.zeros(wanted, bool)
    r, c = ((one >= 0) & (one < n) for one, n in zip((rows, columns), region.shape, strict=True))
    mask[np.ix_(r, c)] = region[np.ix_(rows[r], columns[c])]
    if not mask.any():  # all between the sampled pixels: keep its center
        y, x = (
            (np.argwhere(region).mean(0) + np.array([top + 0.5, left + 0.5]))
            * wanted
            / np.array(size)
        )
        mask[_pixel(y, wanted[0]), _pixel(x, wanted[1])] = True
    return mask_geometry(mask)


def expand_label_maps(annotations: Iterable[Annotation]) -> Iterator[Annotation]:
    """Yield annotations with a ``mask`` per class in place of each label map."""
    for one in annotations:
        if one.kind != "label_map":
            yield one
            continue
        for name, mask in one.geometry.items():
            yield replace(one, kind="mask", name=name, geometry=mask)


def class_names(annotations: Iterable[Annotation]) -> list[str]:
    """Return the sorted names of the classes that annotations show."""
    found: set[str] = set()
    for one in annotations:
        if one.kind == "label_map":
            found.update(one.geometry)
        elif one.name is not None and not one.negative:
            found.add(one.name)
    return sorted(found)


def paint_annotations(
    annotations: Iterable[Annotation], names: Sequence[str], height: int, width: int
) -> Integer[np.ndarray, "h w"]:
    """Return the classes that annotations of one image show; later annotations lie on top.

    A later "not this class" makes pixels of this class unlabeled.

    Args:
        annotations: annotations of one image.
        names: class names; classes that are not in it are left out.
        height: height of the image in pixels.
        width: width of the image in pixels.

    Returns:
        Index into ``names`` of each pixel, -1 where no class is known.
    """
    index = {name: k for k, name in enumerate(names)}
    labels = np.full((height, width), UNLABELED, np.int32)
    for one in expand_label_maps(annotations):
        if (k := index.get(one.name or "")) is None:
            continue
        left, top, region = annotation_region(scaled(one, height, width))
        box = labels[top : top + region.shape[0], left : left + region.shape[1]]
        if one.negative:
            box[region & (box == k)] = UNLABELED
        else:
            box[region] = k
    return labels


def resolve_annotations(
    annotations: Iterable[Annotation],
) -> tuple[list[Annotation], list[Conflict]]:
    """Drop duplicates and resolve contradictions; later annotations win.

    Two annotations contradict each other if they share pixels and show different classes, or if
    one shows a class that the other excludes. The earlier one loses these pixels: it becomes a mask
    of the others, or is dropped if none is left.

    Args:
        annotations: annotations in the order in which they were made.

    Returns:
        Annotations without contradictions, with a mask per class in place of contradicted label
        maps; and the conflicts.

    Raises:
        InputError: Annotations of one image refer to different sizes.
    """
    by_image: dict[str, list[tuple[int, Annotation]]] = defaultdict(list)
    order: dict[Annotation | tuple[Any, ...], int] = {}
    listed = [*annotations]
    for number, one in enumerate(listed):
        # The last one of equal annotations counts: it may follow a contradiction.
        order[_identity(one)] = number
    for number in order.values():
        by_image[listed[number].image].append((number, listed[number]))
    kept: list[tuple[int, Annotation]] = []
    conflicts: list[Conflict] = []
    for image, group in by_image.items():
        if len(sizes := {one.size for _, one in group}) > 1:
            said = " and ".join(f"{width} x {height}" for height, width in sorted(sizes))
            raise InputError(
                f"annotations of the image {image!r} refer to sizes of {said}; annotate one "
                "version of the image"
            )
        kept += _resolve_image(sorted(group, key=lambda pair: pair[0]), conflicts)
    return [one for _, one in sorted(kept, key=lambda pair: pair[0])], conflicts


def _identity(one: Annotation) -> tuple[Any, ...]:
    """Return what equal annotations have in common."""
    geometry = one.geometry
    text = tuple(geometry) if one.kind in ("point", "box") else json.dumps(geometry, sort_keys=True)
    return one.image, one.kind, one.name, text, one.negative, one.answer


def _resolve_image(
    group: Sequence[tuple[int, Annotation]], conflicts: list[Conflict]
) -> list[tuple[int, Annotation]]:
    """Return the annotations of one image without contradictions; append to the conflicts."""
    said = [(n, one) for n, one in group if one.answer == "class"]
    names = {name: k for k, name in enumerate(_all_names(one for _, one in said))}
    if len(names) < 2 and not any(one.negative for _, one in said):
        return [*group]  # nothing can contradict
    parts = [(n, part) for n, one in said for part in expand_label_maps([one])]
    height, width = said[0][1].size
    top = np.full((height, width), UNLABELED, np.int32)  # class that is shown last
    by = np.full((height, width), UNLABELED, np.int32)  # part that says so
    excluded: dict[int, Any] = {}  # class to the part that excludes it at each pixel
    lost: dict[int, Bool[np.ndarray, "bh bw"]] = {}
    for i, (_, part) in enumerate(parts):
        k = names[cast(str, part.name)]
        left, upper, region = annotation_region(part)
        box = slice(upper, upper + region.shape[0]), slice(left, left + region.shape[1])
        if part.negative:
            hit = region & (top[box] == k)
            _note(conflicts, parts, by[box][hit], i)
            top[box][hit] = UNLABELED
            if k not in excluded:
                excluded[k] = np.full((height, width), UNLABELED, np.int32)
            excluded[k][box][region] = i
            continue
        hit = region & (top[box] != UNLABELED) & (top[box] != k)
        _note(conflicts, parts, by[box][hit], i)
        if k in excluded:
            hit = region & (excluded[k][box] != UNLABELED)
            _note(conflicts, parts, excluded[k][box][hit], i)
            excluded[k][box][hit] = UNLABELED
        top[box][region] = k
        by[box][region] = i
    for i, (_, part) in enumerate(parts):
        k = names[cast(str, part.name)]
        left, upper, region = annotation_region(part)
        box = slice(upper, upper + region.shape[0]), slice(left, left + region.shape[1])
        stays = excluded[k][box] != UNLABELED if part.negative else top[box] == k
        if (region & ~stays).any():
            lost[i] = region & stays
    return _without(group, parts, lost)


def _all_names(annotations: Iterable[Annotation]) -> list[str]:
    found: dict[str, None] = {}
    for one in annotations:
        found |= dict.fromkeys(one.geometry if one.kind == "label_map" else [cast(str, one.name)])
    return list(found)


def _note(
    conflicts: list[Conflict],
    parts: Sequence[tuple[int, Annotation]],
    earlier: Integer[np.ndarray, " n"],
    later: int,
) -> None:
    for i, pixels in zip(*np.unique(earlier, return_counts=True), strict=True):
        conflicts.append(Conflict(parts[i][1], parts[later][1], int(pixels)))


def _without(
    group: Sequence[tuple[int, Annotation]],
    parts: Sequence[tuple[int, Annotation]],
    lost: dict[int, Bool[np.ndarray, "bh bw"]],
) -> list[tuple[int, Annotation]]:
    """Return annotations without the pixels that they lost."""
    changed = {parts[i][0] for i in lost}
    kept = [(n, one) for n, one in group if n not in changed]
    for i, (n, part) in enumerate(parts):
        if n not in changed:
            continue
        if i not in lost:
            kept.append((n, part))
        elif lost[i].any():
            left, upper, _ = annotation_region(part)
            mask = np.zeros(part.size, bool)
            mask[upper : upper + lost[i].shape[0], left : left + lost[i].shape[1]] = lost[i]
            kept.append((n, replace(part, kind="mask", geometry=mask_geometry(mask))))
    return kept


def merge_annotations(*paths: str | Path) -> tuple[list[Annotation], list[Conflict]]:
    """Read annotation files of several people as one; see :func:`resolve_annotations`.

    Annotations are ordered by their times. The order in each file is kept; an annotation without
    time counts as the one before it.

    Args:
        *paths: files ``annotations.jsonl``.

    Returns:
        Annotations without duplicates and contradictions, and the conflicts.

    Raises:
        NotFoundError: A file does not exist.
        InputError: A file is malformed, or annotations of one image refer to different sizes.
    """

    def timed(number: int, path: str | Path) -> Iterator[tuple[str, int, int, Annotation]]:
        latest = ""
        for line, one in enumerate(read_annotations(path)):
            # A fraction of a second sorts behind none only without the zone.
            latest = max(latest, one.time.removesuffix("Z").removesuffix("+00:00"))
            yield latest, number, line, one

    merged = heapq.merge(*(timed(number, path) for number, path in enumerate(paths)))
    return resolve_annotations(one for *_, one in merged)


def read_annotations(path: str | Path) -> list[Annotation]:
    """Read a file ``annotations.jsonl``.

    An incomplete last line, which a killed process left, is skipped with a message: it was not
    confirmed.

    Args:
        path: the file, or a folder with this file.

    Raises:
        NotFoundError: The file does not exist.
        InputError: A line is malformed; the message names it.
    """
    return list(iter_annotations(path))


def iter_annotations(
    path: str | Path, log: Callable[[str], None] = logger.warning
) -> Iterator[Annotation]:
    """Yield the annotations of a file one at a time; see :func:`read_annotations`.

    Args:
        path: the file, or a folder with this file.
        log: log callback for an incomplete last line.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist; give a file {FILE}")
    shared: dict[str, str] = {}
    with path.open("rb") as file:
        with locked(path):  # not in the middle of a line that is being written
            end = file.seek(0, os.SEEK_END)
        file.seek(0)
        number = position = 0
        while position < end:
            line = file.readline(MAX_LINE + 1)
            number, position = number + 1, position + len(line)
            where = f"{path}, line {number}"
            if len(line) > MAX_LINE:
                raise InputError(f"{where} has more than {MAX_LINE:,} bytes; is it the right file?")
            if not line.endswith(b"\n") and not _is_complete(line):
                log(f"{where} is incomplete and was skipped: the process that wrote it was killed")
                return
            if line.strip():
                yield _parse(line, where, shared)


def _is_complete(line: bytes) -> bool:
    """Return whether a last line without line break is JSON, as an editor may leave it."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


_FIELDS = frozenset(Annotation.__dataclass_fields__)
_REQUIRED = frozenset(("image", "kind", "geometry", "size"))


def _parse(line: bytes, where: str, shared: dict[str, str]) -> Annotation:
    """Return the annotation of a line; equal texts of a file share memory."""
    hint = f"correct or remove this line of {FILE}"
    try:
        content = from_json(line, allow_inf_nan=False)
    except ValueError:
        content = None
    if not isinstance(content, dict):  # parse_json takes longer, and says what is wrong
        content = parse_json(line, dict[str, Any], where, hint)
    if unknown := content.keys() - _FIELDS:
        raise InputError(f"{where}: field {min(unknown)!r} is unknown; {hint}")
    if missing := _REQUIRED - content.keys():
        raise InputError(f"{where}: field {min(missing)!r} is missing; {hint}")
    for key in ("image", "digest", "kind", "name", "source"):
        if isinstance(text := content.get(key), str):
            content[key] = shared.setdefault(text, text)
    if len(shared) > 1 << 20:
        shared.clear()
    try:
        return Annotation(**{"digest": None, "name": None, **content})
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def append_annotations(path: str | Path, annotations: Iterable[Annotation]) -> None:
    """Append annotations to a file; when this function returns, they are on the disk.

    Several processes may append to one file. An incomplete last line, which a killed process left,
    is moved to ``<path>.incomplete`` first.

    Args:
        path: file ``annotations.jsonl``; it and its folder are created if they do not exist.
        annotations: annotations to append, in their order.

    Raises:
        OutputError: ``path`` is not a regular file, or has something other than annotations.
        OSError: The file cannot be written; nothing is appended then.
    """
    path = Path(path)
    data = "".join(f"{one.to_json()}\n" for one in annotations).encode()
    if not data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path), named(path):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise OutputError(f"{path} is not a regular file; choose another file")
        new = not path.exists()
        with path.open("a+b", buffering=0) as file:
            _check_content(file, path)
            end = _repair(file, path)
            try:
                written = 0
                while written < len(data):
                    count = file.write(data[written:])
                    if not count:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    written += count
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)
                raise
        if new:
            _sync_folder(path.parent)


def _check_content(file: IO[bytes], path: Path) -> None:
    """Refuse a file whose first line is not an annotation."""
    file.seek(0)
    head = file.read(1)
    if head and head != b"{":
        raise OutputError(f"{path} does not have annotations; choose another file")


def _repair(file: IO[bytes], path: Path) -> int:
    """Make the file end with a complete line; return its size."""
    end = file.seek(0, os.SEEK_END)
    tail = b""
    start = end
    while start and not tail.startswith(b"\n"):  # find the last line break
        step = min(1 << 16, start)
        file.seek(start - step)
        block = file.read(step)
        cut = block.rfind(b"\n")
        tail = (block if cut < 0 else block[cut:]) + tail
        start -= step if cut < 0 else step - cut
    tail = tail.removeprefix(b"\n")
    if not tail:
        return end
    if _is_complete(tail):
        file.write(b"\n")
        return end + 1
    rest = path.with_name(path.name + INCOMPLETE)
    with rest.open("ab") as copy:
        copy.write(tail + b"\n")
        copy.flush()
        os.fsync(copy.fileno())
    file.truncate(end - len(tail))
    logger.warning(
        "%s: the last line is incomplete, because the process that wrote it was killed; it was "
        "moved to %s", path, rest.name,
    )  # fmt: skip
    return end - len(tail)


def _sync_folder(folder: Path) -> None:
    """Write the entry of a new file to the disk; not every system can open folders."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
