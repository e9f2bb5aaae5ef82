"""GeoPackages: SQLite files with tables that describe layers of polygons."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float

Rings = list[Float[np.ndarray, "_ 2"]]
"""Closed rings of a polygon in map coordinates, the outer one first and counter-clockwise."""


@contextmanager
def geopackage(path: Path) -> Iterator[sqlite3.Connection]:
    """A new GeoPackage at ``path``, complete when the block ends."""
    file = sqlite3.connect(path)
    try:
        file.executescript(_TABLES)
        yield file
        file.commit()
    finally:
        file.close()


def closed_rings(rings: Rings) -> Rings:
    """Rings that end where they begin, the outer one counter-clockwise on the map."""
    rings = [np.concatenate([ring, ring[:1]]) for ring in rings]
    x, y = rings[0].T
    if (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() < 0:
        rings = [ring[::-1] for ring in rings]
    return rings


def polygon(rings: Rings, srs: int) -> bytes:
    """A polygon as a GeoPackage holds it: WKB behind a short header, no envelope, little endian."""
    parts = [b"GP\0\1", struct.pack("<i", srs), struct.pack("<BII", 1, 3, len(rings))]
    for ring in rings:
        parts += [struct.pack("<I", len(ring)), ring.astype("<f8").tobytes()]
    return b"".join(parts)


def add_layer(
    file: sqlite3.Connection,
    layer: str,
    columns: Mapping[str, str],
    srs: int,
    code: int = 0,
    wkt: str = "",
    description: str = "",
) -> None:
    """Add a layer of polygons.

    Args:
        columns: beside ``fid`` and ``geom``: names and SQL types.
        srs: number of the CRS in this file.
        code: its EPSG code; 0 if it has none.
        wkt: the CRS itself, if known.
    """
    fields = "".join(f", {name} {kind}" for name, kind in columns.items())
    file.execute(
        f'CREATE TABLE "{layer}" (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, '
        f"geom POLYGON{fields})"
    )
    if code or wkt:
        name, organization = (f"EPSG:{code}", "EPSG") if code else ("of the scene", "NONE")
        file.execute(
            "INSERT OR IGNORE INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, NULL)",
            (name, srs, organization, srs, wkt or "undefined"),
        )
    # A fixed date: the same labels give the same bytes.
    file.execute(
        "INSERT INTO gpkg_contents VALUES (?, 'features', ?, ?, '2000-01-01T00:00:00.000Z', "
        "NULL, NULL, NULL, NULL, ?)",
        (layer, layer, description, srs),
    )
    file.execute(
        "INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', 'POLYGON', ?, 0, 0)", (layer, srs)
    )


def set_extent(file: sqlite3.Connection, layer: str, box: list[float]) -> None:
    """Write the extent of a layer: least x and y, largest x and y; none if they are infinite."""
    if np.isfinite(box).all():
        file.execute(
            "UPDATE gpkg_contents SET min_x=?, min_y=?, max_x=?, max_y=? WHERE table_name=?",
            [*map(float, box), layer],
        )


def grown(box: list[float], rings: Rings) -> list[float]:
    """The box with a polygon in it."""
    low, high = rings[0].min(0), rings[0].max(0)
    return [*np.minimum(box[:2], low), *np.maximum(box[2:], high)]


_TABLES = """
PRAGMA application_id = 1196444487;
PRAGMA user_version = 10300;
CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT NOT NULL, srs_id INTEGER PRIMARY KEY,
  organization TEXT NOT NULL, organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL,
  description TEXT);
CREATE TABLE gpkg_contents (table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL,
  identifier TEXT UNIQUE, description TEXT DEFAULT '', last_change DATETIME NOT NULL,
  min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER);
CREATE TABLE gpkg_geometry_columns (table_name TEXT NOT NULL PRIMARY KEY,
  column_name TEXT NOT NULL, geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL,
  z TINYINT NOT NULL, m TINYINT NOT NULL);
INSERT INTO gpkg_spatial_ref_sys VALUES
  ('Undefined Cartesian', -1, 'NONE', -1, 'undefined', NULL),
  ('Undefined geographic', 0, 'NONE', 0, 'undefined', NULL),
  ('WGS 84', 4326, 'EPSG', 4326, 'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,'
   || '298.257223563]],PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433],'
   || 'AUTHORITY["EPSG","4326"]]', NULL);
"""
