"""Find a value of pixels without data that a scene does not declare."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
from jaxtyping import Shaped

from primaps.scenes.source import Box, Scene

SIDE, GRID = 64, 16
"""Side in pixels of the blocks along the border that are read, and maximum number per side."""
STRIP_BYTES = 16 << 20
"""Maximum bytes of whole rows that are read at once."""
MIN_FILLED = 0.9
"""Minimum share of a block that one value fills."""
MIN_BORDER = 0.125
"""Minimum share of the border that one value fills."""


def undeclared_nodata(scene: Scene) -> str | None:
    """Return one sentence if a large part of the border of a scene has one extreme value.

    This is typical of pixels without data: 0, 255, -9999. All bands of these pixels have the value,
    and it is below or above the values of all other pixels that are read. These are blocks along
    the border, and some inside. Pixels that are known to be invalid do not count.
    """
    if scene.sample_factor is None:  # colors, which are not the values of the file
        return None
    pixels: list[np.ndarray] = []
    border: list[float | None] = []
    for values, outer in _blocks(scene):
        pixels.append(values)
        if outer:
            border.append(_filling_value(values))
    counts = Counter(value for value in border if value is not None)
    if not counts:
        return None
    value, count = counts.most_common(1)[0]
    others = np.concatenate([each[:, (each != value).any(0)].ravel() for each in pixels])
    if count < MIN_BORDER * len(border) or not others.size or others.min() < value < others.max():
        return None
    stored = (value - scene.sample_offset) / scene.sample_factor
    share = f"about {count / len(border):.0%} of the border"
    return (
        f"{scene.path}: {share} has the value {stored:.9g}, which is not declared as nodata; if "
        f"these pixels have no data, pass --nodata {stored:.9g}"
    )


def _blocks(scene: Scene) -> Iterator[tuple[Shaped[np.ndarray, "bands n"], bool]]:
    """Yield the valid pixels of blocks, and whether the block is at the border."""
    height, width = scene.sizes[0]
    strip = STRIP_BYTES // (width * scene.pixel_bytes) if scene.by_rows else SIDE
    high, wide = max(1, min(SIDE, strip, height)), min(SIDE, width)
    tops, lefts = _starts(height, high), _starts(width, wide)
    for top in tops:
        whole = scene.read(0, Box(top, top + high, 0, width)) if scene.by_rows else None
        ends = top in (tops[0], tops[-1])
        for left in lefts if ends or whole else {lefts[0], lefts[len(lefts) // 2], lefts[-1]}:
            if whole is None:
                values, valid = scene.read(0, Box(top, top + high, left, left + wide))
            else:
                values, valid = (each[..., left : left + wide] for each in whole)
            if valid.any():
                yield values[:, valid], ends or left in (lefts[0], lefts[-1])


def _starts(length: int, side: int) -> list[int]:
    """Return the first pixels of evenly spaced blocks, which begin and end with the axis."""
    count = min(GRID, math.ceil(length / side))
    return sorted({round(start) for start in np.linspace(0, length - side, count)})


def _filling_value(values: Shaped[np.ndarray, "bands n"]) -> float | None:
    """Return the value that nearly all pixels have in all bands, if there is one."""
    middle = np.partition(values[0], values.shape[1] // 2)[values.shape[1] // 2]
    filled = (values == middle).all(0).mean() >= MIN_FILLED
    return float(middle) if filled else None
