"""Distinguishable colors for classes and masks."""

from __future__ import annotations

import colorsys

import numpy as np
from jaxtyping import UInt8

# Kelly's colors of maximum contrast (1965) without black, white and gray. The first nine are
# distinguishable with the common forms of color blindness.
_KELLY = [
    *("F3C300", "875692", "F38400", "A1CAF1", "BE0032", "C2B280", "008856", "E68FAC", "0067A5"),
    *("F99379", "604E97", "F6A600", "B3446C", "DCD300", "882D17", "8DB600", "654522", "E25822"),
    "2B3D26",
]


def palette(count: int) -> UInt8[np.ndarray, "count 3"]:
    """Return ``count`` distinguishable colors; the first ones do not depend on ``count``.

    Examples:
        >>> palette(3).tolist()
        [[243, 195, 0], [135, 86, 146], [243, 132, 0]]
    """
    colors = [tuple(bytes.fromhex(code)) for code in _KELLY[:count]]
    for i in range(len(colors), count):  # golden angle, in three levels of brightness
        hue = (i * 0.61803398875) % 1
        rgb = colorsys.hls_to_rgb(hue, (0.45, 0.65, 0.3)[i % 3], 0.75)
        colors.append(tuple(round(255 * c) for c in rgb))
    return np.array(colors, np.uint8).reshape(count, 3)
