"""Measurements of label maps: areas and regions per image and class, and single objects."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval
from jaxtyping import Bool, Integer
from scipy import ndimage

from primaps.exchange.classes import Classes, read_classes
from primaps.exchange.transfer import read_map, recorded_classes
from primaps.geometry.regions import NO_LABEL, Regions, connected_regions
from primaps.geometry.vectors import read_georeference
from primaps.results import GENERATOR, output_file
from primaps.scenes.writer import read_class_names
from primaps.utils.errors import InputError, MissingPackageError, NotFoundError
from primaps.utils.files import user_path
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validated

Row = dict[str, str | int | float | None]
"""One row of a table: column name to value; None is an empty cell."""
TABLES = (".csv", ".json", ".parquet")
UNITS = ("um", "mm", "cm", "m")
BLUR = 3.0
"""Pixels that are added to distances before necks are compared, because outlines are uneven by
about this much: without it, thin regions would fall apart."""


@dataclass(frozen=True)
class Resolution:
    """Side of a pixel.

    Attributes:
        side: length, above 0.
        unit: ``um``, ``mm``, ``cm`` or ``m``.
    """

    side: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Resolution:
        """Parse a length with its unit.

        Raises:
            InputError: The text is not a positive number followed by a unit.

        Examples:
            >>> Resolution.parse("0.25 um")
            Resolution(side=0.25, unit='um')
        """
        found = re.fullmatch(r"\s*([0-9.eE+-]+)\s*([a-zµμ]+)\s*", text)
        unit = found[2].replace("µ", "u").replace("μ", "u") if found else ""
        try:
            side = float(found[1]) if found else math.nan
        except ValueError:
            side = math.nan
        if unit not in UNITS or not 0 < side < math.inf:
            raise InputError(
                f"resolution {text!r} must be the side of a pixel with its unit "
                f"({', '.join(UNITS)}), such as 0.25um or 10cm"
            )
        return cls(side, unit)


@dataclass(frozen=True)
class _Map:
    """A label map with the name of its image, and the side of its pixels if that is known."""

    name: str
    labels: Integer[np.ndarray, "h w"]
    resolution: Resolution | None


@validated
def measure_classes(
    result: str | Path,
    *,
    classes: Classes | str | Path | None = None,
    resolution: str | None = None,
    progress: ProgressCallback = silent,
) -> list[Row]:
    """Measure each class in each label map: ``primaps measure``.

    Args:
        result: Label map, or folder that ``predict`` or :func:`primaps.exchange.import_labels`
            wrote.
        classes: Classes, or a ``classes.json`` or model with their names; None for those that
            ``result`` has.
        resolution: Side of a pixel with its unit, such as ``0.25um``. None takes that of
            georeferenced label maps, in meters.
        progress: Progress callback.

    Returns:
        One row per image and class, also for classes without a pixel: ``image``, ``image_pixels``,
        ``value``, ``class``, ``pixels``, ``share`` (of all pixels of the image, 0 to 1),
        ``regions`` (number of connected regions) and, where the resolution is known, ``area_m2``
        (or another unit).

    Raises:
        NotFoundError: There are no label maps.
        InputError: A label map has a value without a class, or ``resolution`` is malformed.
        ImageError: A label map is damaged.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "classes.json").write_text('{"classes": ["soil", "plant"]}')
        >>> Image.fromarray(np.eye(4, dtype=np.uint8)).save(folder / "a.png")
        >>> plant = measure_classes(folder, resolution="2mm")[1]
        >>> plant["class"], plant["pixels"], plant["share"], plant["regions"], plant["area_mm2"]
        ('plant', 4, 0.25, 4, 16.0)
    """
    names, maps = _read(result, classes, resolution, progress)
    rows = []
    for one in maps:
        pixels = np.bincount(one.labels.ravel(), minlength=NO_LABEL + 1)
        regions = np.bincount(connected_regions(one.labels).classes, minlength=len(names))
        for k, name in enumerate(names.names):
            row: Row = {
                "image": one.name, "image_pixels": one.labels.size, "value": k, "class": name,
                "pixels": int(pixels[k]), "share": float(pixels[k] / one.labels.size),
                "regions": int(regions[k]),
            }  # fmt: skip
            rows.append(row | _area(int(pixels[k]), one.resolution))
    return _with_same_columns(rows)


@validated
def measure_objects(
    result: str | Path,
    *,
    only: Sequence[str] = (),
    min_area: Annotated[int, Interval(ge=0, le=10**9)] = 0,
    neck: Annotated[float, Interval(ge=0, lt=1)] = 0.75,
    classes: Classes | str | Path | None = None,
    resolution: str | None = None,
    progress: ProgressCallback = silent,
) -> list[Row]:
    """List the objects in each label map: ``primaps measure --objects``.

    An object is a connected region of a class. Touching objects are split at necks, see
    :func:`split_touching`.

    Args:
        result, classes, resolution, progress: As in :func:`measure_classes`.
        only: Names of the classes whose objects are listed; empty for all.
        min_area: Minimum number of pixels of an object; smaller ones are left out.
        neck: Touching objects are split where the width between them is below this fraction of
            the width of the smaller one; 0 does not split.

    Returns:
        One row per object: ``image``, ``object`` (from 1 in each image), ``value``, ``class``,
        ``x`` and ``y`` (centroid), ``left``, ``top``, ``width``, ``height`` (bounding box),
        ``pixels`` and, where the resolution is known, ``area_m2`` (or another unit). Positions are
        in pixels; (0, 0) is the top left corner of the image.

    Raises:
        NotFoundError, ImageError: As :func:`measure_classes`.
        InputError: As :func:`measure_classes`, or ``only`` has the name of no class.
        MissingPackageError: scikit-image is not installed and ``neck`` is above 0.
    """
    names, maps = _read(result, classes, resolution, progress)
    if unknown := [name for name in only if name not in names.names]:
        raise InputError(
            f"only: {unknown[0]!r} is not a class; the classes are {', '.join(names.names)}"
        )
    chosen = [k for k, name in enumerate(names.names) if not only or name in only]
    rows = []
    for one in maps:
        labels = np.where(np.isin(one.labels, chosen), one.labels, NO_LABEL)
        objects = find_objects(labels, min_area, neck)
        centers = ndimage.center_of_mass(
            objects.numbers > 0, objects.numbers, range(1, len(objects.classes) + 1)
        )
        found = zip(objects.classes, centers, objects.boxes(), objects.areas(), strict=True)
        for number, (k, (y, x), (left, top, width, height), area) in enumerate(found, 1):
            row: Row = {
                "image": one.name, "object": number, "value": int(k), "class": names.names[k],
                "x": round(float(x) + 0.5, 2), "y": round(float(y) + 0.5, 2), "left": int(left),
                "top": int(top), "width": int(width), "height": int(height), "pixels": int(area),
            }  # fmt: skip
            rows.append(row | _area(int(area), one.resolution))
    return _with_same_columns(rows)


def find_objects(
    labels: Integer[np.ndarray, "h w"], min_area: int = 0, neck: float = 0.75
) -> Regions:
    """Return the connected regions of a label map, split at necks.

    Args:
        labels: Class of every pixel; 255 is no class.
        min_area: Minimum number of pixels of an object.
        neck: See :func:`split_touching`; 0 does not split.
    """
    regions = connected_regions(labels)
    numbers = np.zeros(labels.shape, np.int32)
    values: list[int] = []
    for i, (rows, columns) in enumerate(regions.slices()):
        mask = regions.numbers[rows, columns] == i + 1
        parts = split_touching(mask, neck) if neck else mask.astype(np.int32)
        areas = np.bincount(parts.ravel())[1:]
        table = np.zeros(len(areas) + 1, np.int32)
        kept = np.flatnonzero(areas >= max(1, min_area))
        table[kept + 1] = len(values) + 1 + np.arange(len(kept))
        numbers[rows, columns] += table[parts]
        values += [int(regions.classes[i])] * len(kept)
    return Regions(numbers, np.array(values, np.int64))


def split_touching(mask: Bool[np.ndarray, "h w"], neck: float) -> Integer[np.ndarray, "h w"]:
    """Split a region where it is narrow: watershed of the distance to its outline.

    Two maxima of the distance d start two objects if on every path between them d falls below
    ``neck`` times the smaller maximum. These are the h-maxima of log(d + 3) with h = -log(neck).

    Args:
        mask: A connected region.
        neck: Fraction in (0, 1).

    Returns:
        Objects 1..N; 0 outside of the region.

    Raises:
        MissingPackageError: scikit-image is not installed.
    """
    try:
        from skimage.morphology import local_maxima, reconstruction
        from skimage.segmentation import watershed
    except ImportError:
        raise MissingPackageError(
            "splitting objects that touch needs scikit-image: pip install 'primaps[measure]'; or "
            "do not split with neck 0"
        ) from None
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))
    height = np.log(distance + BLUR)
    # skimage.morphology.h_maxima would keep both of two equal maxima, however shallow the neck.
    flooded = reconstruction(height + math.log(neck), height)
    seeds, count = ndimage.label(local_maxima(flooded), np.ones((3, 3)))
    if count < 2:
        return mask.astype(np.int32)
    parts = watershed(-distance, seeds, mask=distance > 0)
    return parts[1:-1, 1:-1].astype(np.int32)


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Sum the rows of :func:`measure_classes` over the images.

    Returns:
        One row per class: ``value``, ``class``, ``images`` (with at least one pixel of it),
        ``pixels``, ``share`` (of all pixels of all images), ``regions``, and the area if it is
        known for all images.
    """
    total = sum({row["image"]: int(row["image_pixels"] or 0) for row in rows}.values())
    found: list[Row] = []
    for value in dict.fromkeys(row["value"] for row in rows):
        mine = [row for row in rows if row["value"] == value]
        pixels = _total(mine, "pixels")
        one: Row = {
            "value": value, "class": mine[0]["class"],
            "images": sum(bool(row["pixels"]) for row in mine), "pixels": pixels,
            "share": pixels / total if pixels is not None else None,
            "regions": _total(mine, "regions"),
        }  # fmt: skip
        found.append(one | {name: _total(mine, name) for name in mine[0] if "area_" in name})
    return found


