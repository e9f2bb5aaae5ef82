"""Where bilinear interpolation takes its values from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray


def axes(source: Sequence[int], target: Sequence[int]) -> tuple[NDArray, ...]:
    """Of each axis, for all its target positions: the lower and the upper source position, and the
    share of the upper one, as ``interpolate`` of torch has it with ``align_corners=False``.

    Examples:
        >>> low, high, share = axes([2], [4])
        >>> low.tolist(), high.tolist(), share.tolist()
        ([0, 0, 0, 1], [1, 1, 1, 1], [0.0, 0.25, 0.75, 0.0])
    """
    pairs = zip(source, target, strict=True)
    return sum((neighbors(middles(old, new), old) for old, new in pairs), ())


def middles(old: int, new: int) -> Float[np.ndarray, " new"]:
    """Where the middles of ``new`` positions lie among those of ``old`` ones on the same line.

    Examples:
        >>> middles(2, 4).tolist()
        [-0.25, 0.25, 0.75, 1.25]
    """
    return (np.arange(new) + 0.5) * old / new - 0.5


def neighbors(places: Float[np.ndarray, " n"], length: int) -> tuple[NDArray, NDArray, NDArray]:
    """Positions below and above places on a line, and the share of those above; beyond the ends of
    the line, its ends.

    Examples:
        >>> [each.tolist() for each in neighbors(np.array([-1, 0.25, 9]), 2)]
        [[0, 0, 1], [1, 1, 1], [0.0, 0.25, 0.0]]
    """
    places = places.clip(0, length - 1)
    low = places.astype(np.int64)
    return low, np.minimum(low + 1, length - 1), (places - low).astype(np.float32)
