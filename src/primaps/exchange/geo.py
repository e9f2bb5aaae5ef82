"""``geojson`` and ``gpkg``: polygons with class and name for maps, in the CRS of the image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from primaps.exchange.classes import Classes
from primaps.exchange.labeled import LabeledImage
from primaps.geometry.regions import NO_LABEL
from primaps.geometry.vectors import (
    Georeference,
    geo_module,
    label_polygons,
    read_georeference,
    write_polygons,
)

COLUMNS = {"class": np.int32, "name": object, "color": object}
TIFF = (".tif", ".tiff")


def write_geojson(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``<key>.geojson`` for each image."""
    for image in images:
        place = _georeference(image)
        target = out / f"{image.key}.geojson"
        target.parent.mkdir(parents=True, exist_ok=True)
        rows = _rows(image, place, classes)
        write_polygons(target, image.key, COLUMNS, rows, place.crs if place else None)


def write_gpkg(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``regions.gpkg`` with a layer for each CRS."""
    columns = COLUMNS | {"image": object}
    located = ((image, _georeference(image)) for image in images)
    layers: dict[str, str] = {}
    for wkt, group in groupby(located, lambda pair: _wkt(pair[1])):
        epsg, crs = 0, None
        if wkt:
            crs = geo_module("rasterio.crs").CRS.from_wkt(wkt)
            epsg = crs.to_epsg()
        name = f"regions_{epsg}" if epsg else f"regions_crs{len(layers)}" if wkt else "regions"
        rows = (
            (*row, image.name) for image, place in group for row in _rows(image, place, classes)
        )
        layer = layers.setdefault(wkt, name)
        write_polygons(out / "regions.gpkg", layer, columns, rows, crs)


def _wkt(place: Georeference | None) -> str:
    return place.crs.to_wkt() if place and place.crs else ""


def _georeference(image: LabeledImage) -> Georeference | None:
    if image.file is None or image.file.suffix.lower() not in TIFF:
        return None
    return read_georeference(image.file)


def _rows(
    image: LabeledImage, place: Georeference | None, classes: Classes
) -> Iterator[tuple[Any, ...]]:
    """Polygon, class, name and color of each connected region; a proposal may be several."""
    values, nothing = (image.labels, NO_LABEL) if image.masks is None else (image.masks, 0)
    for found in label_polygons(values, nothing, place):
        k = found.label if image.masks is None else 0
        yield found.polygon, k, classes.names[k], classes.hexadecimal[k]
