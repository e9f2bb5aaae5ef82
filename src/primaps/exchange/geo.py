"""``geojson`` and ``gpkg``: polygons with class and name for maps, in the CRS of the image."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float

from primaps.exchange.classes import Classes
from primaps.exchange.documents import json_arrays
from primaps.exchange.georeference import Georeference, georeference
from primaps.exchange.labelled import LabelledImage
from primaps.exchange.outlines import trace

Rings = list[Float[np.ndarray, "_ 2"]]


def write_geojson(images: Iterable[LabelledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``<key>.geojson`` per image: closed rings, the outer one counter-clockwise on the map.

    Images without a georeference get pixels, up being positive, as QGIS shows such an image.
    """
    for image in images:
        place = georeference(image.file)
        target = out / f"{image.key}.geojson"
        target.parent.mkdir(parents=True, exist_ok=True)
        crs = {"type": "name", "properties": {"name": place.urn}}
        fixed = {"type": "FeatureCollection", "name": image.key}
        # Without a member "crs" GeoJSON is taken for longitude and latitude.
        with json_arrays(
            target, "features", **fixed, **({"crs": crs} if place.code else {})
        ) as add:
            for k, rings in _polygons(image, place):
                geometry = {"type": "Polygon", "coordinates": [ring.tolist() for ring in rings]}
                properties = {"class": k, "name": classes.names[k], "color": classes.hexadecimal[k]}
                add("features", {"type": "Feature", "properties": properties, "geometry": geometry})


def write_gpkg(images: Iterable[LabelledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``regions.gpkg``: a layer for each CRS, with class, name, colour and image.

    A GeoPackage is an SQLite file with some tables that describe it, and geometries as WKB behind
    a short header.
    """
    file = sqlite3.connect(out / "regions.gpkg")
    try:
        file.executescript(_TABLES)
        layers: dict[str, list[float]] = {}
        for image in images:
            place = georeference(image.file)
            layer = f"regions_{place.code}" if place.code else "regions"
            if layer not in layers:
                layers[layer] = [np.inf, np.inf, -np.inf, -np.inf]
                _add_layer(file, layer, place)
            box = layers[layer]
            for k, rings in _polygons(image, place):
                low, high = rings[0].min(0), rings[0].max(0)
                box[:] = [*np.minimum(box[:2], low), *np.maximum(box[2:], high)]
                row = (
                    _wkb(rings, place.srs),
                    k,
                    classes.names[k],
                    classes.hexadecimal[k],
                    image.name,
                )
                file.execute(
                    f'INSERT INTO "{layer}" (geom, class, name, color, image) VALUES (?,?,?,?,?)',
                    row,
                )
        for layer, box in layers.items():
            if np.isfinite(box).all():
                file.execute(
                    "UPDATE gpkg_contents SET min_x=?, min_y=?, max_x=?, max_y=? "
                    "WHERE table_name=?",
                    [*map(float, box), layer],
                )
        file.commit()
    finally:
        file.close()


def _polygons(image: LabelledImage, place: Georeference) -> Iterator[tuple[int, Rings]]:
    for k, left, top, mask in image.parts().boxes():
        rings = []
        for ring in trace(mask):
            points = place.to_map(ring.corners + np.array([left, top], np.float64))
            rings.append(np.concatenate([points, points[:1]]))
        x, y = rings[0].T
        if (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() < 0:
            rings = [ring[::-1] for ring in rings]
        yield k, rings


def _wkb(rings: Rings, srs: int) -> bytes:
    """A polygon as a GeoPackage holds it: no envelope, little endian."""
    parts = [b"GP\0\1", struct.pack("<i", srs), struct.pack("<BII", 1, 3, len(rings))]
    for ring in rings:
        parts += [struct.pack("<I", len(ring)), ring.astype("<f8").tobytes()]
    return b"".join(parts)


def _add_layer(file: sqlite3.Connection, layer: str, place: Georeference) -> None:
    file.execute(
        f'CREATE TABLE "{layer}" (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, geom POLYGON, '
        "class INTEGER, name TEXT, color TEXT, image TEXT)"
    )
    if place.code:
        file.execute(
            "INSERT OR IGNORE INTO gpkg_spatial_ref_sys "
            "VALUES (?, ?, 'EPSG', ?, 'undefined', NULL)",
            (f"EPSG:{place.code}", place.code, place.code),
        )
    # A fixed date: the same labels give the same bytes.
    file.execute(
        "INSERT INTO gpkg_contents VALUES (?, 'features', ?, '', '2000-01-01T00:00:00.000Z', "
        "NULL, NULL, NULL, NULL, ?)",
        (layer, layer, place.srs),
    )
    file.execute(
        "INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', 'POLYGON', ?, 0, 0)",
        (layer, place.srs),
    )


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
