"""What a person painted: per image a PNG of 16 bits with the part of each corrected pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt16
from PIL import Image

from primaps.utils.errors import InputError
from primaps.utils.files import atomic_path

NOTHING = 65535
"""Value of a pixel that was not corrected."""
Runs = Sequence[Sequence[int]]
"""``[start, length]`` in the order of pixels, row after row; or with a value as third."""


class Corrections:
    """Corrections of a collection, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.png"

    def keys(self) -> Iterator[str]:
        """Of all corrected images."""
        for path in sorted(self.folder.rglob("*.png")):
            if not path.name.startswith("."):
                yield path.relative_to(self.folder).as_posix().removesuffix(".png")

    def has(self, key: str) -> bool:
        """Whether an image is corrected."""
        return self._path(key).is_file()

    def read(self, key: str, size: tuple[int, int]) -> UInt16[np.ndarray, "h w"] | None:
        """The parts that were painted into an image of a height and width; None if none were.

        An image that has another size by now has its corrections scaled to that.

        Raises:
            InputError: the file is damaged.
        """
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with Image.open(path) as image:
                fitting = image.resize((size[1], size[0]), Image.Resampling.NEAREST)
                found = np.asarray(fitting).astype(np.uint16)
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}): move it away") from None
        return found if (found != NOTHING).any() else None

    def paint(self, key: str, size: tuple[int, int], strokes: Sequence[tuple[Runs, int]]) -> None:
        """Set pixels, one value for each list of runs; :data:`NOTHING` takes a correction away.

        The file is whole at any moment, and is removed with its last correction.
        """
        own = self.read(key, size)
        flat = np.full(size[0] * size[1], NOTHING, np.uint16) if own is None else own.flatten()
        for runs, value in strokes:
            flat[pixels(runs, flat.size)] = value
        if (flat == NOTHING).all():
            self._path(key).unlink(missing_ok=True)
            return
        with atomic_path(self._path(key)) as temporary:
            Image.fromarray(flat.reshape(size)).save(temporary)


def pixels(runs: Runs, count: int) -> Integer[np.ndarray, " n"]:
    """Numbers of the pixels in runs.

    Raises:
        InputError: a run leaves the image.

    Examples:
        >>> pixels([[2, 3], [9, 1]], 10).tolist()
        [2, 3, 4, 9]
    """
    table = np.asarray(runs, np.int64).reshape(len(runs), -1)
    if not len(table):
        return np.zeros(0, np.int64)
    starts, lengths = table[:, 0], table[:, 1]
    if starts.min() < 0 or lengths.min() < 1 or (starts + lengths).max() > count:
        raise InputError(f"the correction leaves the image, which has {count} pixels")
    if lengths.sum() > count:
        raise InputError("the correction names a pixel more than once")
    first = np.repeat(starts - np.concatenate([[0], lengths.cumsum()[:-1]]), lengths)
    return first + np.arange(len(first))


def as_runs(
    places: Integer[np.ndarray, " n"], values: Integer[np.ndarray, " n"]
) -> list[list[int]]:
    """Pixels with their values as ``[start, length, value]``, without those of no correction.

    Examples:
        >>> as_runs(np.array([2, 3, 4, 9]), np.array([7, 7, 65535, 7]))
        [[2, 2, 7], [9, 1, 7]]
    """
    there = values != NOTHING
    places, values = places[there], values[there].astype(np.int64)
    if not len(places):
        return []
    order = places.argsort(kind="stable")
    places, values = places[order], values[order]
    begins = np.flatnonzero(np.diff(places, prepend=-2) - 1 | np.diff(values, prepend=-1))
    lengths = np.diff(begins, append=len(places))
    return np.stack([places[begins], lengths, values[begins]], 1).tolist()
