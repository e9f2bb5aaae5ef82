"""Open scenes: GeoTIFF and other map formats by rasterio, TIFF and slides by tifffile, everything
else by Pillow."""

from __future__ import annotations

import math
import re
import struct
import threading
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from primaps.data import load_image
from primaps.data.images import opened, upright
from primaps.geometry.vectors import dataset_georeference, geo_module
from primaps.scenes.source import (
    Block,
    Box,
    Scene,
    SceneError,
    decoding_errors,
    select_bands,
)
from primaps.utils.errors import InputError, MissingPackageError, NotFoundError

TIFF_SUFFIXES = frozenset((".tif", ".tiff", ".btf", ".tf2", ".tf8"))
SLIDE_SUFFIXES = frozenset((".svs", ".ndpi", ".scn", ".bif", ".qptiff"))
"""Slides are TIFF files that never have a georeference."""
GDAL_SUFFIXES = frozenset((".vrt", ".jp2", ".img"))
"""Map formats other than TIFF."""
GDAL_TAGS = frozenset((33550, 33922, 34264, 34735, 42112, 42113))
"""TIFF tags of a georeference, of GDAL's metadata and of nodata."""
CACHE_BYTES = 64 << 20
"""Cache of decoded blocks in GDAL, whose default is 5 % of the memory of the machine."""
JPEG_COMPRESSIONS = frozenset((6, 7, 34892, 33007))
"""TIFF compressions whose segments share tables."""
SEGMENT_BYTES = 512 << 20
"""Maximum bytes of a compressed strip or tile, which has to be decoded in one piece."""


