"""Write the regions of a class map as polygons to a GeoPackage (``--polygons``)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from primaps.classes.legend import HIDDEN
from primaps.geometry import vectors
from primaps.results import OutputError, resumable_file
from primaps.scenes.readers import CACHE_BYTES
from primaps.utils.files import atomic_path
from primaps.utils.progress import ProgressCallback
from primaps.version import VERSION

LAYER, PREFIX = "regions", "primaps "
"""Name of the layer, and text before the digest in its description."""
COLUMNS = {"class": np.int32, "name": object, "color": object, "area": float, "pixels": np.int64}


def write_polygons(
    labels: Path,
    pixels: int,
    out: Path,
    names: Sequence[str],
    colors: UInt8[np.ndarray, "k 3"],
    progress: ProgressCallback,
) -> bool:
    """Write the connected regions of a class map: class, name, color, area and number of pixels.

    The area is in square units of the map. A region is one polygon, whatever its size.

    Args:
        labels: result of :func:`primaps.scenes.writer.write_labels`.
        pixels: number of pixels of the class map, for the progress.
        out: GeoPackage to write.
        names: names of the classes.
        colors: colors of the classes.
        progress: progress callback.

    Returns:
        Whether the file was written: False if an earlier call had written it.

    Raises:
        OutputError: ``out`` is not a ``.gpkg``, or exists and is not the result of this call.
        MissingPackageError: rasterio, shapely or pyogrio is not installed.
    """
    check_geopackage(out)
    options = {"primaps": VERSION, "names": list(names), "colors": colors.tolist()}
    with resumable_file(out, labels, options, _read_digest) as (work, digest):
        if work is None:
            return False
        with vectors.geo_module("rasterio").Env(GDAL_CACHEMAX=CACHE_BYTES):
            place = vectors.read_georeference(labels)
            rows = _rows(labels, pixels, place, names, colors, progress)
            with atomic_path(out) as temporary:
                temporary.unlink()  # GDAL creates the file itself
                vectors.write_polygons(
                    temporary, LAYER, COLUMNS, rows, place and place.crs, PREFIX + digest
                )
    return True


def _rows(
    labels: Path,
    total: int,
    place: vectors.Georeference | None,
    names: Sequence[str],
    colors: UInt8[np.ndarray, "k 3"],
    progress: ProgressCallback,
) -> Iterator[tuple[Any, ...]]:
    """Yield the polygon and the values of :data:`COLUMNS` of every region."""
    area = place.pixel_area if place else 1.0
    done = 0
    for region in vectors.label_polygons(labels, HIDDEN, place):
        k, pixels = region.label, region.pixels
        yield region.polygon, k, names[k], "#" + bytes(colors[k]).hex(), pixels * area, pixels
        done += pixels
        progress("polygons", done, total, {})
    progress("polygons", total, total, {})


def check_geopackage(out: Path) -> None:
    """Check that polygons can be written to a file, before a prediction that may take hours.

    Raises:
        OutputError: the file is not a ``.gpkg``, or exists and was not written by primaps.
        MissingPackageError: rasterio, shapely or pyogrio is not installed.
    """
    for package in ("rasterio", "shapely", "pyogrio"):
        vectors.geo_module(package)
    if out.suffix.lower() != ".gpkg":
        raise OutputError(
            f"{out}: polygons are written as a GeoPackage; choose {out.with_suffix('.gpkg')}"
        )
    if os.path.lexists(out) and _read_digest(out) is None:
        raise OutputError(
            f"{out} was not written by primaps; move it away, or choose another output path"
        )


def _read_digest(path: Path) -> str | None:
    """Return the digest in the description of the layer; None if primaps did not write it."""
    description = vectors.layer_description(path) or ""
    return description.removeprefix(PREFIX) if description.startswith(PREFIX) else None
