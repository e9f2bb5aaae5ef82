"""``--polygons``: the regions of a label map as polygons in a GeoPackage."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from primaps.classes.legend import HIDDEN
from primaps.exchange.geopackage import (
    add_layer,
    closed_rings,
    geopackage,
    grown,
    polygon,
    set_extent,
)
from primaps.results import OutputError, resumable_file
from primaps.scenes.outlines import outlines
from primaps.scenes.writer import written_labels
from primaps.utils.files import atomic_path
from primaps.utils.progress import ProgressCallback
from primaps.version import VERSION

LAYER = "regions"
COLUMNS = {"class": "INTEGER", "name": "TEXT", "color": "TEXT", "area": "REAL", "pixels": "INTEGER"}
OWN_CRS = 100_000
"""Number in the file of a CRS that has no EPSG code."""
PIXELS = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""Of scenes without a place: columns, and rows counted downwards from 0."""


def write_polygons(
    labels: Path,
    out: Path,
    names: Sequence[str],
    colors: UInt8[np.ndarray, "k 3"],
    progress: ProgressCallback,
) -> bool:
    """Write the connected regions of a label map with class, name, color, area in square units of
    the map, and pixels; regions of any size are one polygon each.

    Args:
        labels: what :func:`primaps.scenes.writer.write_labels` wrote.

    Returns:
        Whether anything had to be written: False if an earlier call had done it.

    Raises:
        OutputError: ``out`` is no ``.gpkg``, or exists and is of something else.
    """
    check_geopackage(out)
    options = {"primaps": VERSION, "names": list(names), "colors": colors.tolist()}
    with (
        resumable_file(out, labels, options, _digest) as (work, digest),
        written_labels(labels) as (read, shape, place),
    ):
        if work is None:
            return False
        matrix = PIXELS if place is None else place.matrix
        area = 1.0 if place is None else place.pixel_area
        code, wkt = (place.code, place.wkt) if place else (0, "")
        srs = code or (OWN_CRS if wkt else -1)
        box = [np.inf, np.inf, -np.inf, -np.inf]
        done = 0
        with atomic_path(out) as temporary, geopackage(temporary) as file:
            add_layer(file, LAYER, COLUMNS, srs, code, wkt, f"primaps {digest}")
            for region in outlines(read, *shape, HIDDEN):
                rings = closed_rings([r @ matrix[:, :2].T + matrix[:, 2] for r in region.rings])
                box = grown(box, rings)
                k = region.label
                shade, size = "#" + bytes(colors[k]).hex(), region.pixels
                row = (polygon(rings, srs), k, names[k], shade, size * area, size)
                file.execute(
                    f"INSERT INTO {LAYER} (geom, {', '.join(COLUMNS)}) VALUES (?,?,?,?,?,?)", row
                )
                done += region.pixels
                progress("polygons", done, shape[0] * shape[1], {})
            set_extent(file, LAYER, box)
        progress("polygons", shape[0] * shape[1], shape[0] * shape[1], {})
    return True


def check_geopackage(out: Path) -> None:
    """Refuse a file that polygons cannot be written to; before the work, which may take hours.

    Raises:
        OutputError: it is no ``.gpkg``, or exists and was not written by this package.
    """
    if out.suffix.lower() != ".gpkg":
        raise OutputError(f"polygons are written as a GeoPackage: name {out.with_suffix('.gpkg')}")
    if os.path.lexists(out) and _digest(out) is None:
        raise OutputError(
            f"{out} was not written by primaps; move it away, or choose another output path"
        )


def _digest(path: Path) -> str | None:
    """That of an earlier call, which the description of the layer carries."""
    with contextlib.suppress(sqlite3.Error):
        file = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            row = file.execute("SELECT description FROM gpkg_contents").fetchone()
        finally:
            file.close()
        return str(row[0]).removeprefix("primaps ") if row else None
    return None
