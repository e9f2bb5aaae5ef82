"""Files to read labels from: a folder, a zip file, or one file; none of them is trusted."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from primaps.data.images import ImageError, opened, upright_size
from primaps.exchange.errors import check_text, need_size
from primaps.utils.errors import InputError
from primaps.utils.inputs import read_bytes

MAX_FILE = 2 << 30
"""Bytes that one file may have, unpacked: more is taken for an attack."""
LONGEST_NAME, LONGEST_PATH = 250, 1000
"""Bytes of a name in a folder, with room for another suffix, and of all of a path: file systems
hold 255, and 1,024 and more."""
MAX_RATIO = 200
"""Of unpacked to packed size, for files above 64 MB: labels reach some tens, bombs 1,000."""


def safe_name(name: object, where: str) -> str:
    """A relative path with ``/`` in between that stays in its folder.

    Raises:
        InputError: it is none.

    Examples:
        >>> safe_name("a\\\\b.png", "x.json")
        'a/b.png'
        >>> safe_name("../b.png", "x.json")
        Traceback (most recent call last):
        primaps.utils.errors.InputError: x.json names '../b.png', which leaves its folder
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f"{where} has {name!r} where the name of a file should be")
    check_text(name, f"{where}: the file name")
    path = PurePosixPath(name.replace("\\", "/"))
    drive = PureWindowsPath(name).drive
    if path.is_absolute() or drive or ".." in path.parts or not path.parts:
        raise InputError(f"{where} names {name!r}, which leaves its folder")
    parts = [len(part.encode()) + 1 for part in path.parts]
    if max(parts) > LONGEST_NAME or sum(parts) > LONGEST_PATH:
        raise InputError(f"{where} names {name[:60]!r}..., which is too long for a file")
    return str(path)


class Source:
    """Reads files by their relative names.

    Attributes:
        path: the folder, zip file or single file.
        names: relative names of the files in it, sorted; of a single file its name.
    """

    def __init__(self, path: Path, names: list[str], content: Callable[[str], bytes]) -> None:
        self.path, self.names, self._content = path, sorted(names), content
        self._known = frozenset(names)

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            InputError: it is not there, damaged, or too large.
        """
        if name not in self._known:
            raise InputError(f"{self.path} has no file {name}")
        try:
            return self._content(name)
        except InputError:
            raise
        # zipfile raises RuntimeError for a password, NotImplementedError for an unknown packing.
        except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
            raise InputError(f"{self.where(name)} cannot be read ({error})") from None
        except Exception as error:  # zlib.error and whatever other packers raise
            raise InputError(f"{self.where(name)} is damaged ({error})") from None

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def where(self, name: str) -> str:
        """What to call a file in a sentence."""
        return (
            str(self.path)
            if self.path.is_file() and len(self.names) == 1
            else f"{self.path}/{name}"
        )

    def find(self, suffix: str, what: str) -> str:
        """The one file whose name ends with ``suffix``.

        Raises:
            InputError: there is none, or are several.
        """
        found = [name for name in self.names if name.lower().endswith(suffix)]
        if len(found) != 1:
            have = f"{len(found)} files, first {found[0]} and {found[1]}" if found else "none"
            raise InputError(f"{self.path} must have one {what} (*{suffix}), but has {have}")
        return found[0]

    def picture(self, name: str, mode: str | None = None) -> np.ndarray:
        """An image file as an array, ``mode`` being that of Pillow to convert it to."""
        return decode(self.read(name), self.where(name), mode)

    def size(self, name: str) -> tuple[int, int]:
        """Height and width of an image file, turned as its EXIF says."""
        with one_sentence(), opened(self.where(name), self.read(name)) as image:
            return need_size(*upright_size(image), self.where(name))


def decode(content: bytes, where: str, mode: str | None = None) -> np.ndarray:
    """An image from bytes as an array.

    Raises:
        InputError: it is none, damaged, or has too many pixels.
    """
    with one_sentence(), opened(where, content) as image:
        return np.asarray(image if mode is None else image.convert(mode))


@contextmanager
def one_sentence() -> Iterator[None]:
    """What is wrong with an image, as an error of an exchange."""
    try:
        yield
    except ImageError as error:
        raise InputError(str(error)) from None


@contextmanager
def open_source(path: str | Path) -> Iterator[Source]:
    """Open a folder (or the one zip file in it), a zip file, or another file.

    Raises:
        InputError: it is not there, no zip file or cut off, leaves its folder, or unpacks to far
            more than it should.
    """
    path = Path(path)
    if path.is_dir():
        root = path.resolve()
        inside = [
            one.relative_to(path).as_posix()
            for one in path.rglob("*")
            if one.is_file() and one.resolve().is_relative_to(root)
        ]
        visible = [name for name in inside if not any(p.startswith(".") for p in name.split("/"))]
        if len(visible) == 1 and visible[0].lower().endswith(".zip"):
            with open_source(path / visible[0]) as packed:
                yield packed
        else:
            yield Source(path, visible, lambda name: _bounded(path / name))
    elif not path.is_file():
        raise InputError(f"{path} does not exist")
    elif path.suffix.lower() != ".zip":
        yield Source(path, [path.name], lambda name: _bounded(path))
    else:
        try:
            archive = zipfile.ZipFile(path)
        except Exception as error:  # zipfile raises whatever a broken byte leads to
            raise InputError(f"{path} is no zip file, or cut off ({error})") from None
        with archive:
            infos = {}
            for info in archive.infolist():
                if not info.filename.endswith("/"):  # is_dir() does not take an empty name
                    infos[safe_name(info.filename, str(path))] = info
            yield Source(path, list(infos), lambda name: _unpack(archive, infos[name]))


def _bounded(path: Path) -> bytes:
    try:
        return read_bytes(path, MAX_FILE)
    except InputError as error:
        raise InputError(str(error)) from None


def _unpack(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    ratio = info.file_size / max(info.compress_size, 1)
    if info.file_size > MAX_FILE or (ratio > MAX_RATIO and info.file_size > 1 << 26):
        raise InputError(
            f"{packed.filename} unpacks {info.filename} to {info.file_size:,} bytes from "
            f"{info.compress_size:,}; it looks like a zip bomb"
        )
    with packed.open(info) as file:  # stops at the size stated above, whatever follows
        return file.read()
