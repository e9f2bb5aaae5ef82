"""Write the label map of a scene: a cloud-optimized GeoTIFF, or a tiled TIFF without rasterio."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np
from jaxtyping import Integer, UInt8

from primaps.geometry.vectors import MAX_SIDE_FILE, Georeference, geo_module
from primaps.results import RawFile, check_file, output_file
from primaps.scenes.readers import CACHE_BYTES, tifffile_module
from primaps.utils.files import atomic_path
from primaps.utils.inputs import read_bytes
from primaps.utils.progress import ProgressCallback

TILE = 512
"""Side of the tiles of the written file, and number of rows that are copied at once."""
NO_CLASS = 255
"""Label of pixels without a class."""
DIGEST, CLASS = "PRIMAPS_DIGEST", "CLASS_"
"""Metadata keys: digest of the source and options, and prefix of the class names by number."""


@dataclass(frozen=True)
class Labels:
    """A label map that is to be written.

    Attributes:
        raw: labels of every pixel, on disk.
        nothing: label of pixels without a label.
        names: names of labels 0, 1, ...; empty for masks.
        colors: colors of labels 0, 1, ...; empty for masks.
        georeference: georeference of the scene; None if it has none.
        convert: function from the labels on disk to those that are written.
        dtype: numpy type of the labels that are written.
    """

    raw: RawFile
    nothing: int
    names: Sequence[str]
    colors: UInt8[np.ndarray, "k 3"]
    georeference: Georeference | None
    convert: Callable[[np.ndarray], Integer[np.ndarray, "h w"]] = lambda labels: labels
    dtype: str = "uint8"

    def strips(
        self, progress: ProgressCallback
    ) -> Iterator[tuple[int, Integer[np.ndarray, "h w"]]]:
        """Yield the first row and the labels of every strip of :data:`TILE` rows."""
        height = self.raw.shape[0]
        for top in range(0, height, TILE):
            yield top, self.convert(self.raw.rows(top, min(height, top + TILE)))
            progress("writing", min(height, top + TILE), height, {})

    def tags(self) -> dict[str, str]:
        """Return the class names as metadata."""
        return {f"{CLASS}{k}": name for k, name in enumerate(self.names)}


def write_labels(labels: Labels, out: Path, digest: str, progress: ProgressCallback) -> None:
    """Write ``out``, and the class names to ``out.aux.xml``, where QGIS and ArcGIS find them."""
    use_gdal = labels.georeference is not None or importlib.util.find_spec("rasterio") is not None
    if labels.names and not (side := check_side_file(out, labels.names)).exists():
        with output_file(side) as temporary:
            temporary.write_text(_names_xml(labels.names), "utf-8")
    with atomic_path(out) as temporary:
        (_write_cog if use_gdal else _write_tiff)(labels, temporary, digest, progress)


def write_geotiff(
    path: Path,
    values: Integer[np.ndarray, "h w"],
    place: Georeference,
    colors: UInt8[np.ndarray, "k 3"] | None,
) -> None:
    """Write the label map of an image with its georeference.

    Args:
        values: 8 or 16 bits.
        colors: colors of the classes, whose nodata is 255; None for masks, whose nodata is 0.
    """
    rasterio = geo_module("rasterio")
    height, width = values.shape
    settings = {"driver": "GTiff", "height": height, "width": width, "count": 1}
    settings |= {"dtype": values.dtype, "compress": "deflate"}
    settings |= {"nodata": 0 if colors is None else NO_CLASS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **settings, **place.profile()) as dataset:
            if colors is not None:
                table = {k: (*map(int, color), 255) for k, color in enumerate(colors)}
                dataset.write_colormap(1, table | {NO_CLASS: (0, 0, 0, 0)})
            dataset.write(values, 1)


def check_side_file(out: Path, names: Sequence[str]) -> Path:
    """Return the path of the class names, ``out.aux.xml``.

    QGIS and GDAL add statistics to this file. A file that has the same class names is accepted and
    kept as it is.

    Raises:
        OutputError: the file exists with other content.
    """
    path = out.with_name(out.name + ".aux.xml")
    if path.is_symlink() or not path.is_file() or _category_names(path) != list(names):
        check_file(path, _names_xml(names).encode())
    return path


def _category_names(path: Path) -> list[str] | None:
    """Return the class names in a side file of GDAL (PAM); None if it has none."""
    try:
        root = ElementTree.fromstring(read_bytes(path, MAX_SIDE_FILE))
    except (OSError, ValueError, ElementTree.ParseError):  # InputError is a ValueError
        return None
    found = root.find("PAMRasterBand[@band='1']/CategoryNames")
    return None if found is None else [one.text or "" for one in found.findall("Category")]


def written_digest(path: Path) -> str | None:
    """Return the digest that :func:`write_labels` wrote to a file; None if it has none."""
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with geo_module("rasterio").open(path) as dataset:
            return str(dataset.tags()[DIGEST])
    with contextlib.suppress(Exception), tifffile_module().TiffFile(path) as file:
        return str(json.loads(file.pages[0].description)[DIGEST])
    return None


def read_class_names(path: Path) -> list[str]:
    """Return the class names in the metadata of a label map; empty if it has none."""
    tags: dict[str, Any] = {}
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with geo_module("rasterio").open(path) as dataset:
            tags = dataset.tags() | dataset.tags(1)
    if DIGEST not in tags:
        with contextlib.suppress(Exception), tifffile_module().TiffFile(path) as file:
            tags = json.loads(file.pages[0].description)
    names = [tags.get(f"{CLASS}{k}") for k in range(256)]
    return [name for name in names[: names.index(None)] if name]


def _write_cog(labels: Labels, out: Path, digest: str, progress: ProgressCallback) -> None:
    """Write a plain GeoTIFF to the work folder, which GDAL copies to a cloud-optimized one."""
    rasterio, shutil = geo_module("rasterio"), geo_module("rasterio.shutil")
    height, width = labels.raw.shape
    plain = labels.raw.path.with_name("plain.tif")
    place = labels.georeference.profile() if labels.georeference is not None else {}
    settings = {"driver": "GTiff", "height": height, "width": width, "count": 1}
    settings |= {"dtype": labels.dtype, "nodata": labels.nothing, "tiled": True}
    settings |= {"blockxsize": TILE, "blockysize": TILE, "BIGTIFF": "IF_SAFER"}
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(plain, "w", **settings, **place) as dataset:
            if len(labels.colors):
                table = {k: (*map(int, color), 255) for k, color in enumerate(labels.colors)}
                dataset.write_colormap(1, table | {labels.nothing: (0, 0, 0, 0)})
            dataset.update_tags(**{DIGEST: digest})
            dataset.update_tags(1, **labels.tags())
            for top, values in labels.strips(progress):
                window = rasterio.windows.Window(0, top, width, len(values))
                dataset.write(values, 1, window=window)
        shutil.copy(
            plain, out, driver="COG", COMPRESS="DEFLATE", BLOCKSIZE=TILE, BIGTIFF="IF_SAFER",
            OVERVIEW_RESAMPLING="NEAREST",
        )  # fmt: skip
    plain.unlink()


def _write_tiff(labels: Labels, out: Path, digest: str, progress: ProgressCallback) -> None:
    height, width = labels.raw.shape

    def tiles() -> Iterator[np.ndarray]:
        for _, strip in labels.strips(progress):
            for left in range(0, width, TILE):
                part = strip[:, left : left + TILE]
                full = np.zeros((TILE, TILE), labels.dtype)
                full[: part.shape[0], : part.shape[1]] = part
                yield full

    settings: dict[str, Any] = {"photometric": "minisblack"}
    if len(labels.colors):
        table = np.zeros((3, 256), np.uint16)
        table[:, : len(labels.colors)] = labels.colors.T.astype(np.uint16) * 257
        settings = {"photometric": "palette", "colormap": table}
    tifffile_module().imwrite(
        out, tiles(), shape=(height, width), dtype=labels.dtype, tile=(TILE, TILE),
        compression="zlib", description=json.dumps({DIGEST: digest} | labels.tags()),
        metadata=None, bigtiff=None,
        extratags=[(42113, "s", 0, str(labels.nothing), True)], **settings,
    )  # fmt: skip


def _names_xml(names: Sequence[str]) -> str:
    """Return the class names in the format of GDAL's side files (PAM)."""
    categories = "".join(f"      <Category>{escape(name)}</Category>\n" for name in names)
    return (
        '<PAMDataset>\n  <PAMRasterBand band="1">\n    <CategoryNames>\n'
        f"{categories}    </CategoryNames>\n  </PAMRasterBand>\n</PAMDataset>\n"
    )
