"""Scenes through tifffile: TIFF and BigTIFF without a georeference, pyramids of slides."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from primaps.scenes.source import Block, Box, Scene, SceneError, chosen_bands, damage_named
from primaps.utils.errors import MissingPackageError

JPEG = frozenset((6, 7, 34892, 33007))
"""Compressions whose segments share tables."""
SEGMENT_BYTES = 512 << 20
"""Of a strip or tile that is decoded at once: beyond, memory would not be bounded."""


def tifffile_module() -> Any:
    """tifffile, which is only needed here.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import tifffile
    except ImportError:
        raise MissingPackageError(
            "TIFF scenes and slides need tifffile: pip install 'primaps[slides]'"
        ) from None
    return tifffile


def open_tiff(path: Path, bands: Sequence[int] | None = None) -> Scene:
    """The first image of a TIFF file, with the smaller copies that a pyramid keeps.

    Raises:
        SceneError: it is damaged, has more axes than an image, or nothing says which bands to show.
        InputError: it has no such band.
        MissingPackageError: tifffile is not installed.
    """
    tifffile = tifffile_module()
    with ExitStack() as held:  # closed if the file is refused
        with damage_named(path):
            file = held.enter_context(tifffile.TiffFile(path))
        scene = _scene(path, file, bands)
        held.pop_all()
    return scene


def _scene(path: Path, file: Any, bands: Sequence[int] | None) -> Scene:
    with damage_named(path):
        series = file.series[0]
        levels = [_pages(level) for level in series.levels]
    page = levels[0][0]
    axes = series.axes.replace("C", "S")
    if axes not in ("YX", "YXS", "SYX") or page.imagedepth > 1:
        raise SceneError(
            f"{path} has the axes {series.axes} {series.shape}: write one image of rows, columns "
            "and bands out of it"
        )
    for pages in levels:
        _refuse_giant(path, pages[0])
    count = len(levels[0]) * page.samplesperpixel
    colors = (1, 2, 3) if page.photometric.name in ("RGB", "YCBCR") else None
    shown = chosen_bands(path, count, bands, colors)
    kinds = [kind.value for kind in page.extrasamples]
    alphas = [count - len(kinds) + i + 1 for i, kind in enumerate(kinds) if kind in (1, 2)]
    alpha = alphas[0] if alphas else None
    lock = threading.Lock()

    def read(level: int, box: Box) -> Block:
        wanted = shown if alpha is None else [*shown, alpha]
        with lock, damage_named(path):
            values = _read(file, levels[level], [band - 1 for band in wanted], box)
        valid = np.isfinite(values).all(0)
        if alpha is not None:
            valid &= values[-1] > 0
            values = values[:-1]
        return _as_colors(page, values), valid

    return Scene(
        path,
        tuple((pages[0].imagelength, pages[0].imagewidth) for pages in levels),
        read,
        eight_bit=page.dtype == np.uint8,
        whole=alpha is None and page.dtype.kind != "f",
        strips=not page.is_tiled,
        item=len(shown) * page.dtype.itemsize,
        meters=_metres(file, page),
        close=file.close,
    )


@contextmanager
def tiff_indices(path: Path) -> Iterator[tuple[Callable[[int, int], np.ndarray], tuple[int, int]]]:
    """A file of one band, opened to be read by rows, a palette's indices as they are; and its
    height and width."""
    with tifffile_module().TiffFile(path) as file:
        page = file.pages[0].aspage()

        def rows(top: int, bottom: int) -> np.ndarray:
            return _read(file, [page], [0], Box(top, bottom, 0, page.imagewidth))[0]

        yield rows, (page.imagelength, page.imagewidth)


def _pages(level: Any) -> list[Any]:
    """Pages of a level: one, or one for each band."""
    first = level.keyframe
    planes = level.size // (first.size or 1)
    return [first] if planes == 1 else [page.aspage() for page in level.pages]


