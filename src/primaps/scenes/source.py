"""Interface of a scene, for all file formats: size, bands and a function that reads blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped

from primaps.geometry.vectors import Georeference
from primaps.utils.errors import InputError, PrimapsError


class SceneError(PrimapsError, ValueError):
    """A scene cannot be read; the message names the file, the reason and the remedy."""


class Box(NamedTuple):
    """A rectangle of pixels: rows ``top`` to ``bottom``, columns ``left`` to ``right``, with the
    ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left


Block = tuple[Shaped[np.ndarray, "bands h w"], Bool[np.ndarray, "h w"]]
"""Gray or RGB values of a rectangle, and its valid pixels. Values are those of the file, except of
color spaces, palettes, inverted gray, and samples of less than 8 bits."""


@dataclass(frozen=True)
class Scene:
    """An image of any size that is read block by block.

    Attributes:
        path: the file.
        sizes: height and width of every resolution level in the file, the full size first. The
            other levels are overviews, or the levels of a pyramid.
        read: function of the number of a level and a :class:`Box`; returns the values of the
            selected bands, (B, h, w), and the valid pixels.
        eight_bit: whether values are 8-bit colors, which need no stretch.
        all_valid: whether every pixel is known to be valid.
        by_rows: whether the file stores whole rows of pixels, instead of tiles.
        pixel_bytes: bytes of a pixel in memory.
        georeference: position on a map, if known.
        meters: ground size of a pixel, if known.
        sample_factor, sample_offset: a sample ``s`` of the file is the value ``sample_factor * s +
            sample_offset``; the factor is None for color spaces and palettes.
        close: closes the file.
    """

    path: Path
    sizes: tuple[tuple[int, int], ...]
    read: Callable[[int, Box], Block]
    eight_bit: bool
    all_valid: bool = False
    by_rows: bool = False
    pixel_bytes: int = 3
    georeference: Georeference | None = None
    meters: float | None = None
    sample_factor: float | None = 1.0
    sample_offset: float = 0.0
    close: Callable[[], None] = field(default=lambda: None)

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.sizes[0][0]

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.sizes[0][1]


def select_bands(
    path: Path, count: int, requested: Sequence[int] | None, declared: Sequence[int] | None = None
) -> list[int]:
    """Select the bands that become red, green and blue, counted from 1.

    Args:
        count: number of bands in the file.
        requested: bands that the user selected, if any.
        declared: red, green and blue as the file declares them, if it does.

    Raises:
        InputError: the scene has no such band.
        SceneError: the scene has five or more bands, and neither the user nor the file selects
            among them.

    Examples:
        >>> select_bands(Path("a.tif"), 3, None), select_bands(Path("a.tif"), 1, None)
        ([1, 2, 3], [1])
        >>> select_bands(Path("a.tif"), 13, [4, 3, 2])
        [4, 3, 2]
    """
    if requested is not None:
        if len(requested) not in (1, 3):
            raise InputError(
                f"--bands names {len(requested)} bands; name one, or three such as 4,3,2"
            )
        if wrong := [band for band in requested if not 1 <= band <= count]:
            raise InputError(f"--bands: {path} has bands 1 to {count}, got {wrong[0]}")
        return list(requested)
    if declared:
        return list(declared)
    if count in (1, 2):
        return [1]
    if count in (3, 4):
        return [1, 2, 3]
    raise SceneError(
        f"{path} has {count} bands and does not declare red, green and blue; select them, such as "
        "--bands 4,3,2"
    )


@contextmanager
def decoding_errors(path: Path) -> Iterator[None]:
    """Turn every error that a decoder raises into a :class:`SceneError` that names the file."""
    try:
        yield
    except (PrimapsError, MemoryError):
        raise
    except FileNotFoundError:
        raise SceneError(f"{path} does not exist") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        problem = f"{path} is damaged or not in a supported image format ({reason})"
        raise SceneError(f"{problem}; restore or convert it") from None
