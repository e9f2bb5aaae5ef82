"""Writes the label map of a scene: a cloud-optimized GeoTIFF, or a tiled TIFF without rasterio."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from jaxtyping import Integer, UInt8

from primaps.results import RawFile, check_file, output_file
from primaps.scenes.readers import CACHE_BYTES, dataset_place, rasterio_module, tifffile_module
from primaps.scenes.source import Place
from primaps.utils.files import atomic_path
from primaps.utils.progress import ProgressCallback, silent

TILE = 512
"""Side of the tiles of a result, and rows that are copied at once."""
DIGEST, CLASS = "PRIMAPS_DIGEST", "CLASS_"
"""Names in the metadata of a result: what it was made from, and the names of classes by number."""


@dataclass(frozen=True)
class Labels:
    """A label map to be written.

    Attributes:
        raw: labels of every pixel on disk.
        nothing: the label that stands for no label.
        names: of labels 0, 1, ...; empty for masks.
        colors: of labels 0, 1, ...; empty for masks.
        place: on a map.
        convert: labels as they are on disk to those that are written.
        dtype: of those.
    """

    raw: RawFile
    nothing: int
    names: Sequence[str]
    colors: UInt8[np.ndarray, "k 3"]
    place: Place | None
    convert: Callable[[np.ndarray], Integer[np.ndarray, "h w"]] = lambda labels: labels
    dtype: str = "uint8"

    def strips(
        self, progress: ProgressCallback = silent
    ) -> Iterator[tuple[int, Integer[np.ndarray, "h w"]]]:
        """The first row of every strip of tiles, and its labels."""
        height = self.raw.shape[0]
        for top in range(0, height, TILE):
            yield top, self.convert(self.raw.rows(top, min(height, top + TILE)))
            progress("writing", min(height, top + TILE), height, {})


def write_labels(labels: Labels, out: Path, digest: str, progress: ProgressCallback) -> None:
    """Write ``out``, and beside it ``out.aux.xml`` with the names of classes, where QGIS and ArcGIS
    look for them; both atomically.

    Raises:
        OutputError: The second file exists with other content.
        MissingPackageError: neither rasterio nor tifffile is installed.
    """
    georeferenced = labels.place is not None or importlib.util.find_spec("rasterio") is not None
    if labels.names:
        with output_file(check_sidecar(out, labels.names)) as temporary:
            temporary.write_text(_names_xml(labels.names), "utf-8")
    with atomic_path(out) as temporary:
        (_write_cog if georeferenced else _write_tiff)(labels, temporary, digest, progress)


def check_sidecar(out: Path, names: Sequence[str]) -> Path:
    """Return the path of the file with the names of classes, next to ``out``.

    Raises:
        OutputError: The file exists with other content.
    """
    path = out.with_name(out.name + ".aux.xml")
    check_file(path, _names_xml(names).encode())
    return path


def written_digest(path: Path) -> str | None:
    """The digest that :func:`write_labels` put into a file; None if it is not such a file."""
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio_module().open(path) as dataset:
            return str(dataset.tags()[DIGEST])
    with contextlib.suppress(Exception), tifffile_module().TiffFile(path) as file:
        return str(json.loads(file.pages[0].description)[DIGEST])
    return None


@contextlib.contextmanager
def written_labels(
    path: Path,
) -> Iterator[tuple[Callable[[int, int], np.ndarray], tuple[int, int], Place | None]]:
    """A result opened to be read by rows: labels of rows, height and width, and place."""
    rasterio = rasterio_module()
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as data:
            yield (
                lambda top, bottom: data.read(1, window=((top, bottom), (0, data.width))),
                data.shape,
                dataset_place(data),
            )


def _write_cog(labels: Labels, out: Path, digest: str, progress: ProgressCallback) -> None:
    """Through a plain GeoTIFF in the folder of the work, which the driver of COG copies."""
    rasterio = rasterio_module()
    from rasterio import shutil

    height, width = labels.raw.shape
    plain = labels.raw.path.with_name("plain.tif")
    place: dict[str, Any] = {}
    if labels.place is not None:
        (a, b, c), (d, e, f) = labels.place.matrix.tolist()
        crs = rasterio.crs.CRS.from_wkt(labels.place.wkt) if labels.place.wkt else None
        place = {"crs": crs, "transform": rasterio.Affine(a, b, c, d, e, f)}
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
            dataset.update_tags(1, **{f"{CLASS}{k}": name for k, name in enumerate(labels.names)})
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

    about = {DIGEST: digest} | {f"{CLASS}{k}": name for k, name in enumerate(labels.names)}
    settings: dict[str, Any] = {"photometric": "minisblack"}
    if len(labels.colors):
        table = np.zeros((3, 256), np.uint16)
        table[:, : len(labels.colors)] = labels.colors.T.astype(np.uint16) * 257
        settings = {"photometric": "palette", "colormap": table}
    tifffile_module().imwrite(
        out, tiles(), shape=(height, width), dtype=labels.dtype, tile=(TILE, TILE),
        compression="zlib", description=json.dumps(about), metadata=None, bigtiff=None,
        extratags=[(42113, "s", 0, str(labels.nothing), True)], **settings,
    )  # fmt: skip


def _names_xml(names: Sequence[str]) -> str:
    """Names of classes as GDAL keeps what a TIFF has no place for."""
    each = "".join(f"      <Category>{escape(name)}</Category>\n" for name in names)
    return (
        '<PAMDataset>\n  <PAMRasterBand band="1">\n    <CategoryNames>\n'
        f"{each}    </CategoryNames>\n  </PAMRasterBand>\n</PAMDataset>\n"
    )
