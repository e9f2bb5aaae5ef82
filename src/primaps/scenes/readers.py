"""Open scenes: GeoTIFF and other map formats by rasterio, TIFF and slides by tifffile, everything
else by Pillow."""

from __future__ import annotations

import logging
import math
import re
import struct
import threading
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Bool, Shaped
from PIL import Image

from primaps.data import ImageError, ImageFile, LogCallback, load_image
from primaps.data.images import ORIENTATION, opened, upright
from primaps.geometry.vectors import (
    Georeference,
    dataset_georeference,
    geo_module,
    has_side_file,
    read_georeference,
    side_georeference,
)
from primaps.scenes.colors import (
    BITS,
    CMYK,
    COLOR_TAGS,
    COMPRESSION,
    CONVERTING,
    MINISWHITE,
    PALETTE,
    PHOTOMETRIC,
    SUBSAMPLING,
    YCBCR,
    Coloring,
    Tags,
    color_table,
    palette,
    tiff_coloring,
)
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
PLACE_TAGS = frozenset((33550, 33922, 34264, 50844))
"""TIFF tags that place an image: scale, points, transform and rational polynomials."""
GDAL_TAGS = PLACE_TAGS | {34735, 42112, 42113}
"""TIFF tags of a georeference, of rational polynomials, of GDAL's metadata and of nodata."""
CACHE_BYTES = 64 << 20
"""Cache of decoded blocks in GDAL, whose default is 5 % of the memory of the machine."""
JPEG_COMPRESSIONS = frozenset((6, 7, 34892, 33007))
"""TIFF compressions whose segments share tables."""
TAG_TYPES = {1: ("B", 1), 3: ("H", 1), 4: ("L", 1), 5: ("L", 2), 11: ("f", 1), 12: ("d", 1)}
"""TIFF field types of the tags that are read: struct format and numbers per value."""
MAX_VALUES = 64
"""Maximum number of values of a tag that is read."""
SEGMENT_BYTES = 512 << 20
"""Maximum bytes of a compressed strip or tile, which has to be decoded in one piece."""


def open_scene(
    path: str | Path,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    alpha: bool = True,
) -> Scene:
    """Open an image of any size: a GeoTIFF, a plain TIFF or BigTIFF, a slide, a JPEG, a PNG.

    Args:
        bands: bands to use as red, green and blue, counted from 1; None means as declared in the
            file.
        nodata: value of pixels without data, in addition to what the file declares. A pixel is
            invalid if all selected bands have it.
        alpha: whether the alpha band of the file makes pixels invalid. A band that is selected is
            data in any case.

    Raises:
        NotFoundError: the file does not exist.
        SceneError: the file is damaged, or has five or more bands and none are selected, or its
            colors are not supported.
        InputError: the file has no such band, or cannot hold the nodata value.
        MissingPackageError: the format needs a package that is not installed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise NotFoundError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    suffix = path.suffix.lower()
    with decoding_errors(path):
        if suffix in GDAL_SUFFIXES or (suffix in TIFF_SUFFIXES and _needs_gdal(path)):
            return open_geotiff(path, bands, nodata, alpha)
        if suffix in TIFF_SUFFIXES or suffix in SLIDE_SUFFIXES:
            return open_tiff(path, bands, nodata, alpha)
        if bands is not None:
            raise InputError(f"--bands does not apply to {path}, which is an RGB image")
        place = side_georeference(path)
        with opened(path) as image:
            # A side file places the pixels as they are stored, before the EXIF rotation. Images of
            # 16 bits are complete until Pillow has decoded them.
            colors = load_image(image if place else path)
            stored = image if place else upright(image)
            return in_memory(stored, path, nodata, alpha, place, colors)


def in_memory(
    image: Image.Image,
    path: str | Path = "image",
    nodata: float | None = None,
    alpha: bool = True,
    georeference: Georeference | None = None,
    colors: Image.Image | None = None,
) -> Scene:
    """Return an image in memory as a scene in 8-bit RGB; fully transparent pixels are invalid.

    Examples:
        >>> scene = in_memory(Image.new("RGB", (4, 3), "red"))
        >>> scene.sizes, scene.read(0, Box(0, 1, 0, 2))[0].tolist()
        (((3, 4),), [[[255, 255]], [[0, 0]], [[0, 0]]])
    """
    # ``colors`` is the image in 8-bit RGB, if the caller has read it.
    path, missing = Path(path), _nodata_value(Path(path), nodata, np.dtype(np.uint8))
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    mask = np.asarray(image.convert("RGBA").getchannel("A")) if transparent and alpha else None
    if colors is None or (transparent and not alpha):
        colors = load_image(image if alpha else _opaque(image))
    pixels = np.asarray(colors)

    def read(level: int, box: Box) -> Block:
        inside = slice(box.top, box.bottom), slice(box.left, box.right)
        values = pixels[inside].transpose(2, 0, 1)
        valid = np.ones(box.shape, bool) if mask is None else mask[inside] > 0
        return values, valid & _has_data(values, missing)

    return Scene(
        path,
        ((image.height, image.width),),
        read,
        True,
        all_valid=mask is None and nodata is None,
        georeference=georeference,
        meters=_meters(georeference, image.height, image.width),
    )


def _opaque(image: Image.Image) -> Image.Image:
    """Return an image without its transparency, which would become white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA").convert("RGB")
        image.info.pop("transparency", None)
    return image