def open_scene(path: str | Path, bands: Sequence[int] | None = None) -> Scene:
    """Open an image of any size: a GeoTIFF, a plain TIFF or BigTIFF, a slide, a JPEG, a PNG.

    Args:
        bands: bands to use as red, green and blue, counted from 1; None means as declared in the
            file.

    Raises:
        NotFoundError: the file does not exist.
        SceneError: the file is damaged, or has five or more bands and none are selected.
        InputError: the file has no such band.
        MissingPackageError: the format needs a package that is not installed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise NotFoundError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    suffix = path.suffix.lower()
    with decoding_errors(path):
        if suffix in GDAL_SUFFIXES or (suffix in TIFF_SUFFIXES and _has_georeference(path)):
            return open_geotiff(path, bands)
        if suffix in TIFF_SUFFIXES or suffix in SLIDE_SUFFIXES:
            return open_tiff(path, bands)
        if bands is not None:
            raise InputError(f"--bands does not apply to {path}, which is an RGB image")
        with opened(path) as image:
            return in_memory(upright(image), path)


def in_memory(image: Image.Image, path: str | Path = "image") -> Scene:
    """Return an image in memory as a scene in 8-bit RGB; fully transparent pixels are invalid.

    Examples:
        >>> scene = in_memory(Image.new("RGB", (4, 3), "red"))
        >>> scene.sizes, scene.read(0, Box(0, 1, 0, 2))[0].tolist()
        (((3, 4),), [[[255, 255]], [[0, 0]], [[0, 0]]])
    """
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    alpha = np.asarray(image.convert("RGBA").getchannel("A")) if transparent else None
    pixels = np.asarray(load_image(image))

    def read(level: int, box: Box) -> Block:
        inside = slice(box.top, box.bottom), slice(box.left, box.right)
        valid = np.ones(box.shape, bool) if alpha is None else alpha[inside] > 0
        return pixels[inside].transpose(2, 0, 1), valid

    return Scene(Path(path), ((image.height, image.width),), read, True, all_valid=alpha is None)


def _has_georeference(path: Path) -> bool:
    """Return whether a TIFF has a georeference or was written by GDAL."""
    if any(path.with_suffix(suffix).is_file() for suffix in (".tfw", ".tifw", ".TFW")):
        return True
    with path.open("rb") as file:
        return not tiff_tags(file).isdisjoint(GDAL_TAGS)


def tiff_tags(file: BinaryIO) -> set[int]:
    """Return the numbers of the tags of the first image of a TIFF or BigTIFF.

    Raises:
        ValueError: the file is neither.
    """
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
    version = struct.unpack(f"{order}H", head[2:4])[0] if order and len(head) >= 8 else 0
    if version not in (42, 43):
        raise ValueError("the file has no TIFF header")
    offset_at, offset, count, size = (8, "Q", "Q", 20) if version == 43 else (4, "L", "H", 12)
    file.seek(struct.unpack_from(order + offset, head, offset_at)[0])
    entries = struct.unpack(order + count, file.read(struct.calcsize("<" + count)))[0]
    data = file.read(min(entries, 65_536) * size)
    return {struct.unpack_from(f"{order}H", data, i)[0] for i in range(0, len(data) - 1, size)}


# GeoTIFF and other map formats


def open_geotiff(path: Path, bands: Sequence[int] | None = None) -> Scene:
    """Open a scene by rasterio; nodata, alpha, masks and NaN make pixels invalid."""
    rasterio = geo_module("rasterio")
    environment = rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_NUM_THREADS=1)
    with ExitStack() as datasets:  # closed on an error
        with decoding_errors(path), environment, warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            full = datasets.enter_context(rasterio.open(path))
            levels = [full]
            for i in range(len(full.overviews(1)) if full.count else 0):
                levels.append(datasets.enter_context(rasterio.open(path, overview_level=i)))
        scene = _geotiff_scene(path, levels, bands, environment)
        datasets.pop_all()
    return scene


def _geotiff_scene(
    path: Path, levels: list[Any], bands: Sequence[int] | None, environment: Any
) -> Scene:
    full, lock, flags = levels[0], threading.Lock(), geo_module("rasterio").enums.MaskFlags
    selected = select_bands(path, full.count, bands, _rgb_bands(full))
    palette = _palette(full)
    masked = any(flags.all_valid not in each for each in full.mask_flag_enums)

    def read(level: int, box: Box) -> Block:
        window = ((box.top, box.bottom), (box.left, box.right))
        with lock, decoding_errors(path), environment:
            values = levels[level].read(selected, window=window)
            valid = np.isfinite(values).all(0)
            if masked:
                valid &= (levels[level].read_masks(selected, window=window) > 0).any(0)
        return values if palette is None else palette[:, values[0]], valid

    def close() -> None:
        for level in levels:
            level.close()

    dtype, place = np.dtype(full.dtypes[selected[0] - 1]), dataset_georeference(full)
    return Scene(
        path,
        tuple((level.height, level.width) for level in levels),
        read,
        eight_bit=dtype == np.uint8,
        all_valid=not masked and dtype.kind != "f",
        by_rows=full.block_shapes[0][1] == full.width,
        pixel_bytes=len(selected) * dtype.itemsize,
        georeference=place,
        meters=place.meters_per_pixel(full.height, full.width) if place else None,
        close=close,
    )


def _rgb_bands(dataset: Any) -> list[int] | None:
    names = [each.name for each in dataset.colorinterp]
    wanted = ("red", "green", "blue")
    return [names.index(name) + 1 for name in wanted] if set(wanted) <= set(names) else None


def _palette(dataset: Any) -> np.ndarray | None:
    """Return the colors (3, 256) of a band of palette indices."""
    if dataset.count != 1 or dataset.colorinterp[0].name != "palette":
        return None
    colors = np.zeros((3, 256), np.uint8)
    for index, color in dataset.colormap(1).items():
        colors[:, index] = color[:3]
    return colors


# TIFF and slides without a georeference


def tifffile_module() -> Any:
    """Import tifffile, or raise a MissingPackageError."""
    try:
        import tifffile
    except ImportError:
        raise MissingPackageError(
            "TIFF scenes and slides need tifffile: pip install 'primaps[slides]'"
        ) from None
    return tifffile


def open_tiff(path: Path, bands: Sequence[int] | None = None) -> Scene:
    """Open the first image of a TIFF by tifffile, with the smaller levels of its pyramid."""
    tifffile = tifffile_module()
    with ExitStack() as files:  # closed on an error
        with decoding_errors(path):
            file = files.enter_context(tifffile.TiffFile(path))
        scene = _tiff_scene(path, file, bands)
        files.pop_all()
    return scene


def _tiff_scene(path: Path, file: Any, bands: Sequence[int] | None) -> Scene:
    with decoding_errors(path):
        series = file.series[0]
        levels = [_pages(level) for level in series.levels]
    page = levels[0][0]
    if series.axes.replace("C", "S") not in ("YX", "YXS", "SYX") or page.imagedepth > 1:
        raise SceneError(
            f"{path} has the axes {series.axes} {series.shape}; save one image of rows, columns "
            "and bands"
        )
    for pages in levels:
        _refuse_large_segments(path, pages[0])
    count = len(levels[0]) * page.samplesperpixel
    declared = (1, 2, 3) if page.photometric.name in ("RGB", "YCBCR") else None
    selected = select_bands(path, count, bands, declared)
    kinds = [kind.value for kind in page.extrasamples]
    alphas = [count - len(kinds) + i + 1 for i, kind in enumerate(kinds) if kind in (1, 2)]
    alpha = alphas[0] if alphas else None
    lock = threading.Lock()

    def read(level: int, box: Box) -> Block:
        wanted = selected if alpha is None else [*selected, alpha]
        with lock, decoding_errors(path):
            values = _read_tiff(file, levels[level], [band - 1 for band in wanted], box)
        valid = np.isfinite(values).all(0)
        if alpha is not None:
            valid &= values[-1] > 0
            values = values[:-1]
        return _tiff_colors(page, values), valid

    return Scene(
        path,
        tuple((pages[0].imagelength, pages[0].imagewidth) for pages in levels),
        read,
        eight_bit=page.dtype == np.uint8,
        all_valid=alpha is None and page.dtype.kind != "f",
        by_rows=not page.is_tiled,
        pixel_bytes=len(selected) * page.dtype.itemsize,
        meters=_slide_ground_size(file, page),
        close=file.close,
    )


def _pages(level: Any) -> list[Any]:
    """Return the pages of a level: one, or one per band."""
    first = level.keyframe
    planes = level.size // (first.size or 1)
    return [first] if planes == 1 else [page.aspage() for page in level.pages]


def _segment_size(page: Any) -> tuple[int, int]:
    """Return the height and width of a tile or strip."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _refuse_large_segments(path: Path, page: Any) -> None:
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    size = math.prod(_segment_size(page)) * samples * page.dtype.itemsize
    if size > SEGMENT_BYTES and not page.is_contiguous:
        raise SceneError(
            f"{path} is compressed in segments of {size / 1e9:.1f} GB, each of which has to be "
            "decoded in one piece; save it in tiles"
        )


