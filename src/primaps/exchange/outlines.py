"""Outlines of a connected mask: exact rings along the sides of pixels, and one line for YOLO."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Integer

# A side of a pixel runs right, down, left or up, with the mask on its right hand; this is what lies
# from its start to its end, and from its start to the pixel it belongs to.
_STEP = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
_PIXEL = np.array([[0, 0], [-1, 0], [-1, -1], [0, -1]])


@dataclass(frozen=True)
class Ring:
    """A closed line around a mask or around a hole in it.

    Attributes:
        vertices: (x, y) of each side's start, on the grid of pixel corners.
        pixels: (x, y) of the pixel of the mask that each side belongs to.
    """

    vertices: Integer[np.ndarray, "n 2"]
    pixels: Integer[np.ndarray, "n 2"]

    @property
    def corners(self) -> Integer[np.ndarray, "m 2"]:
        """The vertices at which the line turns."""
        step = np.roll(self.vertices, -1, 0) - self.vertices
        return self.vertices[(step != np.roll(step, 1, 0)).any(1)]


def trace(mask: Bool[np.ndarray, "h w"]) -> list[Ring]:
    """The rings of a connected mask: the outer one clockwise, then its holes counter-clockwise.

    Where two pixels of the mask touch at a corner alone the line passes between the other two, so
    that no ring meets itself: holes touch each other, or the outer ring, in points at most, which
    makes every result a valid polygon.

    Args:
        mask: its pixels are connected over their sides.

    Examples:
        >>> ring = np.ones((3, 3), bool); ring[1, 1] = False
        >>> [one.corners.tolist() for one in trace(ring)]
        [[[0, 0], [3, 0], [3, 3], [0, 3]], [[1, 2], [2, 2], [2, 1], [1, 1]]]
    """
    inside = np.pad(mask, 1)
    here = inside[1:-1, 1:-1]
    outside = ~inside
    found = (
        np.nonzero(here & outside[:-2, 1:-1]),
        np.nonzero(here & outside[1:-1, 2:]),
        np.nonzero(here & outside[2:, 1:-1]),
        np.nonzero(here & outside[1:-1, :-2]),
    )
    kind = np.repeat(np.arange(4), [len(rows) for rows, _ in found])
    pixels = np.stack(
        [np.concatenate([f[1] for f in found]), np.concatenate([f[0] for f in found])], 1
    )
    vertices = pixels - _PIXEL[kind]
    side = np.full((4, mask.shape[0] + 1, mask.shape[1] + 1), -1)
    side[kind, vertices[:, 1], vertices[:, 0]] = np.arange(len(kind))
    x, y = (vertices + _STEP[kind]).T
    left, ahead, right = (side[(kind + turn) % 4, y, x] for turn in (3, 0, 1))
    follower = np.where(left >= 0, left, np.where(ahead >= 0, ahead, right)).tolist()

    rings = []
    # Sides are listed by kind and row, so the first one left starts at a topmost top side.
    seen = bytearray(len(follower))
    for start in range(len(follower)):
        if seen[start]:
            continue
        path, at = [], start
        while not seen[at]:
            seen[at] = 1
            path.append(at)
            at = follower[at]
        rings.append(Ring(vertices[path], pixels[path]))
    return rings


def keyhole(rings: list[Ring], mask: Bool[np.ndarray, "h w"]) -> Integer[np.ndarray, "n 2"]:
    """One closed line through the pixels at all rings of a mask, for formats without holes.

    Each hole is tied to the ring on its left by a bridge along a row of the mask, which is walked
    there and back: whoever fills the line by the even-odd rule and draws the line itself, as
    OpenCV's ``fillPoly`` does, gets the mask.

    Returns:
        (x, y) of pixels.

    Examples:
        >>> ring = np.ones((3, 3), bool); ring[1, 1] = False
        >>> keyhole(trace(ring), ring)[:6].tolist()
        [[2, 0], [2, 2], [0, 2], [0, 1], [1, 2], [2, 1]]
    """
    line = rings[0].pixels
    # A hole's bridge leads to a ring that reaches further to the left: those are tied first.
    for hole in sorted(rings[1:], key=lambda ring: int(ring.vertices[:, 0].min())):
        x, y = hole.pixels.T
        begin = np.where(x < hole.vertices[:, 0], x, len(mask[0])).argmin()  # left of the hole
        gaps = np.flatnonzero(~mask[y[begin], : x[begin]])
        target = np.array([gaps[-1] + 1 if len(gaps) else 0, y[begin]])
        at = np.flatnonzero((line == target).all(1))[0]
        around = np.roll(hole.pixels, -begin, 0)
        line = np.concatenate([line[: at + 1], around, around[:1], line[at:]])
    return _turns(line)


def _turns(line: Integer[np.ndarray, "n 2"]) -> Integer[np.ndarray, "m 2"]:
    """A closed line of steps in eight directions without the points that it passes straight."""
    moves = (line != np.roll(line, 1, 0)).any(1)
    line = line[moves] if moves.any() else line[:1]
    (ax, ay), (bx, by) = (line - np.roll(line, 1, 0)).T, (np.roll(line, -1, 0) - line).T
    straight = (ax * by == ay * bx) & (ax * bx + ay * by > 0)
    return line[~straight]
