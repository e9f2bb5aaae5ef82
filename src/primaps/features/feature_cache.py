"""Rows of one shape under keys: the store of features and masks, in memory or on disk.

On disk a store is a folder with ``rows.bin``, the rows one after the other, and ``rows.txt``, a
line ``key checksum`` for each, written after the row; where a key has several rows, the line says
which: ``key checksum first count``. A process can be killed at any moment: a row
without its line, or half a line, is cut off when the next one appends, and a row that does not
have its checksum counts as missing and is made anew. Files are only ever appended to, so that
others can read meanwhile, and they are memory-mapped: what is read often stays in the system's
page cache, as far as there is room.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import RLock

import numpy as np
import torch
from jaxtyping import Integer, Shaped
from torch import Tensor

from primaps.utils.errors import InputError
from primaps.utils.files import named

logger = logging.getLogger("primaps")


class Rows:
    """A sequence of arrays of one shape, gathered by index as tensors.

    Args:
        arrays: a list of arrays (views of a memory-mapped file among them), or a tensor, whose
            device the gathered rows then have.

    Examples:
        >>> rows = Rows(torch.arange(6).view(3, 2))
        >>> rows.take(torch.tensor([2, 0])).tolist()
        [[4, 5], [0, 1]]
        >>> rows.take(torch.tensor([2, 0]), torch.tensor([0, 1])).tolist()
        [4, 1]
    """

    def __init__(self, arrays: Sequence[np.ndarray] | np.ndarray | Tensor) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row."""
        if isinstance(self.arrays, np.ndarray | Tensor):
            return tuple(self.arrays.shape[1:])
        return tuple(self.arrays[0].shape)

    def take(
        self, index: Integer[Tensor, " b"], inner: Integer[Tensor, " b"] | None = None
    ) -> Shaped[Tensor, "b ..."]:
        """Rows at ``index``, or of each only the part at ``inner`` of its first axis."""
        arrays = self.arrays
        if isinstance(arrays, Tensor):
            where = (index,) if inner is None else (index, inner)
            return arrays[tuple(place.to(arrays.device) for place in where)]

        def part(row: int, place: int) -> np.ndarray:
            one = arrays[row] if len(arrays) else np.empty(self.shape, np.float16)
            return one if inner is None else one[place]

        first = part(0, 0)
        out = np.empty((len(index), *first.shape), first.dtype)
        places = [0] * len(index) if inner is None else inner.tolist()
        for i, (row, place) in enumerate(zip(index.tolist(), places, strict=True)):
            out[i] = part(row, place)
        return torch.from_numpy(out)

    def chunks(self, size: int = 64) -> Iterator[Tensor]:
        """All rows in order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.take(torch.arange(start, min(start + size, len(self))))

    def to(self, device: torch.device) -> Rows:
        """These rows as one tensor on an accelerator, if they fit into half of its free memory."""
        if device.type != "cuda" or isinstance(self.arrays, Tensor) or not len(self):
            return self
        need = len(self) * self.arrays[0].nbytes
        if need > torch.cuda.mem_get_info(device)[0] // 2:
            return self
        return Rows(torch.cat([chunk.to(device) for chunk in self.chunks()]))


class Store:
    r"""Rows under keys that outlive the process if a folder is given.

    Args:
        shape: of a row.
        dtype: of a row.
        folder: None keeps the rows in memory.
        several: a key has an array (n, \*shape) with any number n of rows, and not one row.

    Examples:
        >>> store = Store((2,), np.float16)
        >>> store.append(["a", "b"], np.ones((2, 2)))
        >>> store.missing(["a", "c"])
        ['c']
        >>> len(store.rows(["b", "a", "b"]))
        3
        >>> several = Store((2,), np.float16, several=True)
        >>> several.append(["a", "b"], [np.ones((3, 2)), np.ones((0, 2))])
        >>> [len(rows) for rows in several.rows(["b", "a"]).arrays]
        [0, 3]
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: type[np.generic],
        folder: str | Path | None = None,
        several: bool = False,
    ) -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.row_bytes = math.prod(self.shape) * self.dtype.itemsize
        self.folder = None if folder is None else Path(folder)
        self.several = several
        self._lock = RLock()  # batches are computed on threads
        self._memory: dict[str, np.ndarray] = {}
        self._count = 0  # rows
        self._intact: dict[str, slice] = {}  # key -> rows
        self._claimed: dict[str, tuple[slice, int]] = {}  # not verified yet: rows and checksum
        if self.folder is not None:
            self._read_journal()

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of ``keys`` that have no intact row, each once."""
        with self._lock:
            return self._missing(keys)

    def _missing(self, keys: Iterable[str]) -> list[str]:
        wanted = list(dict.fromkeys(keys))
        claimed = [key for key in wanted if key in self._claimed]
        if claimed:
            arrays = self._arrays()
            with ThreadPoolExecutor(2) as pool:
                sums = pool.map(lambda key: zlib.crc32(arrays[self._claimed[key][0]].data), claimed)
                for key, found in zip(claimed, sums, strict=True):
                    where, checksum = self._claimed.pop(key)
                    if found == checksum:
                        self._intact[key] = where
        return [key for key in wanted if key not in self._intact]

    def append(self, keys: Sequence[str], rows: Sequence[np.ndarray] | np.ndarray) -> None:
        """Add what belongs to each key; a key that is there already gets it anew.

        Raises:
            OSError: the disk is full or cannot be written; what was there before stays intact.
        """
        values = [np.ascontiguousarray(row, self.dtype) for row in rows]
        shapes = {value.shape[1:] if self.several else value.shape for value in values}
        if len(values) != len(keys) or shapes - {self.shape}:
            raise InputError(f"{len(keys)} keys and rows {shapes} for a store of {self.shape}")
        counts = [len(value) if self.several else 1 for value in values]
        places = [self._count + sum(counts[:i]) for i in range(len(counts))]
        if self.folder is None:
            self._memory |= {key: row.copy() for key, row in zip(keys, values, strict=True)}
        else:
            with named(self.folder / "rows.bin"), (self.folder / "rows.bin").open("ab") as file:
                for value in values:
                    file.write(value.tobytes())
            lines = []
            for key, value, first, count in zip(keys, values, places, counts, strict=True):
                where = f" {first} {count}" if self.several else ""
                lines.append(f"{key} {zlib.crc32(value.data):08x}{where}\n")
            path = self.folder / "rows.txt"
            with named(path), path.open("a") as journal:  # only now do the rows count
                journal.write("".join(lines))
        with self._lock:
            self._count += sum(counts)
            self._intact |= {
                key: slice(first, first + count)
                for key, first, count in zip(keys, places, counts, strict=True)
            }

    def rows(self, keys: Sequence[str]) -> Rows:
        """What belongs to each of ``keys``, in their order.

        Raises:
            KeyError: a key has no intact row.
        """
        if not keys:
            return Rows(np.empty((0, *self.shape), self.dtype))
        with self._lock:
            self._missing(keys)
            if self.folder is None:
                return Rows([self._memory[key] for key in keys])
            arrays, places = self._arrays(), [self._intact[key] for key in keys]
        return Rows([arrays[where] if self.several else arrays[where.start] for where in places])

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the store for appending; whoever comes second waits. Cuts off incomplete rows."""
        if self.folder is None:
            yield
            return
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=1)
        except Timeout:
            logger.info("waiting for another run that writes to %s", self.folder)
            lock.acquire()
        try:
            self._read_journal(repair=True)
            yield
        finally:
            lock.release()

    def _arrays(self) -> np.ndarray:
        """All rows on disk."""
        shape = (self._count, *self.shape)
        if not self._count:
            return np.empty(shape, self.dtype)
        assert self.folder is not None
        return np.memmap(self.folder / "rows.bin", self.dtype, "r", shape=shape).view(np.ndarray)

    def _read_journal(self, repair: bool = False) -> None:
        """Rows that both files have; with ``repair``, cut off what only one of them has."""
        assert self.folder is not None
        data, journal = self.folder / "rows.bin", self.folder / "rows.txt"
        lines = journal.read_bytes().split(b"\n")[:-1] if journal.is_file() else []
        there = data.stat().st_size // self.row_bytes if data.is_file() else 0
        self._count, self._intact, self._claimed = 0, {}, {}
        read = whole = 0  # bytes of the journal, and up to the last line whose rows are there
        for line in lines:
            read += len(line) + 1
            key, *rest = line.decode("ascii", "replace").split(" ")
            # A damaged line costs its own rows: others are the next, or say where theirs are.
            checksum, first, count = None, self._count, int(not self.several)
            try:
                found, *where = int(rest[0], 16), *map(int, rest[1:])
                first, count = where if self.several else (first, count)
                checksum = found
            except (ValueError, IndexError):
                pass
            if not 0 <= first <= first + count <= there:
                continue
            whole, self._count = read, max(self._count, first + count)
            if checksum is not None:
                self._claimed[key] = (slice(first, first + count), checksum)
        if repair:
            with journal.open("ab") as file:
                file.truncate(whole)
            with data.open("ab") as file:
                file.truncate(self._count * self.row_bytes)