def _meters(place: Georeference | None, height: int, width: int) -> float | None:
    return place.meters_per_pixel(height, width) if place else None


def _nodata_value(path: Path, nodata: float | None, dtype: np.dtype) -> Any:
    """Return a nodata value in the type of the samples.

    Raises:
        InputError: the type has no such value.
    """
    if nodata is None:
        return None
    if dtype.kind in "uib":
        info = np.iinfo(np.uint8 if dtype.kind == "b" else dtype)
        low, high = int(info.min), 1 if dtype.kind == "b" else int(info.max)
        if nodata != int(nodata) or not low <= nodata <= high:
            raise InputError(
                f"--nodata {nodata:g}: {path} holds integers from {low} to {high}; give one of them"
            )
        nodata = int(nodata)
    return dtype.type(nodata)


def _has_data(
    values: Shaped[np.ndarray, "bands h w"], nodata: Any
) -> Bool[np.ndarray, "h w"] | np.bool_:
    """Return where a band differs from the nodata value."""
    return np.True_ if nodata is None else (values != nodata).any(0)


def _needs_gdal(path: Path) -> bool:
    """Return whether a TIFF has a georeference, was written by GDAL, or has chroma subsampling that
    only libtiff reads."""
    if has_side_file(path):
        return True
    with path.open("rb") as file:
        tags = tiff_values(file)
    return not GDAL_TAGS.isdisjoint(tags) or (
        _subsampled(tags) and find_spec("rasterio") is not None
    )


def georeferences(files: Iterable[ImageFile], log: LogCallback) -> dict[str, Georeference]:
    """Return the georeferences of the local images that have one, by the keys of the images.

    Args:
        log: called with one sentence about georeferences that cannot be used.
    """
    found: dict[str, Georeference] = {}
    for file in files:
        path = file.source
        try:
            if not isinstance(path, Path) or not _may_have_place(path):
                continue
            place = read_georeference(path)
            if place is not None and _is_rotated(path):
                log(f"{path} has a georeference and an EXIF rotation; its label map has no place")
            elif place is not None:
                found[file.key] = place
        except MissingPackageError as error:
            log(f"the label map of {path} has no georeference: {error}")
            break
        except InputError as error:
            log(f"{error}; its label map has no georeference")
    return found


def _may_have_place(path: Path) -> bool:
    if has_side_file(path):
        return True
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return False
    with suppress(OSError, ValueError, struct.error), path.open("rb") as file:
        return not PLACE_TAGS.isdisjoint(tiff_values(file))
    return False  # reading the pixels says what is wrong


def _is_rotated(path: Path) -> bool:
    with suppress(ImageError), opened(path) as image:
        return image.getexif().get(ORIENTATION, 1) != 1
    return False


def _subsampled(tags: Tags) -> bool:
    """Return whether a TIFF has chroma subsampling that its compression does not undo."""
    return (
        tags.get(PHOTOMETRIC) == (YCBCR,)
        and tags.get(COMPRESSION, (1,))[0] not in CONVERTING
        and tags.get(SUBSAMPLING, (2, 2)) != (1, 1)
    )


