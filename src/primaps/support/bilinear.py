"""Where bilinear interpolation takes its values from, for compiled loops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def axes(source: Sequence[int], target: Sequence[int]) -> tuple[NDArray, ...]:
    """Of each axis, for all its target positions: the lower and the upper source position, and the
    share of the upper one, as ``interpolate`` of torch has it with ``align_corners=False``.

    Examples:
        >>> low, high, share = axes([2], [4])
        >>> low.tolist(), high.tolist(), share.tolist()
        ([0, 0, 0, 1], [1, 1, 1, 1], [0.0, 0.25, 0.75, 0.0])
    """
    parts: list[NDArray] = []
    for old, new in zip(source, target, strict=True):
        position = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
        low = position.astype(np.int64)
        parts += [low, np.minimum(low + 1, old - 1), (position - low).astype(np.float32)]
    return tuple(parts)
