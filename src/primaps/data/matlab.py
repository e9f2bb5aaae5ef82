"""One array out of a MATLAB file, which is packed and may claim to hold anything."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np

from primaps.support.errors import InputError
from primaps.support.inputs import read_bytes

LARGEST_FILE, LARGEST_UNPACKED = 256 << 20, 1 << 30
"""Bytes of a file, and of what it unpacks to; a patch of Potsdam-3 has 160 kB."""
PACKED = 15
"""Type of an element that holds another one, compressed."""


def read_array(path: Path, key: str) -> np.ndarray:
    """An array of real numbers under a name.

    Raises:
        InputError: it is not there or of another kind, or the file unpacks to far more than an
            image.
        Exception: whatever a broken byte leads to in SciPy.
    """
    from scipy.io import loadmat

    data = read_bytes(path, LARGEST_FILE)
    if data.startswith(b"MATLAB 7.3"):
        raise InputError(
            f"{path} is a MATLAB file of version 7.3 (HDF5); save it again with "
            'save(..., "-v7") in MATLAB'
        )
    if _unpacked(data) > LARGEST_UNPACKED:
        raise InputError(f"{path} unpacks to more than {LARGEST_UNPACKED >> 30} GB; it is damaged")
    content = loadmat(io.BytesIO(data), variable_names=[key])
    if key not in content:
        raise InputError(f"{path} has no array {key!r}; is it of another data set?")
    array = content[key]
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or not array.size:
        raise InputError(f"{key!r} of {path} is no array of real numbers")
    return array


def _unpacked(data: bytes) -> int:
    """Bytes of all elements of a file of version 5, packed ones unpacked; 0 of version 4."""
    order = "big" if data[126:128] == b"MI" else "little"
    if data[126:128] not in (b"MI", b"IM"):
        return 0
    place, total = 128, 0
    while place + 8 <= len(data) and total <= LARGEST_UNPACKED:
        kind = int.from_bytes(data[place : place + 4], order)  # type: ignore[arg-type]
        size = int.from_bytes(data[place + 4 : place + 8], order)  # type: ignore[arg-type]
        if kind == PACKED:
            packed, rest = zlib.decompressobj(), data[place + 8 : place + 8 + size]
            while rest and total <= LARGEST_UNPACKED:
                total += len(packed.decompress(rest, 1 << 20))
                rest = packed.unconsumed_tail
        place += 8 + size
    return total
