"""A scene as a network sees it: 8-bit colors, at the scale that was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from primaps.scenes.source import Box, Scene
from primaps.scenes.stretch import to_colors
from primaps.utils.errors import InputError

A = TypeVar("A")
B = TypeVar("B")
READ_BYTES = 16 << 20
"""Of pixels that are read from a file at once."""


@dataclass(frozen=True)
class View:
    """The image that a network looks at, piece by piece.

    Attributes:
        scene: what it is an image of.
        scale: pixels of the scene, per side, that one pixel of the view covers.
        limits: of :func:`primaps.scenes.stretch.stretch_limits`.
    """

    scene: Scene
    scale: float = 1.0
    limits: Float[np.ndarray, "bands 2"] | None = None

    @property
    def height(self) -> int:
        """In pixels of the view; the last row may reach beyond the scene."""
        return math.ceil(self.scene.height / self.scale)

    @property
    def width(self) -> int:
        """In pixels of the view."""
        return math.ceil(self.scene.width / self.scale)

    @property
    def level(self) -> int:
        """The smallest copy of the scene that still has all that the view shows."""
        enough = self.scene.height / self.scale, self.scene.width / self.scale
        sizes = enumerate(self.scene.sizes)
        return max(
            i for i, size in sizes if i == 0 or (size[0] >= enough[0] and size[1] >= enough[1])
        )

    def rows(
        self, top: int, bottom: int
    ) -> tuple[UInt8[np.ndarray, "h width 3"], Bool[np.ndarray, "h width"]]:
        """Colors of rows of the view, and where they show anything."""
        colors = np.empty((bottom - top, self.width, 3), np.uint8)
        valid = np.empty((bottom - top, self.width), bool)
        for box in self._pieces(top, bottom):
            inside = slice(box.top - top, box.bottom - top), slice(box.left, box.right)
            colors[inside], valid[inside] = self.piece(box)
        return colors, valid

    def piece(self, box: Box) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
        """Colors of a rectangle of the view, and where at least half of it shows anything.

        But for rounding a pixel is the same whatever rectangle it is read in.
        """
        level, size = self.level, (box.bottom - box.top, box.right - box.left)
        # Pixels of the level, per side, that a pixel of the view covers.
        height, width = self.scene.sizes[level]
        steps = (self.scale * height / self.scene.height, self.scale * width / self.scene.width)
        if steps == (1.0, 1.0):
            values, valid = self.scene.read(level, box)
            return to_colors(values, valid, self.limits), valid
        ends = [
            box.top * steps[0],
            box.bottom * steps[0],
            box.left * steps[1],
            box.right * steps[1],
        ]
        # A filter reaches a step further; beyond the scene it finds its flipped image.
        reach = [math.ceil(step) + 1 for step in steps]
        around = [math.floor(ends[0]) - reach[0], math.ceil(ends[1]) + reach[0],
                  math.floor(ends[2]) - reach[1], math.ceil(ends[3]) + reach[1]]  # fmt: skip
        found = Box(
            max(0, around[0]), min(height, around[1]), max(0, around[2]), min(width, around[3])
        )
        values, valid = self.scene.read(level, found)
        colors = to_colors(values, valid, self.limits)
        beyond = ((found.top - around[0], around[1] - found.bottom),
                  (found.left - around[2], around[3] - found.right))  # fmt: skip
        source = Image.fromarray(np.pad(colors, (*beyond, (0, 0)), "symmetric"))
        place = (ends[2] - around[2], ends[0] - around[0], ends[3] - around[2], ends[1] - around[0])
        shown = source.resize(size[::-1], Image.Resampling.BILINEAR, box=place)
        if not valid.all():
            share = Image.fromarray(np.pad(valid, beyond, "symmetric").astype(np.uint8) * 255)
            valid = np.asarray(share.resize(size[::-1], Image.Resampling.BOX, box=place)) >= 128
        else:
            valid = np.ones(size, bool)
        return np.asarray(shown), valid

    def _pieces(self, top: int, bottom: int) -> Iterator[Box]:
        """Rectangles that together are rows of the view, each little enough to be read at once."""
        pixels = READ_BYTES / self.scene.item / max(1.0, self.scale) ** 2
        if self.scene.strips:
            step = max(1, min(bottom - top, int(pixels / self.width)))
            for row in range(top, bottom, step):
                yield Box(row, min(bottom, row + step), 0, self.width)
        else:
            step = max(1, min(self.width, int(pixels / (bottom - top))))
            for column in range(0, self.width, step):
                yield Box(top, bottom, column, min(self.width, column + step))


def ahead(function: Callable[[A], B], items: Iterable[A]) -> Iterator[tuple[A, B]]:
    """Each item with what ``function`` makes of it, which is computed in a thread while the one
    before it is in use.

    Examples:
        >>> list(ahead(abs, [-1, 2]))
        [(-1, 1), (2, 2)]
    """
    with ThreadPoolExecutor(1) as pool:
        waiting: list[tuple[A, Future[B]]] = []
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > 1:
                before, future = waiting.pop(0)
                yield before, future.result()
        for before, future in waiting:
            yield before, future.result()


def view_scale(scene: Scene, scale: float | None, mpp: float | None) -> float:
    """Pixels of the scene per pixel of the network, from ``scale`` or from meters per pixel.

    Raises:
        InputError: both are given, one is not positive, or the ground size of a pixel is unknown.
    """
    if scale is not None and mpp is not None:
        raise InputError("--scale and --mpp both say how much a pixel covers: give one of them")
    if mpp is not None and scene.meters is None:
        raise InputError(f"{scene.path} does not say how large its pixels are: give --scale")
    found = scale if mpp is None else mpp / (scene.meters or 1.0)
    found = 1.0 if found is None else found
    if not 0 < found < math.inf:
        raise InputError(f"the scale must be positive, got {found:g}")
    if found > min(scene.height, scene.width):
        raise InputError(f"at scale {found:g} nothing is left of {scene.path}")
    return found
