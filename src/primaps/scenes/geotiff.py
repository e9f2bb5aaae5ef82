"""Scenes through rasterio: GeoTIFF, and whatever else GDAL reads."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from primaps.scenes.source import Block, Box, Place, Scene, chosen_bands, damage_named
from primaps.utils.errors import MissingPackageError

CACHE_BYTES = 64 << 20
"""Of decoded blocks: GDAL alone would take a twentieth of the machine's memory."""
METRES_PER_DEGREE = 111_320.0


def rasterio_module() -> Any:
    """rasterio, which is only needed here.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import rasterio
    except ImportError:
        raise MissingPackageError(
            "scenes with a georeference need rasterio: pip install 'primaps[geo]'"
        ) from None
    return rasterio


def open_geotiff(path: Path, bands: Sequence[int] | None = None) -> Scene:
    """A scene that rasterio reads; its nodata, alpha, masks and NaN are pixels without a value.

    Raises:
        SceneError: it is damaged, or nothing says which bands to show.
        InputError: it has no such band.
        MissingPackageError: rasterio is not installed.
    """
    rasterio = rasterio_module()
    environment = rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_NUM_THREADS=1)
    with ExitStack() as held:  # closed if the file is refused
        with damage_named(path), environment, warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            first = held.enter_context(rasterio.open(path))
            levels = [first]
            for i in range(len(first.overviews(1)) if first.count else 0):
                levels.append(held.enter_context(rasterio.open(path, overview_level=i)))
        scene = _scene(path, levels, bands, environment)
        held.pop_all()
    return scene


def _scene(path: Path, levels: list[Any], bands: Sequence[int] | None, environment: Any) -> Scene:
    rasterio, first, lock = rasterio_module(), levels[0], threading.Lock()
    known = _color_bands(first)
    shown = chosen_bands(path, first.count, bands, known)
    colors = _color_table(first)
    masked = any(rasterio.enums.MaskFlags.all_valid not in f for f in first.mask_flag_enums)

    def read(level: int, box: Box) -> Block:
        window = ((box.top, box.bottom), (box.left, box.right))
        with lock, damage_named(path), environment:
            values = levels[level].read(shown, window=window)
            valid = np.isfinite(values).all(0)
            if masked:
                valid &= (levels[level].read_masks(shown, window=window) > 0).any(0)
        if colors is not None:
            values = colors[:, values[0]]
        return values, valid

    def close() -> None:
        for level in levels:
            level.close()

    block, kind = first.block_shapes[0], np.dtype(first.dtypes[shown[0] - 1])
    return Scene(
        path,
        tuple((level.height, level.width) for level in levels),
        read,
        eight_bit=kind == np.uint8,
        whole=not masked and kind.kind != "f",
        strips=block[1] == first.width,
        item=len(shown) * kind.itemsize,
        place=(place := dataset_place(first)),
        meters=_metres(first, place),
        close=close,
    )


def _color_bands(dataset: Any) -> list[int] | None:
    names = [each.name for each in dataset.colorinterp]
    wanted = ("red", "green", "blue")
    return [names.index(name) + 1 for name in wanted] if set(wanted) <= set(names) else None


def _color_table(dataset: Any) -> np.ndarray | None:
    """Colors (3, 256) of a band of indices."""
    if dataset.count != 1 or dataset.colorinterp[0].name != "palette":
        return None
    table = np.zeros((3, 256), np.uint8)
    for index, color in dataset.colormap(1).items():
        table[:, index] = color[:3]
    return table


def dataset_place(dataset: Any) -> Place | None:
    """Where an open dataset lies; None if it does not say."""
    transform = dataset.transform
    if dataset.crs is None and transform.is_identity:
        return None
    a, b, c, d, e, f = tuple(transform)[:6]
    crs = dataset.crs
    wkt = crs.to_wkt() if crs else ""
    return Place(np.array([[a, b, c], [d, e, f]]), wkt, (crs.to_epsg() or 0) if crs else 0)


def _metres(dataset: Any, place: Place | None) -> float | None:
    """Ground size of a pixel: of geographic coordinates that in the middle of the scene."""
    if place is None or not dataset.crs:
        return None
    side = math.sqrt(place.pixel_area)
    if dataset.crs.is_projected:
        return side * float(dataset.crs.linear_units_factor[1])
    if dataset.crs.is_geographic:
        middle = place.matrix @ [dataset.width / 2, dataset.height / 2, 1]
        return side * METRES_PER_DEGREE * math.sqrt(max(0.0, math.cos(math.radians(middle[1]))))
    return None
