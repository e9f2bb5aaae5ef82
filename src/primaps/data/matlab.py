"""One array of real numbers out of a MATLAB file of version 5 or 4.

Read here and not by SciPy, whose reader ends the whole process on some damaged files. What a file
declares is compared with what it has before anything is made of it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from primaps.utils.errors import InputError
from primaps.utils.inputs import read_bytes

LARGEST_FILE, LARGEST_UNPACKED = 256 << 20, 1 << 30
"""Bytes of a file, and of what it unpacks to; a patch of Potsdam-3 has 160 kB."""
HEADER = 128
MATRIX, PACKED = 14, 15
NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
"""Types of elements that hold numbers, as NumPy calls them."""
FIRST_CLASS, LAST_CLASS, COMPLEX = 6, 15, 0x0800
"""Classes of arrays of numbers (not cells, structures, text), and the mark of complex ones."""
NUMBERS_4 = ("f8", "f4", "i4", "i2", "u2", "u1")


def read_array(path: Path, key: str) -> np.ndarray:
    """An array of real numbers under a name, in the type in which they are saved.

    Raises:
        InputError: it is not there or of another kind, or the file is damaged or no MATLAB file.
        OSError: there is no such file, or it cannot be read.
    """
    data = read_bytes(path, LARGEST_FILE)
    if data.startswith(b"MATLAB 7.3"):
        raise InputError(
            f"{path} is a MATLAB file of version 7.3 (HDF5); save it again with "
            'save(..., "-v7") in MATLAB'
        )
    order = {b"IM": "<", b"MI": ">"}.get(data[HEADER - 2 : HEADER])
    try:
        found = _variables(data, order, key) if order else _variables_4(data, key)
        array = next(found, None)
    except (ValueError, KeyError, IndexError, zlib.error, MemoryError) as error:
        raise InputError(f"{path} is no MATLAB file or damaged ({error}); restore it") from None
    if array is None:
        raise InputError(f"{path} has no array {key!r} of real numbers; is it of another data set?")
    return array


def _variables(data: bytes, order: str, key: str) -> Iterator[np.ndarray]:
    """Arrays of real numbers of a name in a file of version 5."""
    left = LARGEST_UNPACKED
    for kind, content in _elements(data[HEADER:], order, padded=False):
        if kind == PACKED:
            unpacked = zlib.decompressobj().decompress(content, left)
            left -= len(unpacked)
            if left <= 0:
                raise ValueError(f"it unpacks to more than {LARGEST_UNPACKED >> 30} GB")
            kind, content = next(_elements(unpacked, order), (0, b""))
        if kind == MATRIX and (array := _matrix(content, order, key)) is not None:
            yield array


def _elements(data: bytes, order: str, padded: bool = True) -> Iterator[tuple[int, bytes]]:
    """Types and contents of the elements that lie one after the other."""
    place = 0
    while place + 8 <= len(data):
        kind, size = (int(one) for one in np.frombuffer(data, f"{order}u4", 2, place))
        if kind >> 16:  # a small one: its content lies in place of its size
            kind, size = kind & 0xFFFF, kind >> 16
            yield kind, data[place + 4 : place + 4 + min(size, 4)]
            place += 8
            continue
        if place + 8 + size > len(data):
            raise ValueError("it is cut off")
        yield kind, data[place + 8 : place + 8 + size]
        place += 8 + (size if not padded or kind == PACKED else -(-size // 8) * 8)


def _matrix(content: bytes, order: str, key: str) -> np.ndarray | None:
    parts = _elements(content, order)
    try:
        (_, flags), (_, sizes), (_, name) = [next(parts) for _ in range(3)]
        flag = int(np.frombuffer(flags, f"{order}u4")[0])
        shape = tuple(int(one) for one in np.frombuffer(sizes, f"{order}i4"))
        numbers = FIRST_CLASS <= flag & 0xFF <= LAST_CLASS and not flag & COMPLEX
        if not numbers or name.decode("latin-1") != key:
            return None
        kind, values = next(parts)
    except StopIteration:
        raise ValueError("it is cut off") from None
    return _shaped(np.frombuffer(values, order + NUMBERS[kind]), shape)


def _variables_4(data: bytes, key: str) -> Iterator[np.ndarray]:
    """The same in a file of version 4: a header of five numbers before each array."""
    order, place = "<" if 0 <= int.from_bytes(data[:4], "little") < 5000 else ">", 0
    while place < len(data):
        head = np.frombuffer(data, f"{order}i4", 5, place).tolist()
        kind, rows, columns, imaginary, length = head
        kinds = kind // 10 % 10
        if min(head) < 0 or kind // 1000 != (order == ">") or not 0 < length < 256 or kind % 10 > 2:
            raise ValueError("its header is of no version")
        number = np.dtype(order + NUMBERS_4[kinds])
        name = data[place + 20 : place + 20 + length].rstrip(b"\0").decode("latin-1")
        size = rows * columns * number.itemsize
        place += 20 + length
        values = data[place : place + size]
        if name == key and not imaginary and kind % 10 == 0:
            yield _shaped(np.frombuffer(values, number), (rows, columns))
        place += size * (2 if imaginary else 1)


def _shaped(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if min(shape, default=0) < 1 or math.prod(shape) != len(values):
        raise ValueError(f"it has {len(values):,} numbers for the shape {shape}")
    return values.reshape(shape, order="F").astype(values.dtype.newbyteorder("="))
