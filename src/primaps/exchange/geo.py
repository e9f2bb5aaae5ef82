"""``geojson`` and ``gpkg``: polygons with class and name for maps, in the CRS of the image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from primaps.exchange.classes import Classes
from primaps.exchange.documents import json_arrays
from primaps.exchange.geopackage import (
    Rings,
    add_layer,
    closed_rings,
    geopackage,
    grown,
    polygon,
    set_extent,
)
from primaps.exchange.georeference import Georeference, georeference
from primaps.exchange.labeled import LabeledImage
from primaps.exchange.outlines import trace

COLUMNS = {"class": "INTEGER", "name": "TEXT", "color": "TEXT", "image": "TEXT"}


def write_geojson(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
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


def write_gpkg(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``regions.gpkg``: a layer for each CRS, with class, name, color and image."""
    with geopackage(out / "regions.gpkg") as file:
        layers: dict[str, list[float]] = {}
        for image in images:
            place = georeference(image.file)
            layer = f"regions_{place.code}" if place.code else "regions"
            if layer not in layers:
                layers[layer] = [np.inf, np.inf, -np.inf, -np.inf]
                add_layer(file, layer, COLUMNS, place.srs, place.code)
            for k, rings in _polygons(image, place):
                layers[layer] = grown(layers[layer], rings)
                shape, color = polygon(rings, place.srs), classes.hexadecimal[k]
                file.execute(
                    f'INSERT INTO "{layer}" (geom, class, name, color, image) VALUES (?,?,?,?,?)',
                    (shape, k, classes.names[k], color, image.name),
                )
        for layer, box in layers.items():
            set_extent(file, layer, box)


def _polygons(image: LabeledImage, place: Georeference) -> Iterator[tuple[int, Rings]]:
    for k, left, top, mask in image.parts().boxes():
        origin = np.array([left, top], np.float64)
        yield k, closed_rings([place.to_map(ring.corners + origin) for ring in trace(mask)])
