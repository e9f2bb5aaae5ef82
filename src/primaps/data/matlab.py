"""Read one array of real numbers from a MATLAB file of version 5 or 4.

``scipy.io.loadmat`` is not used, because it crashes (SIGSEGV) on some damaged files: SciPy 1.17.1
crashed 5 times in 15,000 files of 1 kB with random changes (2026-11-30). Here the sizes that a file
declares are compared with the file before memory is allocated.
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
"""Maximum size of a file and of its unpacked content in bytes; a patch of Potsdam-3 has 160 kB."""
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
"""NumPy types of elements that hold numbers."""
FIRST_CLASS, LAST_CLASS, COMPLEX = 6, 15, 0x0800
"""Classes of arrays of numbers (no cells, structures or text), and the flag of complex arrays."""
NUMBERS_4 = ("f8", "f4", "i4", "i2", "u2", "u1")


def read_array(path: Path, key: str) -> np.ndarray:
    """Read an array of real numbers in the type in which it was saved.

    Args:
        path: the file.
        key: name of the array.

    Raises:
        InputError: the array is missing or of another type, or the file is damaged or not a MATLAB
            file.
        OSError: the file does not exist or cannot be read.
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
        raise InputError(f"{path} is damaged or not a MATLAB file ({error}); restore it") from None
    if array is None:
        raise InputError(f"{path} has no array {key!r} of real numbers; check the data set")
    return array


def _variables(data: bytes, order: str, key: str) -> Iterator[np.ndarray]:
    """Yield the arrays of real numbers with a name in a file of version 5."""
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
    """Yield types and contents of consecutive elements."""
    offset = 0
    while offset + 8 <= len(data):
        kind, size = (int(one) for one in np.frombuffer(data, f"{order}u4", 2, offset))
        if kind >> 16:  # a small element: its content is in the field of its size
            kind, size = kind & 0xFFFF, kind >> 16
            yield kind, data[offset + 4 : offset + 4 + min(size, 4)]
            offset += 8
            continue
        if offset + 8 + size > len(data):
            raise ValueError("it is truncated")
        yield kind, data[offset + 8 : offset + 8 + size]
        offset += 8 + (size if not padded or kind == PACKED else -(-size // 8) * 8)


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
        raise ValueError("it is truncated") from None
    return _shaped(np.frombuffer(values, order + NUMBERS[kind]), shape)


def _variables_4(data: bytes, key: str) -> Iterator[np.ndarray]:
    """Yield the arrays with a name in a file of version 4, each after a header of five numbers."""
    order, offset = "<" if 0 <= int.from_bytes(data[:4], "little") < 5000 else ">", 0
    while offset < len(data):
        head = np.frombuffer(data, f"{order}i4", 5, offset).tolist()
        kind, rows, columns, imaginary, length = head
        kinds = kind // 10 % 10
        if min(head) < 0 or kind // 1000 != (order == ">") or not 0 < length < 256 or kind % 10 > 2:
            raise ValueError("its header is not valid")
        number = np.dtype(order + NUMBERS_4[kinds])
        name = data[offset + 20 : offset + 20 + length].rstrip(b"\0").decode("latin-1")
        size = rows * columns * number.itemsize
        offset += 20 + length
        values = data[offset : offset + size]
        if name == key and not imaginary and kind % 10 == 0:
            yield _shaped(np.frombuffer(values, number), (rows, columns))
        offset += size * (2 if imaginary else 1)


def _shaped(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if min(shape, default=0) < 1 or math.prod(shape) != len(values):
        raise ValueError(f"it has {len(values):,} numbers for the shape {shape}")
    return values.reshape(shape, order="F").astype(values.dtype.newbyteorder("="))
