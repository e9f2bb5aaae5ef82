"""What a scene is, whatever kind of file it is in: its size, bands, and a way to read blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from primaps.utils.errors import InputError, PrimapsError


class SceneError(PrimapsError, ValueError):
    """A scene cannot be read or written; the message names the file, the reason and what to do."""


class Box(NamedTuple):
    """A rectangle of pixels: rows ``top`` to ``bottom``, columns ``left`` to ``right``, ends not
    included."""

    top: int
    bottom: int
    left: int
    right: int


Block = tuple[Shaped[np.ndarray, "bands h w"], Bool[np.ndarray, "h w"]]
"""Values of the bands of a rectangle as the file has them, and which pixels have any."""


@dataclass(frozen=True)
class Place:
    """Where the pixels of a scene lie on a map.

    Attributes:
        matrix: x, y of the map = matrix @ (column, row, 1).
        wkt: the coordinate reference system as WKT; empty if the file names none.
        code: its EPSG code; 0 if it has none.
    """

    matrix: Float[np.ndarray, "2 3"]
    wkt: str = ""
    code: int = 0

    @property
    def pixel_area(self) -> float:
        """Of a pixel, in square units of the map."""
        return float(abs(np.linalg.det(self.matrix[:, :2])))


@dataclass(frozen=True)
class Scene:
    """An image that is read block by block.

    Attributes:
        path: the file.
        sizes: height and width, and those of every smaller copy that the file keeps (overviews,
            levels of a pyramid), the largest first.
        read: values of the bands in use, (B, h, w), and the valid pixels of a :class:`Box` of the
            level with this number.
        eight_bit: whether values are shown as they are.
        whole: whether every pixel is known to be valid.
        strips: whether a row of pixels lies together in the file, so that whole rows are read.
        item: bytes of a pixel in memory.
        place: on a map, if known.
        meters: ground size of a pixel, if known.
        close: let go of the file.
    """

    path: Path
    sizes: tuple[tuple[int, int], ...]
    read: Callable[[int, Box], Block]
    eight_bit: bool
    whole: bool = False
    strips: bool = False
    item: int = 3
    place: Place | None = None
    meters: float | None = None
    close: Callable[[], None] = field(default=lambda: None)

    @property
    def height(self) -> int:
        """In pixels."""
        return self.sizes[0][0]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.sizes[0][1]


def chosen_bands(
    path: Path, count: int, asked: Sequence[int] | None, known: Sequence[int] | None = None
) -> list[int]:
    """The bands that are shown as red, green and blue, counted from 1: what was asked for, or what
    the file says, or all there is.

    Raises:
        InputError: the scene has no such band.
        SceneError: it has many bands, and nothing says which are red, green and blue.

    Examples:
        >>> chosen_bands(Path("a.tif"), 3, None), chosen_bands(Path("a.tif"), 1, None)
        ([1, 2, 3], [1])
        >>> chosen_bands(Path("a.tif"), 13, [4, 3, 2])
        [4, 3, 2]
    """
    if asked is not None:
        if len(asked) not in (1, 3):
            raise InputError(f"--bands names {len(asked)} bands; it takes one, or three: 4,3,2")
        if wrong := [band for band in asked if not 1 <= band <= count]:
            raise InputError(f"{path} has bands 1 to {count}, none of {wrong[0]} (--bands)")
        return list(asked)
    if known:
        return list(known)
    if count in (1, 2):
        return [1]
    if count in (3, 4):
        return [1, 2, 3]
    raise SceneError(
        f"{path} has {count} bands: say which are red, green and blue, such as --bands 4,3,2"
    )


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Whatever a decoder raises over a broken byte, as one sentence about the file.

    Raises:
        SceneError: something went wrong in the block.
    """
    try:
        yield
    except (PrimapsError, MemoryError):
        raise
    except FileNotFoundError:
        raise SceneError(f"{path} does not exist") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SceneError(
            f"{path} is damaged or no image that can be read ({reason}); restore it"
        ) from None
