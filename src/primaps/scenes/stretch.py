"""Bands of any depth to 8-bit colors: one stretch for the whole scene, never one per window."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from primaps.scenes.source import Box, Scene, SceneError

BLOCKS, SIDE = 64, 256
"""Of the sample that limits are taken from: number, and pixels of a side."""
SHARES = (2.0, 98.0)
"""Percentiles that become black and white."""
EMPTY_COLOR = (124, 116, 104)
"""What a network sees where there is nothing: the mean that it was trained with, so 0 to it."""


def stretch_limits(
    scene: Scene, seed: int = 0, limits: tuple[float, float] | None = None
) -> Float[np.ndarray, "bands 2"] | None:
    """What becomes 0 and 255 in each band; None leaves 8-bit values as they are.

    Without ``limits`` they are the 2nd and 98th percentile of a seeded sample of the whole scene,
    taken from a smaller copy if the file keeps one that is large enough.

    Raises:
        SceneError: the scene has no valid pixel in the sample.
    """
    if limits is None and scene.eight_bit:
        return None
    level = max(i for i, size in enumerate(scene.sizes) if i == 0 or min(size) >= 4 * SIDE)
    if limits is not None:
        bands = len(scene.read(0, Box(0, 1, 0, 1))[0])
        return np.tile(np.array(limits, np.float64), (bands, 1))
    values = np.concatenate(list(_sample(scene, level, seed)), 1)
    if not values.shape[1]:
        raise SceneError(f"{scene.path} has no valid pixel in a sample of {BLOCKS} places")
    return np.percentile(values.astype(np.float64), SHARES, axis=1).T


def _sample(scene: Scene, level: int, seed: int) -> list[Shaped[np.ndarray, "bands n"]]:
    """Valid values of blocks at random places, every seventh pixel, which is prime to tiles."""
    height, width = scene.sizes[level]
    random = np.random.default_rng(seed)
    found = []
    for y, x in random.random((BLOCKS, 2)):
        top, left = int(y * max(1, height - SIDE + 1)), int(x * max(1, width - SIDE + 1))
        box = Box(top, min(height, top + SIDE), left, min(width, left + SIDE))
        values, valid = scene.read(level, box)
        found.append(values[:, valid][:, ::7])
    return found


def to_colors(
    values: Shaped[np.ndarray, "bands h w"],
    valid: Bool[np.ndarray, "h w"],
    limits: Float[np.ndarray, "bands 2"] | None,
) -> UInt8[np.ndarray, "h w 3"]:
    """8-bit red, green and blue of one or three bands, a neutral color where nothing is.

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