def _total(rows: Sequence[Row], column: str) -> int | float | None:
    """Return the sum of a column of numbers; None if one is unknown."""
    values: list[Any] = [row[column] for row in rows]
    return None if None in values else sum(values)


def write_table(rows: Sequence[Row], path: str | Path) -> None:
    """Write rows as CSV, JSON or Parquet, by the suffix of the file.

    Raises:
        InputError: The suffix is another one.
        MissingPackageError: Parquet needs pyarrow, which is not installed.
        OutputError: The file exists with another content and was not written by this package.
    """
    path = user_path(path)
    check_table(path)
    suffix = path.suffix.lower()
    if suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue().encode("utf-8-sig")  # without the mark, Excel reads Latin-1
    elif suffix == ".json":
        record = {"generator": GENERATOR, "rows": list(rows)}
        content = (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode()
    else:
        content = _parquet(rows)
    with output_file(path) as temporary:
        temporary.write_bytes(content)


def check_table(path: Path) -> None:
    """Check, before any work, the suffix of a table.

    Raises:
        InputError: The suffix is not one of :data:`TABLES`.
    """
    if path.suffix.lower() not in TABLES:
        raise InputError(f"{path}: the suffix of a table must be one of {', '.join(TABLES)}")


def _parquet(rows: Sequence[Row]) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingPackageError(
            "Parquet needs pyarrow: pip install pyarrow; or write .csv or .json"
        ) from None
    content = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), content)
    return content.getvalue()


