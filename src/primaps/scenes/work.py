"""What a run over a scene has done so far, in a hidden folder beside its result."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from primaps.utils.errors import PrimapsError
from primaps.utils.files import locked, named, sha256, write_json

ABOUT, STATE = "primaps.json", "state.json"


class ResultError(PrimapsError, ValueError):
    """The file to write to is not this run's; the message names it."""


@dataclass(frozen=True)
class RawFile:
    """An array on disk, read and written by rows; what is not written yet is zero.

    Memory maps would do the same, but count as memory of the process.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        """Of one entry of the first axis."""
        return int(np.prod(self.shape[1:])) * self.dtype.itemsize

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """Entries ``top`` to ``bottom`` of the first axis."""
        with self.path.open("rb") as file:
            values = np.fromfile(
                file,
                self.dtype,
                (bottom - top) * self.row_bytes // self.dtype.itemsize,
                offset=top * self.row_bytes,
            )
        return values.reshape(-1, *self.shape[1:])

    def put(self, values: np.ndarray, top: int, left: int = 0) -> None:
        """Write a rectangle of the first two axes; whole rows in one piece."""
        data = np.ascontiguousarray(values, self.dtype)
        with named(self.path), self.path.open("r+b") as file:
            step = self.row_bytes // self.shape[1]
            if data.shape[1] == self.shape[1]:
                file.seek(top * self.row_bytes)
                file.write(data.data)
                return
            for number, row in enumerate(data):
                file.seek((top + number) * self.row_bytes + left * step)
                file.write(row.data)


class Work:
    """The folder of one run: files of arrays, and how far each step has come."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state: dict[str, Any] = _json(folder / STATE) or {}

    def file(self, name: str, shape: tuple[int, ...], dtype: Any) -> RawFile:
        """The file of an array, made if it is not there."""
        raw = RawFile(self.folder / name, shape, np.dtype(dtype))
        size = int(np.prod(shape)) * raw.dtype.itemsize
        if not raw.path.exists() or raw.path.stat().st_size != size:
            with named(raw.path), raw.path.open("wb") as file:
                file.truncate(size)
        return raw

    def get(self, name: str, default: Any) -> Any:
        """What :meth:`keep` was given last."""
        return self._state.get(name, default)

    def keep(self, **values: Any) -> None:
        """Remember values, for the run that goes on if this one is killed."""
        self._state |= values
        write_json(self.folder / STATE, self._state)


@contextmanager
def result_of(
    out: Path, source: Path, options: Mapping[str, Any], finished: Callable[[Path], str | None]
) -> Iterator[tuple[Work | None, str]]:
    """The work on one file of results: that of a run with the same source and options, if any.

    Gives the work, None if the result is complete, and the digest of source and options that the
    result has to carry. The folder goes once the block ends without an error.

    Args:
        out: the file to write.
        options: everything that it depends on beside ``source``; JSON.
        finished: the digest that an existing file carries, None if it has none.

    Raises:
        ResultError: ``out`` is a file of others, of another run, or the source itself.
    """
    text = json.dumps(dict(options), sort_keys=True) + sha256(source)
    digest = hashlib.sha256(text.encode()).hexdigest()
    folder = out.with_name(f".{out.name}.primaps")
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if os.path.lexists(out):
            if out.exists() and out.samefile(source):
                raise ResultError(f"{out} is the scene itself: write to another file")
            if out.is_symlink() or not out.is_file() or finished(out) != digest:
                raise ResultError(
                    f"{out} exists, and is not the result of this scene with these options: move "
                    "it away, or write to another file"
                )
            yield None, digest
            return
        known = _json(folder / ABOUT)
        if not _ours(folder, known):
            raise ResultError(f"{folder} is not of primaps: move it away")
        if known is None or known["primaps"] != digest:
            _clear(folder)
            folder.mkdir()
            write_json(folder / ABOUT, {"primaps": digest})
        yield Work(folder), digest
        _clear(folder)


def _clear(folder: Path) -> None:
    """Remove the folder, what says whose it is last: this, too, may be killed."""
    if folder.is_dir():
        for path in sorted(folder.iterdir(), key=lambda path: path.name == ABOUT):
            path.unlink()
        folder.rmdir()


def _ours(folder: Path, known: Any) -> bool:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        return False
    if isinstance(known, dict):
        return "primaps" in known
    # A run that was killed at its beginning leaves half of what says whose it is.
    return not folder.exists() or all(p.name.startswith(".writing-") for p in folder.iterdir())


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
