"""Images in tar files, as WebDataset lays them out, read where they lie.

Members are listed from their headers, and each is read by its place and length, so nothing is
unpacked and any number of threads and processes may read. What is damaged is left out: members
before it and behind it stay.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from primaps.data.reading import ImageError
from primaps.data.stored import Stored

ARCHIVES = (".tar",)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
TYPE, SIZE = 156, 124
"""Where a header says what a member is, and how long."""
Part = Callable[[int, int], bytes]
"""Bytes of an archive from a place to another one."""


def local_archive(path: Path, suffixes: frozenset[str]) -> Iterator[tuple[str, Stored]]:
    """Images of a tar file of this machine: each by its path in it, without its suffix."""

    def part(start: int, stop: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    try:
        with path.open("rb") as file:
            yield from members(str(path), file, part, suffixes, path)
    except OSError as error:
        yield _damaged(str(path), 0, f"cannot be read ({error.strerror or error})", path)


def members(
    name: str, file: Any, part: Part, suffixes: frozenset[str], within: Path | None = None
) -> Iterator[tuple[str, Stored]]:
    """Images of a tar file, each by its path in it without its suffix.

    What is damaged is an image that cannot be read; it says so when that is tried.

    Args:
        name: of the archive, for messages.
        file: the archive, open for reading, to list it by.
        part: reads from it later.
        suffixes: of images.
        within: the archive, if it is a file of this machine.
    """
    size = file.seek(0, 2)
    file.seek(0)
    end, last = 0, None  # of the last member, and the last image
    try:
        # Headers that are none are passed over, to go on behind a damaged member.
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
                end = _after_global(part, end)
                if _content(part, end, member.offset):
                    yield _damaged(name, end, "is damaged", within)
                end = member.offset_data + -(-member.size // 512) * 512
                path = PurePosixPath(member.name)
                hidden = any(one.startswith(".") for one in path.parts)
                if member.isfile() and path.suffix.lower() in suffixes and not hidden:
                    last, called = end, f"{name}: {member.name}"
                    read = partial(_member, part, called, member.offset_data, member.size)
                    yield path.with_suffix("").as_posix().lstrip("/"), Stored(called, read, within)
        if _content(part, end, size):
            yield _damaged(name, end, "is damaged" if end else "is no tar file", within)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        if last is None or last <= size:  # else the last image says so itself
            yield _damaged(name, end, f"cannot be read ({error})", within)


def _after_global(part: Part, place: int) -> int:
    """Behind the headers at a place that are about all members, as ``git archive`` writes one."""
    while part(place + TYPE, place + TYPE + 1) == tarfile.XGLTYPE:
        size = tarfile.nti(part(place + SIZE, place + SIZE + 12))  # type: ignore[attr-defined]
        place += 512 + -(-size // 512) * 512
    return place


def _content(part: Part, start: int, stop: int) -> bool:
    """Whether there is anything but zeros."""
    steps = range(start, stop, 1 << 20)
    return any(any(part(step, min(stop, step + (1 << 20)))) for step in steps)


def _member(part: Part, name: str, start: int, length: int) -> bytes:
    try:
        content = part(start, start + length)
    except OSError as error:
        raise ImageError(f"{name} cannot be read ({error.strerror or error})") from None
    if len(content) < length:
        raise ImageError(f"{name} is cut off: the archive ends before it does; copy it again")
    return content


def _damaged(name: str, place: int, what: str, within: Path | None) -> tuple[str, Stored]:
    """An image that is not there, so that it is told of with the others that are left out."""

    def read() -> bytes:
        raise ImageError(f"{name} {what} at byte {place}: what was there is left out")

    return f".damaged/{name}/{place}", Stored(name, read, within)