def _refuse_giant(path: Path, page: Any) -> None:
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    rows, columns = (
        (page.tilelength, page.tilewidth)
        if page.is_tiled
        else (min(page.rowsperstrip, page.imagelength), page.imagewidth)
    )
    size = rows * columns * samples * page.dtype.itemsize
    if size > SEGMENT_BYTES and not page.is_contiguous:
        raise SceneError(
            f"{path} is compressed in pieces of {size / 1e9:.1f} GB, each to be decoded at once: "
            "save it in tiles"
        )


def _read(
    file: Any, pages: list[Any], bands: list[int], box: Box
) -> Shaped[np.ndarray, "bands h w"]:
    """Bands, counted from 0, of a rectangle."""
    each = pages[0].samplesperpixel
    shape = (len(bands), box.bottom - box.top, box.right - box.left)
    out = np.zeros(shape, pages[0].dtype)
    for number, page in enumerate(pages):
        own = [(place, band - number * each) for place, band in enumerate(bands)
               if 0 <= band - number * each < each]  # fmt: skip
        if own:
            reader = _contiguous if page.is_contiguous else _segments
            reader(file, page, own, box, out)
    return out


def _contiguous(
    file: Any, page: Any, own: list[tuple[int, int]], box: Box, out: np.ndarray
) -> None:
    """Rows of pixels that lie one behind the other, as they are."""
    dtype = np.dtype(page.dtype).newbyteorder(file.byteorder)
    samples, width, height = page.samplesperpixel, page.imagewidth, page.imagelength
    together = page.planarconfig == 1
    row = width * (samples if together else 1)
    rows = box.bottom - box.top
    for plane in [0] if together else sorted({band for _, band in own}):
        at = page.dataoffsets[0] + (plane * height + box.top) * row * dtype.itemsize
        file.filehandle.seek(at)
        data = file.filehandle.read(rows * row * dtype.itemsize)
        if len(data) < rows * row * dtype.itemsize:
            raise ValueError(f"the file ends before row {box.bottom}")
        values = np.frombuffer(data, dtype).reshape(rows, width, -1)[:, box.left : box.right]
        for place, band in own:
            if together or band == plane:
                out[place] = values[:, :, band if together else 0]


def _segments(file: Any, page: Any, own: list[tuple[int, int]], box: Box, out: np.ndarray) -> None:
    """Tiles or strips that the rectangle meets, decoded."""
    if page.is_tiled:
        high, wide = page.tilelength, page.tilewidth
    else:
        high, wide = min(page.rowsperstrip, page.imagelength), page.imagewidth
    across, down = -(-page.imagewidth // wide), -(-page.imagelength // high)
    tables = {}
    if page.compression in JPEG:
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
    together = page.planarconfig == 1
    for plane in [0] if together else sorted({band for _, band in own}):
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
                for place, band in own:
                    if together or band == plane:
                        out[place, rows, columns] = part[..., band if together else 0]


def _as_colors(page: Any, values: np.ndarray) -> np.ndarray:
    """Indices of a palette to colors; gray counted from white to gray counted from black."""
    if page.photometric.name == "PALETTE" and page.colormap is not None:
        return (page.colormap >> 8).astype(np.uint8)[:, values[0]]
    if page.photometric.name == "MINISWHITE" and page.dtype.kind == "u":
        return np.iinfo(page.dtype).max - values
    return values


def _metres(file: Any, page: Any) -> float | None:
    """Size of a pixel of a slide, which its scanner wrote; resolutions in dpi say nothing."""
    if file.is_ome:
        found = re.search(r'PhysicalSizeX="([\d.eE+-]+)"', file.ome_metadata or "")
        unit = re.search(r'PhysicalSizeXUnit="([^"]+)"', file.ome_metadata or "")
        factors = {"µm": 1e-6, "um": 1e-6, "nm": 1e-9, "mm": 1e-3}
        factor = factors.get(unit.group(1), 0.0) if unit else 1e-6
        return float(found.group(1)) * factor or None if found else None
    found = re.search(r"\bMPP\s*=\s*([\d.]+)", page.description or "")
    return float(found.group(1)) * 1e-6 if found else None
