"""A scene as the network gets it: 8-bit RGB at the requested scale, read row by row.

The pixels of a view are called network pixels: one of them covers ``scale`` x ``scale`` pixels of
the scene.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image

from primaps.scenes.source import Box, Scene, SceneError
from primaps.utils.errors import InputError

A = TypeVar("A")
B = TypeVar("B")
READ_BYTES = 16 << 20
"""Maximum bytes of pixels that one read takes from a file."""
LABEL_BLOCK = 1024
"""Side in pixels of the blocks of labels that are computed at once at the scene's size."""
SAMPLE_BLOCKS, SAMPLE_SIDE = 64, 256
"""Number and side in pixels of the blocks that the limits of the stretch are estimated from."""
PERCENTILES = (2.0, 98.0)
"""Percentiles of band values that become black and white."""
EMPTY_COLOR = (124, 116, 104)
"""Color of pixels without a value: the mean of ImageNet, which normalization maps to zero."""


@dataclass(frozen=True)
class View:
    """A scene as 8-bit RGB at a scale.

    Attributes:
        scene: the scene.
        scale: scene pixels per network pixel, along each side.
        limits: from :func:`stretch_limits`.
    """

    scene: Scene
    scale: float = 1.0
    limits: Float[np.ndarray, "bands 2"] | None = None

    @property
    def height(self) -> int:
        """Height in network pixels; the last row may extend beyond the scene."""
        return math.ceil(self.scene.height / self.scale)

    @property
    def width(self) -> int:
        """Width in network pixels; the last column may extend beyond the scene."""
        return math.ceil(self.scene.width / self.scale)

    @property
    def level(self) -> int:
        """Number of the smallest resolution level that is at least as large as the view."""
        height, width = self.scene.height / self.scale, self.scene.width / self.scale
        return max(
            i for i, (h, w) in enumerate(self.scene.sizes) if i == 0 or (h >= height and w >= width)
        )

    def rows(
        self, top: int, bottom: int
    ) -> tuple[UInt8[np.ndarray, "h width 3"], Bool[np.ndarray, "h width"]]:
        """Return the colors and the valid pixels of rows of the view."""
        colors = np.empty((bottom - top, self.width, 3), np.uint8)
        valid = np.empty((bottom - top, self.width), bool)
        for box in self.pieces(top, bottom):
            inside = slice(box.top - top, box.bottom - top), slice(box.left, box.right)
            colors[inside], valid[inside] = self.piece(box)
        return colors, valid

    def piece(self, box: Box) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
        """Return the colors of a rectangle, and a mask of the pixels that are at least half valid.

        Up to rounding, a pixel does not depend on the rectangle that it is read in.
        """
        level, size = self.level, box.shape
        height, width = self.scene.sizes[level]
        # Pixels of the level per network pixel.
        steps = (self.scale * height / self.scene.height, self.scale * width / self.scene.width)
        if steps == (1.0, 1.0):
            values, valid = self.scene.read(level, box)
            return to_colors(values, valid, self.limits), valid
        top, bottom = box.top * steps[0], box.bottom * steps[0]
        left, right = box.left * steps[1], box.right * steps[1]
        # The filter reads one more step on each side; beyond the scene, pixels are reflected.
        reach = [math.ceil(step) + 1 for step in steps]
        around = Box(
            math.floor(top) - reach[0],
            math.ceil(bottom) + reach[0],
            math.floor(left) - reach[1],
            math.ceil(right) + reach[1],
        )
        inside = Box(max(0, around.top), min(height, around.bottom),
                     max(0, around.left), min(width, around.right))  # fmt: skip
        values, valid = self.scene.read(level, inside)
        colors = to_colors(values, valid, self.limits)
        beyond = ((inside.top - around.top, around.bottom - inside.bottom),
                  (inside.left - around.left, around.right - inside.right))  # fmt: skip
        source = Image.fromarray(np.pad(colors, (*beyond, (0, 0)), "symmetric"))
        area = (left - around.left, top - around.top, right - around.left, bottom - around.top)
        resized = source.resize(size[::-1], Image.Resampling.BILINEAR, box=area)
        if valid.all():
            return np.asarray(resized), np.ones(size, bool)
        share = Image.fromarray(np.pad(valid, beyond, "symmetric").astype(np.uint8) * 255)
        share = share.resize(size[::-1], Image.Resampling.BOX, box=area)
        return np.asarray(resized), np.asarray(share) >= 128

    def scene_blocks(self, box: Box) -> Iterator[Box]:
        """Yield blocks of the scene that together hold the pixels with centers in ``box``."""
        top, bottom = (self._scene_end(end, self.height, self.scene.height) for end in box[:2])
        left, right = (self._scene_end(end, self.width, self.scene.width) for end in box[2:])
        for y, x in product(range(top, bottom, LABEL_BLOCK), range(left, right, LABEL_BLOCK)):
            yield Box(y, min(bottom, y + LABEL_BLOCK), x, min(right, x + LABEL_BLOCK))

    def scene_valid(
        self, block: Box, valid: Bool[np.ndarray, "h w"], origin: tuple[int, int]
    ) -> Bool[np.ndarray, "bh bw"]:
        """Return the valid pixels of a block of the scene.

        Args:
            valid: valid pixels of the view around the block, which answer at scale 1 without
                another read.
            origin: row and column of the first of them.
        """
        if self.scene.all_valid:
            return np.ones(block.shape, bool)
        if self.scale == 1:
            top, left = origin
            return valid[
                block.top - top : block.bottom - top, block.left - left : block.right - left
            ]
        return self.scene.read(0, block)[1]

    def _scene_end(self, end: int, view: int, scene: int) -> int:
        return scene if end >= view else min(scene, math.ceil(end * self.scale - 0.5))

    def pieces(self, top: int, bottom: int) -> Iterator[Box]:
        """Yield rectangles that together are rows of the view, each small enough for one read."""
        pixels = READ_BYTES / self.scene.pixel_bytes / max(1.0, self.scale) ** 2
        if self.scene.by_rows:
            step = max(1, min(bottom - top, int(pixels / self.width)))
            for row in range(top, bottom, step):
                yield Box(row, min(bottom, row + step), 0, self.width)
        else:
            step = max(1, min(self.width, int(pixels / (bottom - top))))
            for column in range(0, self.width, step):
                yield Box(top, bottom, column, min(self.width, column + step))