def _read_tiff(
    file: Any, pages: list[Any], bands: list[int], box: Box
) -> Shaped[np.ndarray, "bands h w"]:
    """Read bands, counted from 0, of a rectangle."""
    samples = pages[0].samplesperpixel
    out = np.zeros((len(bands), *box.shape), pages[0].dtype)
    for number, page in enumerate(pages):
        # Channels of the output, and the samples of this page that they hold.
        channels = [(channel, band - number * samples) for channel, band in enumerate(bands)
                    if 0 <= band - number * samples < samples]  # fmt: skip
        if channels:
            read = _read_contiguous if page.is_contiguous else _read_segments
            read(file, page, channels, box, out)
    return out


def _read_contiguous(
    file: Any, page: Any, channels: list[tuple[int, int]], box: Box, out: np.ndarray
) -> None:
    """Read rows of uncompressed pixels that are stored one after the other."""
    dtype = np.dtype(page.dtype).newbyteorder(file.byteorder)
    interleaved = page.planarconfig == 1
    row = page.imagewidth * (page.samplesperpixel if interleaved else 1)
    rows = box.bottom - box.top
    for plane in [0] if interleaved else sorted({sample for _, sample in channels}):
        offset = (plane * page.imagelength + box.top) * row * dtype.itemsize
        file.filehandle.seek(page.dataoffsets[0] + offset)
        data = file.filehandle.read(rows * row * dtype.itemsize)
        if len(data) < rows * row * dtype.itemsize:
            raise ValueError(f"the file ends before row {box.bottom}")
        values = np.frombuffer(data, dtype).reshape(rows, page.imagewidth, -1)
        for channel, sample in channels:
            if interleaved or sample == plane:
                out[channel] = values[:, box.left : box.right, sample if interleaved else 0]


def _read_segments(
    file: Any, page: Any, channels: list[tuple[int, int]], box: Box, out: np.ndarray
) -> None:
    """Decode the tiles or strips that intersect the rectangle."""
    high, wide = _segment_size(page)
    across, down = -(-page.imagewidth // wide), -(-page.imagelength // high)
    tables = {}
    if page.compression in JPEG_COMPRESSIONS:
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
    interleaved = page.planarconfig == 1
    for plane in [0] if interleaved else sorted({sample for _, sample in channels}):
        for y in range(box.top // high, -(-box.bottom // high)):
            for x in range(box.left // wide, -(-box.right // wide)):
                index = (plane * down + y) * across + x
                size = page.databytecounts[index]
                if not size:
                    continue  # a tile that was never written
                file.filehandle.seek(page.dataoffsets[index])
                data = file.filehandle.read(size)
                if len(data) < size:
                    raise ValueError(f"the file ends within row {y * high} to {(y + 1) * high}")
                values = page.decode(data, index, **tables)[0][0]
                top, left = max(box.top, y * high), max(box.left, x * wide)
                part = values[top - y * high : box.bottom - y * high,
                              left - x * wide : box.right - x * wide]  # fmt: skip
                rows = slice(top - box.top, top - box.top + part.shape[0])
                columns = slice(left - box.left, left - box.left + part.shape[1])
                for channel, sample in channels:
                    if interleaved or sample == plane:
                        out[channel, rows, columns] = part[..., sample if interleaved else 0]


def _tiff_colors(page: Any, values: np.ndarray) -> np.ndarray:
    """Convert palette indices to colors, and inverted gray (MINISWHITE) to gray."""
    if page.photometric.name == "PALETTE" and page.colormap is not None:
        return (page.colormap >> 8).astype(np.uint8)[:, values[0]]
    if page.photometric.name == "MINISWHITE" and page.dtype.kind == "u":
        return np.iinfo(page.dtype).max - values
    return values


def _slide_ground_size(file: Any, page: Any) -> float | None:
    """Return the meters per pixel that a slide scanner wrote; a resolution in dpi is not one."""
    if file.is_ome:
        found = re.search(r'PhysicalSizeX="([\d.eE+-]+)"', file.ome_metadata or "")
        unit = re.search(r'PhysicalSizeXUnit="([^"]+)"', file.ome_metadata or "")
        factors = {"µm": 1e-6, "um": 1e-6, "nm": 1e-9, "mm": 1e-3}
        factor = factors.get(unit.group(1), 0.0) if unit else 1e-6
        return float(found.group(1)) * factor or None if found else None
    found = re.search(r"\bMPP\s*=\s*([\d.]+)", page.description or "")
    return float(found.group(1)) * 1e-6 if found else None
