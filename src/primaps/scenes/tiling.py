"""Tiling of a scene: options, positions of tiles, blending weights."""

from __future__ import annotations

import glob
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from primaps.backbones.backbone import Backbone, image_side
from primaps.config import CrfTile, Scale, Size
from primaps.data import LogCallback
from primaps.data.storage import ARCHIVES, is_url
from primaps.scenes.nodata import undeclared_nodata
from primaps.scenes.readers import open_scene
from primaps.scenes.source import Scene
from primaps.scenes.view import View, stretch_limits, view_scale
from primaps.utils.errors import InputError
from primaps.utils.parallel import lane_count
from primaps.utils.validation import validate_fields

Span = tuple[int, int]


@dataclass(frozen=True)
class TilingOptions:
    """Scale, colors and tiles at which a network processes a scene.

    A network pixel covers ``scale`` x ``scale`` pixels of the scene.

    Attributes:
        size: side of the tiles that the network processes one by one, in network pixels, rounded
            to patches; None is the size that the model was fitted at.
        tile_overlap: overlap of neighboring tiles in network pixels, at most half of the size; None
            is an eighth of the size.
        crf_tile: side of the tiles that the CRF refines, in network pixels, at least 168. A
            smaller tile needs less memory and hardly changes the result. None is 840, and smaller
            above 12 classes.
        scale: scene pixels per network pixel, along each side; None is 1.
        mpp: ground size of a network pixel in meters, in place of ``scale``.
        bands: bands to use as red, green and blue, counted from 1; None means as declared in the
            file.
        stretch: band values that become black and white; None is the 2nd and 98th percentile of
            the scene, and leaves 8-bit bands unchanged.
        nodata: value of pixels without data, in addition to what the file declares. A pixel has no
            data if all selected bands have it.
        alpha: whether the alpha band of a scene makes pixels invalid. False treats it as data, such
            as near infrared.

    Raises:
        InputError: a value is out of its range.
    """

    size: Size | None = None
    tile_overlap: Annotated[int, Ge(0)] | None = None
    crf_tile: CrfTile | None = None
    scale: Scale | None = None
    mpp: Scale | None = None
    bands: list[Annotated[int, Ge(1)]] | None = None
    stretch: tuple[float, float] | None = None
    nodata: float | None = None
    alpha: bool = True

    def __post_init__(self) -> None:
        validate_fields(self)
        if self.stretch is not None and not self.stretch[0] < self.stretch[1]:
            low, high = self.stretch
            raise InputError(
                f"stretch: the black value {low:g} must be below the white value {high:g}"
            )

    def open(self, path: Path, log: LogCallback | None = None) -> Scene:
        """Open a scene with the selected bands and nodata.

        Args:
            path: the scene.
            log: called with one sentence if the scene seems to have nodata that is not declared.
        """
        scene = open_scene(path, self.bands, self.nodata, self.alpha)
        try:
            if log is not None and self.nodata is None and (found := undeclared_nodata(scene)):
                log(found)
        except BaseException:
            scene.close()
            raise
        return scene

    def view(self, scene: Scene, seed: int = 0) -> View:
        """Return the scene at the selected scale and colors."""
        scale = view_scale(scene, self.scale, self.mpp)
        return View(scene, scale, stretch_limits(scene, seed, self.stretch))

    def tiles(self, view: View, network: Backbone, size: int, classes: int = 1) -> Tiles:
        """Return the tiles of a view; ``size`` is the default side."""
        side = image_side(network, self.size or size, lane_count(network.device), classes)
        overlap = side // 8 if self.tile_overlap is None else self.tile_overlap
        return plan_tiles(view.height, view.width, network.patch_size, side, overlap)


@dataclass(frozen=True)
class Tiles:
    """Overlapping tiles of a token grid.

    Attributes:
        patch: network pixels per token, along each side.
        rows, columns: size of the grid in tokens.
        side: height and width of a tile in tokens; less than requested if the grid is smaller.
        tops, lefts: first rows and columns of tiles; every top with every left is a tile.
    """

    patch: int
    rows: int
    columns: int
    side: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    def inner(self, i: int, j: int) -> tuple[Span, Span]:
        """Return the rows and columns of tokens that tile (i, j) keeps without its margin."""
        rows = inner_spans(self.rows, self.tops, self.side[0])[i]
        return rows, inner_spans(self.columns, self.lefts, self.side[1])[j]


