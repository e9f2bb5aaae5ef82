"""Shapes that people draw in annotation tools: areas with pixels, and lines and points without.

Readers parse files to shapes; :func:`paint` rasterizes a shape. Coordinates are (x, y) in pixels of
the image, and pixel (0, 0) covers 0 to 1 in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from PIL import Image, ImageDraw

from primaps.geometry.outlines import MAX_COORDINATE, fill
from primaps.geometry.rle import polygon_positions
from primaps.utils.errors import InputError

Kind = Literal["area", "line", "point", "box"]
Rule = Literal["center", "coco", "drawn"]
Region = tuple[int, int, Bool[np.ndarray, "bh bw"]]
"""Left, top, and the mask of a shape in this box, which lies inside the image."""


@dataclass(frozen=True)
class Polygon:
    """The area of closed lines.

    Attributes:
        rings: points of each line.
        rule: pixels that belong to it. ``center``: their centers lie inside an odd number of
            rings. ``coco``: the union of the rings, each filled as pycocotools does. ``drawn``:
            the union of the rings, each filled with its line, as OpenCV and Ultralytics do.
        box: whether it was drawn as an upright box, which may also bound an object.
    """

    rings: Sequence[Float[np.ndarray, "_ 2"]]
    rule: Rule = "center"
    box: bool = False
    kind: ClassVar[Kind] = "area"

    def region(self, height: int, width: int) -> Region:
        """Return the pixels of the shape in an image of this size."""
        if self.rule == "coco":
            positions = polygon_positions(self.rings, height, width)
            return Pixels.from_columns(positions, height).region(height, width)
        left, top, right, bottom = _box(np.concatenate(self.rings), height, width)
        rings = [ring - [left, top] for ring in self.rings]
        if self.rule == "center":
            return left, top, fill(rings, bottom - top, right - left)
        return left, top, _drawn(rings, bottom - top, right - left)


@dataclass(frozen=True)
class Ellipse:
    """The pixels whose centers lie inside an ellipse.

    Attributes:
        center: (x, y).
        radii: along x and along y, before the rotation.
        degrees: rotation about the center, clockwise as displayed.
    """

    center: tuple[float, float]
    radii: tuple[float, float]
    degrees: float = 0.0
    kind: ClassVar[Kind] = "area"

    def region(self, height: int, width: int) -> Region:
        """Return the pixels of the shape in an image of this size."""
        (x, y), reach = self.center, max(self.radii)
        corners = np.array([[x - reach, y - reach], [x + reach, y + reach]])
        left, top, right, bottom = _box(corners, height, width)
        down = np.arange(top, bottom)[:, None] + 0.5 - y
        across = np.arange(left, right) + 0.5 - x
        cosine, sine = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        along, beside = across * cosine + down * sine, down * cosine - across * sine
        inside = (along / self.radii[0]) ** 2 + (beside / self.radii[1]) ** 2 <= 1
        return left, top, inside


@dataclass(frozen=True)
class Pixels:
    """A mask in its box, which lies inside the image.

    Attributes:
        left: first column of the box.
        top: first row of the box.
        mask: pixels of the shape.
    """

    left: int
    top: int
    mask: Bool[np.ndarray, "bh bw"]
    kind: ClassVar[Kind] = "area"

    def region(self, height: int, width: int) -> Region:
        """Return the pixels of the shape in an image of this size."""
        return self.left, self.top, self.mask

    @classmethod
    def from_columns(cls, positions: Integer[np.ndarray, " n"], height: int) -> Pixels:
        """Make a mask of sorted positions, which are counted down the columns as COCO does.

        Examples:
            >>> Pixels.from_columns(np.array([3, 4]), 2)
            Pixels(left=1, top=0, mask=array([[False,  True],
                   [ True, False]]))
        """
        if not len(positions):
            return cls(0, 0, np.zeros((0, 0), bool))
        left, right = int(positions[0]) // height, int(positions[-1]) // height + 1
        columns = np.zeros((right - left) * height, bool)
        columns[positions - left * height] = True
        return cls(left, 0, columns.reshape(-1, height).T)


@dataclass(frozen=True)
class Line:
    """A line of connected points.

    Attributes:
        points: (x, y) of each point.
    """

    points: Float[np.ndarray, "n 2"]
    kind: ClassVar[Kind] = "line"


@dataclass(frozen=True)
class Points:
    """One or more points.

    Attributes:
        points: (x, y) of each point.
    """

    points: Float[np.ndarray, "n 2"]
    kind: ClassVar[Kind] = "point"


@dataclass(frozen=True)
class Bounds:
    """A box that bounds an object; which of its pixels show the object is unknown.

    Attributes:
        corners: (x, y) of the upper left and of the lower right corner.
    """

    corners: Float[np.ndarray, "2 2"]
    kind: ClassVar[Kind] = "box"


Shape = Polygon | Ellipse | Pixels | Line | Points | Bounds


def rectangle(
    left: float,
    top: float,
    right: float,
    bottom: float,
    degrees: float = 0.0,
    pivot: tuple[float, float] | None = None,
) -> Polygon:
    """Return a rectangle that is rotated clockwise, about its center or about ``pivot``.

    Examples:
        >>> rectangle(0, 0, 4, 2, 90).rings[0].round(9).tolist()
        [[3.0, -1.0], [3.0, 3.0], [1.0, 3.0], [1.0, -1.0]]
    """
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)
    center = np.array(pivot or ((left + right) / 2, (top + bottom) / 2))
    if degrees:
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        corners = (corners - center) @ np.array([[cosine, sine], [-sine, cosine]]) + center
    return Polygon([corners], box=not degrees)


def ellipse(
    x: float, y: float, radius_x: float, radius_y: float, where: str, degrees: float = 0.0
) -> Ellipse:
    """Return an ellipse.

    Raises:
        InputError: A radius is not positive.
    """
    if not 0 < min(radius_x, radius_y) <= max(radius_x, radius_y) < MAX_COORDINATE:
        raise InputError(
            f"{where}: the radii of an ellipse are {radius_x:g} and {radius_y:g}; they must be "
            "above 0: remove or redraw it"
        )
    return Ellipse((x, y), (radius_x, radius_y), degrees)


def paint(labels: UInt8[np.ndarray, "h w"], shape: Any, value: int) -> bool:
    """Set the pixels of an area to a value; return whether there are any.

    Examples:
        >>> labels = np.zeros((2, 4), np.uint8)
        >>> paint(labels, rectangle(1, 0, 3, 1), 7), labels.tolist()
        (True, [[0, 7, 7, 0], [0, 0, 0, 0]])
    """
    left, top, mask = shape.region(*labels.shape)
    labels[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = value
    return bool(mask.any())


def _box(points: Float[np.ndarray, "n 2"], height: int, width: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the pixels that points touch, within the image."""
    low = np.floor(points.min(0)).clip(0, (width, height)).astype(int)
    high = (np.floor(points.max(0)) + 1).clip(low, (width, height)).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _drawn(
    rings: Sequence[Float[np.ndarray, "_ 2"]], height: int, width: int
) -> Bool[np.ndarray, "h w"]:
    image = Image.new("L", (width, height))
    draw = ImageDraw.Draw(image)
    for ring in rings if height and width else ():
        draw.polygon([(x, y) for x, y in np.floor(ring).tolist()], fill=1, outline=1)
    return np.asarray(image, bool)
