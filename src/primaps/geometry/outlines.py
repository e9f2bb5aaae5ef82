"""Outlines of masks and pixels of polygons, exact and with numpy alone.

COCO, CVAT, Label Studio, labelme and YOLO store polygons without a map. They have to work without
the extra ``geo``, and no required dependency has these two functions: Pillow draws the outline as
well, matplotlib and contourpy trace through the middle between pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from primaps.utils.errors import InputError

MAX_COORDINATE = 1e7
CROSSINGS = 1 << 22
"""Maximum number of crossings of lines and rows in memory, for polygons of any number of points."""
# A side of a pixel runs right, down, left or up, with the mask on its right hand. _STEP leads from
# its start to its end, _PIXEL from its start to the pixel that it belongs to.
_STEP = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
_PIXEL = np.array([[0, 0], [-1, 0], [-1, -1], [0, -1]])


@dataclass(frozen=True)
class Ring:
    """A closed line around a mask or around a hole in it.

    Attributes:
        corners: (x, y) of the start of each side, on the grid of pixel corners.
        pixels: (x, y) of the pixel of the mask that each side belongs to.
    """

    corners: Integer[np.ndarray, "n 2"]
    pixels: Integer[np.ndarray, "n 2"]


def trace(mask: Bool[np.ndarray, "h w"]) -> list[Ring]:
    """Return the outer ring of a connected mask, clockwise, and its holes, counter-clockwise.

    A ring never meets itself: where two pixels of the mask touch at a corner only, the line passes
    between the two other pixels.

    Args:
        mask: Pixels that are connected over their sides.

    Examples:
        >>> ring = np.ones((3, 3), bool); ring[1, 1] = False
        >>> [one.corners.tolist() for one in trace(ring)][1]
        [[1, 2], [2, 2], [2, 1], [1, 1]]
    """
    inside = np.pad(mask, 1)
    neighbors = inside[:-2, 1:-1], inside[1:-1, 2:], inside[2:, 1:-1], inside[1:-1, :-2]
    sides = [np.argwhere(mask & ~neighbor)[:, ::-1] for neighbor in neighbors]
    direction = np.repeat(np.arange(4), [len(side) for side in sides])
    pixels = np.concatenate(sides)
    corners = pixels - _PIXEL[direction]
    number = np.full((4, mask.shape[0] + 1, mask.shape[1] + 1), -1)
    number[direction, corners[:, 1], corners[:, 0]] = np.arange(len(direction))
    x, y = (corners + _STEP[direction]).T
    left, ahead, right = (number[(direction + turn) % 4, y, x] for turn in (3, 0, 1))
    follower = np.where(left >= 0, left, np.where(ahead >= 0, ahead, right)).tolist()

    rings = []
    # Sides are sorted by direction and row, so the first side belongs to the outer ring.
    visited = bytearray(len(follower))
    for start in range(len(follower)):
        if visited[start]:
            continue
        path, side = [], start
        while not visited[side]:
            visited[side] = 1
            path.append(side)
            side = follower[side]
        rings.append(Ring(corners[path], pixels[path]))
    return rings


def keyhole(mask: Bool[np.ndarray, "h w"]) -> Integer[np.ndarray, "n 2"]:
    """Return one closed line through the outermost pixels of a connected mask and of its holes.

    It is for formats without holes. A bridge along a row of the mask connects each hole to the
    ring on its left, and is traversed in both directions. ``fillPoly`` of OpenCV and
    ``ImageDraw.polygon`` of Pillow, which draw the line and fill it by the even-odd rule, give the
    mask.

    Returns:
        (x, y) of pixels.

    Examples:
        >>> ring = np.ones((3, 3), bool); ring[1, 1] = False
        >>> keyhole(ring)[:6].tolist()
        [[2, 0], [2, 2], [0, 2], [0, 1], [1, 2], [2, 1]]
    """
    outer, *holes = trace(mask)
    line = outer.pixels
    # The bridge of a hole leads to a ring that reaches further left, so that one is tied first.
    for hole in sorted(holes, key=lambda ring: int(ring.corners[:, 0].min())):
        x, y = hole.pixels.T
        begin = np.where(x < hole.corners[:, 0], x, len(mask[0])).argmin()  # left of the hole
        gaps = np.flatnonzero(~mask[y[begin], : x[begin]])
        target = np.array([gaps[-1] + 1 if len(gaps) else 0, y[begin]])
        at = np.flatnonzero((line == target).all(1))[0]
        around = np.roll(hole.pixels, -begin, 0)
        line = np.concatenate([line[: at + 1], around, around[:1], line[at:]])
    return _turns(line)


def _turns(line: Integer[np.ndarray, "n 2"]) -> Integer[np.ndarray, "m 2"]:
    """Remove the collinear points of a closed line."""
    moves = (line != np.roll(line, 1, 0)).any(1)
    line = line[moves] if moves.any() else line[:1]
    (ax, ay), (bx, by) = (line - np.roll(line, 1, 0)).T, (np.roll(line, -1, 0) - line).T
    straight = (ax * by == ay * bx) & (ax * bx + ay * by > 0)
    return line[~straight]


def parse_points(content: Any, where: str, minimum: int = 3) -> Float[np.ndarray, "n 2"]:
    """Return the points of a polygon from a file of another tool.

    Args:
        content: Numbers x, y, x, y, ... or pairs of numbers. Anything else is rejected.
        where: File and image, for error messages.
        minimum: Minimum number of points.

    Raises:
        InputError: The content is not numbers, not finite, too large, or has too few points.
    """
    try:
        points = np.array(content, np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"{where}: the points of a polygon must be pairs of numbers; remove or redraw it"
        ) from None
    if len(points) < minimum or not (np.abs(points) < MAX_COORDINATE).all():
        raise InputError(
            f"{where}: a polygon needs at least {minimum} points inside the image; remove or "
            "redraw it"
        )
    return points


def fill(
    rings: Sequence[Float[np.ndarray, "_ 2"]], height: int, width: int
) -> Bool[np.ndarray, "h w"]:
    """Return the pixels whose centers lie inside an odd number of rings.

    Args:
        rings: Points (x, y) of closed lines; pixel (0, 0) covers 0 to 1 in both.
        height: Height of the mask in pixels.
        width: Width of the mask in pixels.

    Examples:
        >>> fill([np.array([[1.0, 0.0], [3.0, 0.0], [3.0, 1.0], [1.0, 1.0]])], 2, 4).tolist()
        [[False, True, True, False], [False, False, False, False]]
    """
    crossings = np.zeros((height, width + 1), np.int64)
    step = max(1, CROSSINGS // max(height, width, 1))
    for ring in rings:
        following = np.roll(ring, -1, 0)
        for first in range(0, len(ring), step):
            begin, end = ring[first : first + step], following[first : first + step]
            _cross(crossings, begin, end)
    return crossings.cumsum(1)[:, :width] % 2 == 1


def stroke(
    line: Float[np.ndarray, "n 2"], line_width: float, height: int, width: int
) -> Bool[np.ndarray, "h w"]:
    """Return the pixels of a line: those that it crosses, and those within half its width.

    Args:
        line: Points (x, y) of an open line; one point is a dot.
        line_width: Width of the line in pixels.
        height: Height of the mask in pixels.
        width: Width of the mask in pixels.

    Examples:
        >>> stroke(np.array([[0.5, 0.5], [2.5, 0.5]]), 1, 2, 4).astype(int).tolist()
        [[1, 1, 1, 0], [0, 0, 0, 0]]
    """
    mask = np.zeros((height, width), bool)
    radius = line_width / 2
    ends = line[1:] if len(line) > 1 else line
    for begin, end in zip(line, ends, strict=False):
        low = np.floor(np.minimum(begin, end) - radius).clip(0, (width, height)).astype(int)
        high = np.ceil(np.maximum(begin, end) + radius).clip(low, (width, height)).astype(int)
        x = np.arange(low[0], high[0]) + 0.5 - begin[0]
        y = np.arange(low[1], high[1])[:, None] + 0.5 - begin[1]
        dx, dy = end - begin
        fraction = ((x * dx + y * dy) / max(dx * dx + dy * dy, 1e-12)).clip(0, 1)
        near = (x - fraction * dx) ** 2 + (y - fraction * dy) ** 2 < radius**2
        mask[low[1] : high[1], low[0] : high[0]] |= near
        # A thin line may pass between the centers of pixels.
        steps = np.linspace(0, 1, 2 + int(4 * np.abs(end - begin).max()))[:, None]
        column, row = np.floor(begin + steps * (end - begin)).astype(int).T
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        mask[row[inside], column[inside]] = True
    return mask


def _cross(
    crossings: Integer[np.ndarray, "h w1"],
    begin: Float[np.ndarray, "n 2"],
    end: Float[np.ndarray, "n 2"],
) -> None:
    """Count the lines that cross each row of pixel centers, at the first pixel to their right."""
    height, width = crossings.shape[0], crossings.shape[1] - 1
    down = (begin[:, 1] > end[:, 1])[:, None]
    low, high = np.where(down, end, begin), np.where(down, begin, end)
    first, last = (np.ceil(one[:, 1] - 0.5).clip(0, height).astype(int) for one in (low, high))
    counts = last - first
    edge = np.repeat(np.arange(len(begin)), counts)
    row = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + first[edge]
    fraction = (row + 0.5 - low[edge, 1]) / (high - low)[edge, 1]
    x = low[edge, 0] + fraction * (high - low)[edge, 0]
    np.add.at(crossings, (row, np.ceil(x - 0.5).clip(0, width).astype(int)), 1)
