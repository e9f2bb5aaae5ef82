"""Corrections that the user painted: a 16-bit PNG file per image, with a leaf per pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt16
from PIL import Image

from primaps.utils.errors import InputError
from primaps.utils.files import atomic_path

UNCORRECTED = 65535
"""Value of a pixel without a correction."""
Runs = Sequence[Sequence[int]]
"""``[start, length]`` in row-major order, or ``[start, length, value]``."""


class Corrections:
    """Corrections of all images, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.png"

    def keys(self) -> Iterator[str]:
        """Yield the keys of the corrected images."""
        for path in sorted(self.folder.rglob("*.png")):
            if not path.name.startswith("."):
                yield path.relative_to(self.folder).as_posix().removesuffix(".png")

    def has(self, key: str) -> bool:
        """Return whether an image has corrections."""
        return self._path(key).is_file()

    def read(self, key: str, size: tuple[int, int]) -> UInt16[np.ndarray, "h w"] | None:
        """Read the corrections of an image, scaled to a height and width; None without any.

        Raises:
            InputError: The file is damaged.
        """
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with Image.open(path) as image:
                scaled = image.resize((size[1], size[0]), Image.Resampling.NEAREST)
                leaves = np.asarray(scaled).astype(np.uint16)
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}); move it away") from None
        return leaves if (leaves != UNCORRECTED).any() else None

    def paint(self, key: str, size: tuple[int, int], strokes: Sequence[tuple[Runs, int]]) -> None:
        """Set the pixels of each stroke to its value; :data:`UNCORRECTED` removes corrections.

        The file is replaced atomically, and deleted with its last correction.
        """
        leaves = self.read(key, size)
        flat = np.full(size[0] * size[1], UNCORRECTED, np.uint16)
        if leaves is not None:
            flat[:] = leaves.ravel()
        for runs, value in strokes:
            flat[run_pixels(runs, flat.size)] = value
        if (flat == UNCORRECTED).all():
            self._path(key).unlink(missing_ok=True)
            return
        with atomic_path(self._path(key)) as temporary:
            Image.fromarray(flat.reshape(size)).save(temporary)


def run_pixels(runs: Runs, count: int) -> Integer[np.ndarray, " n"]:
    """Return the pixel numbers of runs in an image with ``count`` pixels.

    Raises:
        InputError: A run leaves the image, or runs overlap.

    Examples:
        >>> run_pixels([[2, 3], [9, 1]], 10).tolist()
        [2, 3, 4, 9]
    """
    table = np.asarray(runs, np.int64).reshape(len(runs), -1)
    if not len(table):
        return np.zeros(0, np.int64)
    starts, lengths = table[:, 0], table[:, 1]
    if starts.min() < 0 or lengths.min() < 1 or (starts + lengths).max() > count:
        raise InputError(f"the correction extends beyond the image, which has {count} pixels")
    if lengths.sum() > count:
        raise InputError("the correction has overlapping runs")
    first = np.repeat(starts - np.concatenate([[0], lengths.cumsum()[:-1]]), lengths)
    return first + np.arange(len(first))


def to_runs(
    pixels: Integer[np.ndarray, " n"], values: Integer[np.ndarray, " n"]
) -> list[list[int]]:
    """Encode pixels and values as ``[start, length, value]``, without uncorrected pixels.

    Examples:
        >>> to_runs(np.array([2, 3, 4, 9]), np.array([7, 7, 65535, 7]))
        [[2, 2, 7], [9, 1, 7]]
    """
    corrected = values != UNCORRECTED
    pixels, values = pixels[corrected], values[corrected].astype(np.int64)
    if not len(pixels):
        return []
    order = pixels.argsort(kind="stable")
    pixels, values = pixels[order], values[order]
    begins = np.flatnonzero(np.diff(pixels, prepend=-2) - 1 | np.diff(values, prepend=-1))
    lengths = np.diff(begins, append=len(pixels))
    return np.stack([pixels[begins], lengths, values[begins]], 1).tolist()