def centers(begin: int, end: int, step: float) -> Float[np.ndarray, " n"]:
    """Return the coordinates of pixel centers on a coarser grid.

    Args:
        begin, end: first pixel, and the one after the last.
        step: pixels per cell of the grid; the center of cell i is at i.
    """
    return (np.arange(begin, end) + 0.5) / step - 0.5


def prefetched(function: Callable[[A], B], items: Iterable[A]) -> Iterator[tuple[A, B]]:
    """Yield each item with the value of ``function``; a thread computes the next value meanwhile.

    Examples:
        >>> list(prefetched(abs, [-1, 2]))
        [(-1, 1), (2, 2)]
    """
    with ThreadPoolExecutor(1) as pool:
        previous: tuple[A, Future[B]] | None = None
        for item in items:
            current = item, pool.submit(function, item)
            if previous is not None:
                yield previous[0], previous[1].result()
            previous = current
        if previous is not None:
            yield previous[0], previous[1].result()


def view_scale(scene: Scene, scale: float | None, mpp: float | None) -> float:
    """Return the scene pixels per network pixel from ``--scale`` or ``--mpp``."""
    if scale is not None and mpp is not None:
        raise InputError("--scale and --mpp exclude each other: give one of them")
    if mpp is not None and scene.meters is None:
        raise InputError(f"--mpp: {scene.path} does not declare its ground size; give --scale")
    found = scale or 1.0 if mpp is None else mpp / (scene.meters or 1.0)
    if found > min(scene.height, scene.width):
        raise InputError(
            f"scale {found:g} is larger than {scene.path} ({scene.width}x{scene.height} pixels); "
            "give a smaller one"
        )
    return found


def stretch_limits(
    scene: Scene, seed: int = 0, limits: tuple[float, float] | None = None
) -> Float[np.ndarray, "bands 2"] | None:
    """Return the values of each band that become 0 and 255; None leaves 8-bit values unchanged.

    Given limits are samples of the file. Without them, they are the 2nd and 98th percentile of a
    seeded sample of the whole scene, which is read from the smallest resolution level that is large
    enough. Every tile gets the same stretch.
    """
    if limits is None and scene.eight_bit:
        return None
    if limits is not None:
        bands = len(scene.read(0, Box(0, 1, 0, 1))[0])
        factor = 1.0 if scene.sample_factor is None else scene.sample_factor
        ends = sorted(factor * limit + scene.sample_offset for limit in limits)
        return np.tile(np.array(ends, np.float64), (bands, 1))
    values = np.concatenate(_sampled_values(scene, seed), 1)
    if not values.shape[1]:
        raise SceneError(
            f"{scene.path} has no valid pixel in {SAMPLE_BLOCKS} sampled blocks; give --stretch"
        )
    return np.percentile(values.astype(np.float64), PERCENTILES, axis=1).T


def _sampled_values(scene: Scene, seed: int) -> list[Shaped[np.ndarray, "bands n"]]:
    """Return valid values of random blocks: every seventh, a step that no tile size divides."""
    sizes = enumerate(scene.sizes)
    level = max(i for i, size in sizes if i == 0 or min(size) >= 4 * SAMPLE_SIDE)
    height, width = scene.sizes[level]
    random = np.random.default_rng(seed)
    found = []
    for y, x in random.random((SAMPLE_BLOCKS, 2)):
        top = int(y * max(1, height - SAMPLE_SIDE + 1))
        left = int(x * max(1, width - SAMPLE_SIDE + 1))
        box = Box(top, min(height, top + SAMPLE_SIDE), left, min(width, left + SAMPLE_SIDE))
        values, valid = scene.read(level, box)
        found.append(values[:, valid][:, ::7])
    return found


def to_colors(
    values: Shaped[np.ndarray, "bands h w"],
    valid: Bool[np.ndarray, "h w"],
    limits: Float[np.ndarray, "bands 2"] | None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Convert one or three bands to 8-bit RGB; invalid pixels get a neutral color.

    Examples:
        >>> values = np.array([[[100, 300, 900]]], np.uint16)
        >>> limits = np.array([[100.0, 500.0]])
        >>> to_colors(values, np.array([[True, True, False]]), limits).tolist()
        [[[0, 0, 0], [128, 128, 128], [124, 116, 104]]]
    """
    if limits is not None:
        low, high = limits.astype(np.float32).T[:, :, None, None]
        scaled = (np.where(valid, values, low) - low) / np.maximum(high - low, 1e-20)
        values = (scaled.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    if len(values) == 1:
        values = np.broadcast_to(values, (3, *values.shape[1:]))
    return np.where(valid[..., None], values.transpose(1, 2, 0), np.array(EMPTY_COLOR, np.uint8))
