"""GeoJSON and GeoPackage: polygons with class, name and color in the CRS of the image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from primaps.data.images import Stored
from primaps.exchange.classes import Classes
from primaps.exchange.labeled import LabeledImage
from primaps.geometry.regions import NO_LABEL
from primaps.geometry.vectors import (
    Georeference,
    label_polygons,
    read_georeference,
    write_polygons,
)
from primaps.utils.errors import InputError

COLUMNS = {"class": np.int32, "name": object, "color": object}
GEOTIFF = (".tif", ".tiff")


def write_geojson(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``<key>.geojson`` for each image."""
    for image in images:
        position = _georeference(image)
        path = out / f"{image.key}.geojson"
        path.parent.mkdir(parents=True, exist_ok=True)
        crs = position.crs if position else None
        write_polygons(path, image.key, COLUMNS, _rows(image, position, classes), crs)


def write_gpkg(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``regions.gpkg`` with a layer for each CRS."""
    columns = COLUMNS | {"image": object}
    located = ((image, _georeference(image)) for image in images)
    layers: dict[Any, str] = {}
    for crs, group in groupby(located, lambda pair: pair[1].crs if pair[1] else None):
        wkt = crs.to_wkt() if crs else ""
        suffix = f"_{crs.to_epsg() or f'crs{len(layers)}'}" if crs else ""
        layer = layers.setdefault(wkt, f"regions{suffix}")
        rows = (
            (*row, image.name)
            for image, position in group
            for row in _rows(image, position, classes)
        )
        write_polygons(out / "regions.gpkg", layer, columns, rows, crs)


def _georeference(image: LabeledImage) -> Georeference | None:
    if image.file is None or Path(image.name).suffix.lower() not in GEOTIFF:
        return None
    if isinstance(image.file, Stored):
        raise InputError(
            f"{image.file} may be a GeoTIFF, whose place cannot be read from an archive; unpack it"
        )
    return read_georeference(image.file)


def _rows(
    image: LabeledImage, position: Georeference | None, classes: Classes
) -> Iterator[tuple[Any, ...]]:
    """Yield polygon, class, name and color of each connected region."""
    masks = image.masks
    values, nothing = (image.labels, NO_LABEL) if masks is None else (masks, 0)
    for found in label_polygons(values, nothing, position):
        k = found.label if masks is None else 0
        yield found.polygon, k, classes.names[k], classes.hex_colors[k]