def plan_tiles(height: int, width: int, patch: int, size: int, overlap: int) -> Tiles:
    """Place as few tiles as the overlap allows, evenly spaced.

    Args:
        height, width: size of the view in network pixels.
        patch: network pixels per token.
        size: side of a tile in network pixels; rounded to patches.
        overlap: overlap of neighboring tiles in network pixels; rounded up to patches.

    Raises:
        InputError: the overlap is negative or more than half of the size.

    Examples:
        >>> tiles = plan_tiles(32, 100, 8, 32, 8)
        >>> tiles.side, tiles.tops, tiles.lefts
        ((4, 4), (0,), (0, 3, 6, 9))
    """
    side, common = max(1, round(size / patch)), -(-overlap // patch)
    if not 0 <= 2 * common <= side:
        raise InputError(f"--tile-overlap {overlap} must be between 0 and half of the size {size}")
    rows, columns = -(-height // patch), -(-width // patch)
    tops, lefts = (tile_starts(length, side, common) for length in (rows, columns))
    return Tiles(patch, rows, columns, (min(side, rows), min(side, columns)), tops, lefts)


def tile_starts(length: int, side: int, overlap: int) -> tuple[int, ...]:
    """Return the first cells of tiles along one axis; the last tile ends with the axis.

    Examples:
        >>> tile_starts(10, 4, 1), tile_starts(3, 4, 1), tile_starts(11, 4, 0)
        ((0, 3, 6), (0,), (0, 4, 7))
    """
    last = length - side
    if last <= 0:
        return (0,)
    steps = math.ceil(last / (side - overlap))
    return (*(round(last * i / steps) for i in range(steps)), last)


def inner_spans(length: int, starts: tuple[int, ...], side: int) -> list[Span]:
    """Return the cells of an axis that each tile keeps: neighbors meet in the middle of their
    overlap.

    Examples:
        >>> inner_spans(10, (0, 3, 6), 4)
        [(0, 3), (3, 6), (6, 10)]
    """
    ends = [(left + side + right) // 2 for left, right in pairwise(starts)]
    return list(zip([0, *ends], [*ends, length], strict=True))


def crf_spans(length: int, side: int, margin: int) -> list[tuple[Span, Span]]:
    """Return the CRF tiles along one axis, each with the cells that it keeps.

    They are as few as ``side`` allows, and no longer than their number requires.
    """
    number = len(tile_starts(length, side, 2 * margin))
    side = math.ceil((length + (number - 1) * 2 * margin) / number)
    starts = tile_starts(length, side, 2 * margin)
    spans = [(start, min(length, start + side)) for start in starts]
    return list(zip(spans, inner_spans(length, starts, side), strict=True))


def cosine_weights(side: tuple[int, int]) -> Float[Tensor, "n m"]:
    """Return the blending weight of every token of a tile.

    Weights are squared sines of half a period per axis. They are largest in the middle, and small
    but positive at the border, where the network has context on one side only.
    """
    rows, columns = (np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in side)
    return torch.from_numpy(np.outer(rows, columns).astype(np.float32))


def is_scene(inputs: list[str], out: Path) -> bool:
    """Return whether a command processes one scene: one input file, and a TIFF as output.

    Raises:
        InputError: the output is a TIFF, and the input is several images or a folder.
    """
    if out.suffix.lower() not in (".tif", ".tiff") or out.is_dir():
        return False
    path = Path(inputs[0]).expanduser()
    if len(inputs) > 1:
        found = f"there are {len(inputs)} inputs"
    elif path.is_dir():
        found = f"{path} is a folder"
    elif is_url(inputs[0]) or path.suffix.lower() in ARCHIVES:
        found = f"{inputs[0]} is an archive or a URL"
    elif not path.exists() and glob.has_magic(inputs[0]):
        found = f"{inputs[0]} is a pattern of several files"
    else:
        return True
    raise InputError(
        f"--out {out} is the result of one scene, but {found}; give one image file, or a folder as "
        "--out"
    )