def tiff_tags(file: BinaryIO) -> set[int]:
    """Return the numbers of the tags of the first image of a TIFF or BigTIFF.

    Raises:
        ValueError: the file is neither.
    """
    return set(tiff_values(file))


def tiff_values(file: BinaryIO) -> dict[int, tuple[float, ...]]:
    """Return the tags of the first image of a TIFF or BigTIFF with the values of
    :data:`primaps.scenes.colors.COLOR_TAGS`; other values are empty.

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
    found: dict[int, tuple[float, ...]] = {}
    for i in range(0, len(data) - size + 1, size):
        code, kind, number = struct.unpack_from(f"{order}HH{offset}", data, i)
        found[code] = ()
        if code not in COLOR_TAGS or kind not in TAG_TYPES or not 0 < number <= MAX_VALUES:
            continue
        unit, parts = TAG_TYPES[kind]
        form = f"{order}{number * parts}{unit}"
        value = data[i + size - struct.calcsize("<" + offset) : i + size]
        if struct.calcsize(form) > len(value):
            file.seek(struct.unpack(order + offset, value)[0])
            value = file.read(struct.calcsize(form))
        numbers = struct.unpack_from(form, value)
        if parts == 2:  # fractions
            numbers = tuple(a / b if b else 0.0 for a, b in zip(*[iter(numbers)] * 2, strict=True))
        found[code] = numbers
    return found


# GeoTIFF and other map formats


def open_geotiff(
    path: Path,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    alpha: bool = True,
) -> Scene:
    """Open a scene by rasterio; nodata, alpha, masks and NaN make pixels invalid."""
    rasterio = geo_module("rasterio")
    environment = rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_NUM_THREADS=1)
    with ExitStack() as datasets:  # closed on an error
        with decoding_errors(path), environment, warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            full = datasets.enter_context(rasterio.open(path))
            levels = [full]
            # Overviews average values that the file does not declare as nodata.
            count = len(full.overviews(1)) if full.count and nodata is None else 0
            for i in range(count):
                levels.append(datasets.enter_context(rasterio.open(path, overview_level=i)))
            source = _GdalSource(path, levels, environment)
            scene = source.scene(bands, nodata, alpha)
        datasets.pop_all()
    return scene


class _GdalSource:
    """An open file of GDAL.

    Args:
        path: the file.
        levels: the dataset, and one dataset per overview.
        environment: settings of GDAL.
    """

    def __init__(self, path: Path, levels: list[Any], environment: Any) -> None:
        self.path, self.levels, self.environment = path, levels, environment
        self.full, self.lock = levels[0], threading.Lock()
        self.names = [each.name for each in self.full.colorinterp]
        self.tags = self._tags()
        structure = self.full.tags(ns="IMAGE_STRUCTURE")
        # libtiff has converted these colors to RGB, and GDAL adds an alpha band that is opaque.
        self.converted = structure.get("SOURCE_COLOR_SPACE") in ("CMYK", "CIELAB", "YCbCr")
        self.opaque = self.converted and "alpha" in self.names

    def scene(self, bands: Sequence[int] | None, nodata: float | None, alpha: bool) -> Scene:
        full, path = self.full, self.path
        coloring, stored, picked = self._colors(bands)
        dtype = np.dtype(full.dtypes[stored[0] - 1].replace("complex_int16", "complex64"))
        missing = _nodata_value(path, nodata, dtype)
        masked = self._masked(stored, alpha)

        def read(level: int, box: Box) -> Block:
            window = ((box.top, box.bottom), (box.left, box.right))
            with self.lock, decoding_errors(path), self.environment:
                samples = self.levels[level].read(stored, window=window)
                valid = np.isfinite(samples).all(0) & _has_data(samples, missing)
                if masked:
                    valid &= (self.levels[level].read_masks(stored, window=window) > 0).any(0)
            return coloring.convert(samples)[picked], valid

        def close() -> None:
            for level in self.levels:
                level.close()

        place = dataset_georeference(full)
        return Scene(
            path,
            tuple((level.height, level.width) for level in self.levels),
            read,
            eight_bit=dtype == np.uint8 if coloring.eight_bit is None else coloring.eight_bit,
            all_valid=not masked and nodata is None and dtype.kind not in "fc",
            by_rows=full.block_shapes[0][1] == full.width,
            pixel_bytes=len(stored) * dtype.itemsize + coloring.work_bytes,
            georeference=place,
            meters=_meters(place, full.height, full.width),
            sample_factor=coloring.factor if coloring.linear else None,
            sample_offset=coloring.offset,
            close=close,
        )

    def _tags(self) -> dict[int, tuple[float, ...]]:
        """Return the tags that colors depend on, as far as GDAL or the file has them."""
        tags: dict[int, tuple[float, ...]] = {}
        if self.full.driver in ("GTiff", "COG"):
            with self.path.open("rb") as file:
                tags = {code: value for code, value in tiff_values(file).items() if value}
        elif {"cyan", "magenta", "yellow", "black"} <= set(self.names):
            tags[PHOTOMETRIC] = (CMYK,)
        elif {"Y", "Cb", "Cr"} <= set(self.names):
            tags[PHOTOMETRIC] = (YCBCR,)
        if bits := self.full.tags(1, ns="IMAGE_STRUCTURE").get("NBITS"):
            tags[BITS] = (int(bits),)
        return tags

    def _colors(self, bands: Sequence[int] | None) -> tuple[Coloring, list[int], Any]:
        """Return the conversion, the bands that it takes, and the selection from its result."""
        full, path = self.full, self.path
        if self.converted:
            stored = select_bands(path, 3, bands, (1, 2, 3))
            return Coloring(), stored, slice(None)
        dtype = np.dtype(full.dtypes[0].replace("complex_int16", "complex64"))
        coloring = tiff_coloring(path, self.tags, dtype, full.count)
        if coloring.bands is not None:
            return coloring, *_selected(path, coloring, bands)
        stored = select_bands(path, full.count, bands, self._rgb_bands())
        table = self._palette(stored[0]) if len(stored) == 1 else None
        return coloring if table is None else palette(table), stored, slice(None)

    def _rgb_bands(self) -> list[int] | None:
        wanted, names = ("red", "green", "blue"), self.names
        return [names.index(name) + 1 for name in wanted] if set(wanted) <= set(names) else None

    def _palette(self, band: int) -> np.ndarray | None:
        """Return the colors (3, n) of a band of palette indices."""
        if self.names[band - 1] != "palette":
            return None
        colors = self.full.colormap(band)
        table = np.zeros((3, max(colors) + 1), np.uint8)
        for index, color in colors.items():
            table[:, index] = color[:3]
        # GDAL makes a palette of gray from MINISWHITE, which would hide the range of the samples.
        gray = (table == table[:1]).all()
        return None if gray and self.tags.get(PHOTOMETRIC) == (MINISWHITE,) else table

    def _masked(self, stored: list[int], alpha: bool) -> bool:
        """Return whether the masks of GDAL are to be read."""
        flags = geo_module("rasterio").enums.MaskFlags
        each = self.full.mask_flag_enums
        by_alpha = any(flags.alpha in one for one in each)
        selected = {i + 1 for i, name in enumerate(self.names) if name == "alpha"} & {*stored}
        if self.opaque or (by_alpha and (not alpha or selected)):
            return False
        return any(flags.all_valid not in one for one in each)


def _selected(
    path: Path, coloring: Coloring, bands: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """Return the bands of a color space, and the selection from red, green and blue."""
    assert coloring.bands is not None
    picked = select_bands(path, 3, bands, (1, 2, 3))
    return list(coloring.bands), [band - 1 for band in picked]


# TIFF and slides without a georeference


def tifffile_module() -> Any:
    """Import tifffile, or raise a MissingPackageError."""
    try:
        import tifffile
    except ImportError:
        raise MissingPackageError(
            "TIFF scenes and slides need tifffile: pip install 'primaps[slides]'"
        ) from None
    # Without a handler its messages about damaged files are printed beside our sentence.
    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return tifffile


def open_tiff(
    path: Path,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    alpha: bool = True,
) -> Scene:
    """Open the first image of a TIFF by tifffile, with the smaller levels of its pyramid."""
    tifffile = tifffile_module()
    with ExitStack() as files:  # closed on an error
        with decoding_errors(path):
            file = files.enter_context(tifffile.TiffFile(path))
        scene = _tiff_scene(path, file, bands, nodata, alpha)
        files.pop_all()
    return scene


def _tiff_scene(
    path: Path, file: Any, bands: Sequence[int] | None, nodata: float | None, alpha: bool
) -> Scene:
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
    coloring, stored, picked = _tiff_colors(path, page, count, bands)
    kinds = [kind.value for kind in page.extrasamples]
    alphas = [count - len(kinds) + i + 1 for i, kind in enumerate(kinds) if kind in (1, 2)]
    mask = alphas[0] if alphas and alpha and alphas[0] not in stored else None
    missing = _nodata_value(path, nodata, page.dtype)
    lock = threading.Lock()

    def read(level: int, box: Box) -> Block:
        wanted = stored if mask is None else [*stored, mask]
        with lock, decoding_errors(path):
            samples = _read_tiff(file, levels[level], [band - 1 for band in wanted], box)
        valid = np.isfinite(samples).all(0)
        if mask is not None:
            valid &= samples[-1] > 0
            samples = samples[:-1]
        valid &= _has_data(samples, missing)
        return coloring.convert(samples)[picked], valid

    levels = levels if nodata is None else levels[:1]  # smaller levels average nodata values
    return Scene(
        path,
        tuple((pages[0].imagelength, pages[0].imagewidth) for pages in levels),
        read,
        eight_bit=page.dtype == np.uint8 if coloring.eight_bit is None else coloring.eight_bit,
        all_valid=mask is None and nodata is None and page.dtype.kind not in "fc",
        by_rows=not page.is_tiled,
        pixel_bytes=len(stored) * page.dtype.itemsize + coloring.work_bytes,
        meters=_slide_ground_size(file, page),
        sample_factor=coloring.factor if coloring.linear else None,
        sample_offset=coloring.offset,
        close=file.close,
    )


def _tiff_colors(
    path: Path, page: Any, count: int, bands: Sequence[int] | None
) -> tuple[Coloring, list[int], Any]:
    """Return the conversion, the bands that it takes, and the selection from its result."""
    if page.dtype is None:
        raise SceneError(
            f"{path} has samples of {page.bitspersample} bits in a format that is not supported; "
            f"convert it, such as: gdal_translate {path.name} new.tif"
        )
    tags = _page_tags(page)
    if _subsampled(tags):
        raise SceneError(
            f"{path} is YCbCr with chroma subsampling, which tifffile does not read: install "
            f"primaps[geo], or convert it, such as: gdal_translate {path.name} rgb.tif"
        )
    if page.photometric == PALETTE and page.colormap is not None:
        stored = select_bands(path, count, bands)
        if stored == [1]:
            return palette(color_table(page.colormap)), stored, slice(None)
        return Coloring(), stored, slice(None)
    coloring = tiff_coloring(path, tags, page.dtype, count)
    if coloring.bands is not None:
        return coloring, *_selected(path, coloring, bands)
    declared = (1, 2, 3) if page.photometric.name == "RGB" else None
    return coloring, select_bands(path, count, bands, declared), slice(None)


def _page_tags(page: Any) -> dict[int, tuple[float, ...]]:
    """Return the tags that colors depend on; fractions as numbers."""
    found: dict[int, tuple[float, ...]] = {}
    for code in COLOR_TAGS & {tag.code for tag in page.tags}:
        value = page.tags[code].value
        numbers = tuple(map(float, value if isinstance(value, tuple) else (value,)))
        if page.tags[code].dtype in (5, 10):
            pairs = zip(numbers[::2], numbers[1::2], strict=True)
            numbers = tuple(a / b if b else 0.0 for a, b in pairs)
        found[code] = numbers
    return found


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


def _is_contiguous(page: Any) -> bool:
    """Return whether rows are stored one after the other as they are in memory."""
    return page.is_contiguous and page.fillorder == 1


def _refuse_large_segments(path: Path, page: Any) -> None:
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    size = math.prod(_segment_size(page)) * samples * page.dtype.itemsize
    if size > SEGMENT_BYTES and not _is_contiguous(page):
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
            read = _read_contiguous if _is_contiguous(page) else _read_segments
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
