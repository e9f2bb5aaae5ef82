"""Write the regions of a class map as polygons to a GeoPackage (``--polygons``)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
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
    out: Path,
    names: Sequence[str],
    colors: UInt8[np.ndarray, "k 3"],
    size: tuple[int, int],
    progress: ProgressCallback,
) -> bool:
    """Write the connected regions of a class map: class, name, color, area and number of pixels.

    The area is in square units of the map. Each region is one
    polygon, even across tiles.

    Args:
        labels: result of :func:`primaps.scenes.writer.write_labels`.
        size: height and width of the class map.

    Returns:
        Whether the file was written: False if an earlier call had written it.

    Raises:
        OutputError: ``out`` is not a ``.gpkg``, or exists and is not the result of this call.
        MissingPackageError: rasterio, shapely or pyogrio is not installed.
    """
    check_geopackage(out)
    options = {"primaps": VERSION, "names": list(names), "colors": colors.tolist()}
    total = size[0] * size[1]

    def rows(place: vectors.Georeference | None) -> Iterator[tuple[Any, ...]]:
        unit, done = place.pixel_area if place else 1.0, 0
        for region in vectors.label_polygons(labels, HIDDEN, place):
            k, pixels = region.label, region.pixels
            area = region.polygon.area if place and place.gcps else pixels * unit
            yield region.polygon, k, names[k], "#" + bytes(colors[k]).hex(), area, pixels
            done += pixels
            progress("polygons", done, total, {})
        progress("polygons", total, total, {})

    with resumable_file(out, labels, options, _read_digest) as (work, digest):
        if work is None:
            return False
        with vectors.geo_module("rasterio").Env(GDAL_CACHEMAX=CACHE_BYTES):
            place = vectors.read_georeference(labels)
            crs, description = place.crs if place else None, PREFIX + digest
            with atomic_path(out) as temporary:
                temporary.unlink()  # GDAL creates the file itself
                vectors.write_polygons(temporary, LAYER, COLUMNS, rows(place), crs, description)
    return True


def check_geopackage(out: Path) -> None:
    """Check that polygons can be written to a file, before a prediction that may take hours."""
    for package in ("rasterio", "shapely", "pyogrio"):
        if find_spec(package) is None:  # an import would take memory that the prediction needs
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