def _read(
    result: str | Path,
    classes: Classes | str | Path | None,
    resolution: str | None,
    progress: ProgressCallback,
) -> tuple[Classes, Iterator[_Map]]:
    """Return the classes, and an iterator over the label maps."""
    result = user_path(result)
    side = None if resolution is None else Resolution.parse(resolution)
    given = read_classes(classes) if isinstance(classes, str | Path) else classes
    folder = result if result.is_dir() else result.parent
    has_proposals, recorded = recorded_classes(folder)
    if has_proposals:
        raise InputError(f"{result} has mask proposals, which have no class; predict with a model")
    if given is None and recorded is None and result.suffix.lower() == ".tif":
        recorded = _scene_classes(result)
    names = given or recorded
    if names is None:
        raise InputError(f"{result} has no class names; give a classes.json or the model")
    files = _map_files(result)

    def maps() -> Iterator[_Map]:
        for number, file in enumerate(files, 1):
            labels = names.normalized(read_map(file), file)
            name = file.relative_to(folder).with_suffix("").as_posix()
            yield _Map(name, labels, side or _map_resolution(file, labels.shape))
            progress("measure", number, len(files), {})

    return names, maps()


def _scene_classes(path: Path) -> Classes | None:
    names = read_class_names(path)
    return Classes(tuple(names)) if names else None


def _map_files(result: Path) -> list[Path]:
    """Return the label maps of a folder; overlays are JPEG files."""
    if result.is_file():
        return [result]
    files = sorted(
        path
        for path in result.rglob("*")
        if path.suffix.lower() in (".png", ".tif") and not path.name.startswith(".")
    )
    if not files:
        raise NotFoundError(f"{result} has no label maps; give the folder that predict wrote")
    return files


def _map_resolution(file: Path, shape: tuple[int, ...]) -> Resolution | None:
    """Return the side of a pixel of a georeferenced label map in meters."""
    if file.suffix.lower() != ".tif":
        return None
    georeference = read_georeference(file)
    side = georeference and georeference.meters_per_pixel(shape[0], shape[1])
    return Resolution(side, "m") if side else None


def _area(pixels: int, resolution: Resolution | None) -> Row:
    if resolution is None:
        return {}
    return {f"area_{resolution.unit}2": pixels * resolution.side**2}


def _with_same_columns(rows: list[Row]) -> list[Row]:
    """Fill in the columns that only some images have."""
    columns = {name: None for row in rows for name in row}
    return [columns | row for row in rows]
