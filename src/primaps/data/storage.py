"""Images in tar files, in the layout of WebDataset, and behind URLs.

Tar members are listed by their headers. Each member is read by its offset and size: nothing is
unpacked, and any number of threads and processes can read. Damaged members are reported, and the
members around them are read. URLs (``s3://``, ``gs://``, ``hf://``, ``https://``, ...) need fsspec.
"""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from primaps.data.images import ImageError, Stored
from primaps.utils.errors import MissingPackageError, NotFoundError, reason

ARCHIVES = (".tar",)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
TYPE, SIZE = 156, 124
"""Offsets of the type and the size of a member in its header."""
ReadRange = Callable[[int, int], bytes]
"""Function that returns the bytes of an archive between two offsets."""
CompanionCallback = Callable[[str], None]
"""Called with the name of an image in an archive that belongs to another image."""


def local_archive(
    path: Path, suffixes: frozenset[str], companion: CompanionCallback = lambda name: None
) -> Iterator[tuple[str, Stored]]:
    """Yield the images of a local tar file, by their paths in it without suffix."""

    def read_range(start: int, stop: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    try:
        with path.open("rb") as file:
            yield from members(str(path), file, read_range, suffixes, path, companion)
    except OSError as error:
        yield _damaged(str(path), 0, f"cannot be read ({error.strerror or error})", path)


def members(
    name: str,
    file: Any,
    read_range: ReadRange,
    suffixes: frozenset[str],
    archive: Path | None = None,
    companion: CompanionCallback = lambda name: None,
) -> Iterator[tuple[str, Stored]]:
    """Yield the images of a tar file, by their paths in it without suffix.

    A damaged section is listed as an image; reading it raises an error with the offset. In the
    layout of WebDataset the name of a sample ends at the first dot: ``000.seg.png`` belongs to the
    image ``000.jpg`` and is not an image of the collection.

    Args:
        name: name of the archive in messages.
        file: the archive, open for reading; only headers are read from it.
        read_range: function that reads the images later.
        archive: path of a local archive.
        companion: called with the name of each image that belongs to another one.
    """
    found = list(_members(name, file, read_range, suffixes, archive))
    alone = {key for key, _ in found if "." not in PurePosixPath(key).name}
    for key, image in found:
        sample = key[: len(key) - len(PurePosixPath(key).name.partition(".")[2]) - 1]
        if key not in alone and sample in alone and not key.startswith(".damaged/"):
            companion(image.name)
        else:
            yield key, image


def _members(
    name: str, file: Any, read_range: ReadRange, suffixes: frozenset[str], archive: Path | None
) -> Iterator[tuple[str, Stored]]:
    size = file.seek(0, 2)
    file.seek(0)
    end, last = 0, None  # end of the last member and of the last image
    try:
        # Invalid headers are skipped, to continue after a damaged member.
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # save memory
                end = _skip_global_headers(read_range, end)
                if _has_content(read_range, end, member.offset):
                    yield _damaged(name, end, "is damaged", archive)
                end = member.offset_data + -(-member.size // 512) * 512
                path = PurePosixPath(member.name)
                hidden = any(one.startswith(".") for one in path.parts)
                if member.isfile() and path.suffix.lower() in suffixes and not hidden:
                    last, label = end, f"{name}: {member.name}"
                    start, size_of = member.offset_data, member.size
                    read = partial(_member, read_range, label, start, size_of)
                    yield path.with_suffix("").as_posix().lstrip("/"), Stored(label, read, archive)
        if _has_content(read_range, end, size):
            yield _damaged(name, end, "is damaged" if end else "is not a tar file", archive)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        if last is None or last <= size:  # otherwise reading the last image raises the error
            yield _damaged(name, end, f"cannot be read ({error})", archive)


def _skip_global_headers(read_range: ReadRange, offset: int) -> int:
    """Return the offset after the global headers, which ``git archive`` writes."""
    while read_range(offset + TYPE, offset + TYPE + 1) == tarfile.XGLTYPE:
        field = read_range(offset + SIZE, offset + SIZE + 12)
        size = tarfile.nti(field)  # type: ignore[attr-defined]
        offset += 512 + -(-size // 512) * 512
    return offset


def _has_content(read_range: ReadRange, start: int, stop: int) -> bool:
    """Return whether a section has a byte other than 0."""
    steps = range(start, stop, 1 << 20)
    return any(any(read_range(step, min(stop, step + (1 << 20)))) for step in steps)


def _member(read_range: ReadRange, name: str, start: int, length: int) -> bytes:
    try:
        content = read_range(start, start + length)
    except OSError as error:
        raise ImageError(f"{name} cannot be read ({error.strerror or error})") from None
    if len(content) < length:
        raise ImageError(f"{name} is truncated: the archive ends too early; copy it again")
    return content


def _damaged(name: str, offset: int, problem: str, archive: Path | None) -> tuple[str, Stored]:
    """Return an image that cannot be read, which is then reported with the skipped images."""

    def read() -> bytes:
        raise ImageError(f"{name} {problem} at byte {offset}; this section is skipped")

    return f".damaged/{name}/{offset}", Stored(name, read, archive)


def is_url(text: str) -> bool:
    """Return whether an input is a URL.

    Examples:
        >>> is_url("s3://bucket/photos"), is_url("photos/a.jpg"), is_url("C:\\\\photos")
        (True, False, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def images_at(
    url: str, suffixes: frozenset[str], companion: CompanionCallback = lambda name: None
) -> Iterator[tuple[str, Stored]]:
    """Yield the images of a file, folder (recursive), glob or tar file, by paths below the URL.

    Raises:
        MissingPackageError: fsspec or the driver of the protocol is not installed.
        NotFoundError: the URL does not exist or cannot be reached.
    """
    system, path = _file_system(url)
    try:
        root, found = _list_files(system, path, suffixes)
    except Exception as error:  # drivers raise errors of many types
        raise NotFoundError(f"{url} cannot be listed ({reason(error)})") from None
    for one in found:
        name = str(system.unstrip_protocol(one))
        if one.lower().endswith(ARCHIVES):
            read_range = partial(_range, system, one)
            try:
                with system.open(one, "rb") as file:
                    yield from members(name, file, read_range, suffixes, None, companion)
            except Exception as error:
                raise NotFoundError(f"{name} cannot be read ({reason(error)})") from None
        else:
            key = posixpath.splitext(posixpath.relpath(one, root))[0]
            yield key, Stored(name, partial(_whole, system, one, name))


def _list_files(system: Any, path: str, suffixes: frozenset[str]) -> tuple[str, list[str]]:
    """Return the folder that keys are relative to, and the files."""
    wanted = (*suffixes, *ARCHIVES)
    if re.search(r"[*?\[]", path):
        root = path[: re.search(r"[*?\[]", path).start()].rpartition("/")[0]  # type: ignore[union-attr]
        return root, _visible(sorted(system.glob(path)), root, wanted)
    if path.lower().endswith(wanted) and not path.endswith("/"):
        if not system.exists(path):
            raise FileNotFoundError("the file does not exist")
        return posixpath.dirname(path), [path]
    return path, _visible(sorted(system.find(path)), path, tuple(suffixes))


def _visible(paths: list[str], root: str, wanted: tuple[str, ...]) -> list[str]:
    """Return the files below a folder that have these suffixes and are not hidden."""
    hidden = re.compile(r"(^|/)\.")
    found = [path for path in paths if path.lower().endswith(wanted)]
    return [p for p in found if not hidden.search(p[len(root) :].lstrip("/"))
            and not hidden.search(posixpath.relpath(p, root))]  # fmt: skip


def _file_system(url: str) -> tuple[Any, str]:
    protocol = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise MissingPackageError(f"{url} needs fsspec: pip install 'primaps[remote]'") from None
    try:
        return url_to_fs(url)
    except ImportError as error:
        raise MissingPackageError(
            f"{protocol}:// needs a driver that is not installed: {error}"
        ) from None
    except ValueError as error:
        raise NotFoundError(f"{url} is not supported by fsspec ({error})") from None
    except Exception as error:  # such as missing credentials
        raise NotFoundError(f"{url} cannot be reached ({reason(error)})") from None


def _whole(system: Any, path: str, name: str) -> bytes:
    try:
        return bytes(system.cat_file(path))
    except Exception as error:
        raise ImageError(f"{name} cannot be read ({reason(error)})") from None


def _range(system: Any, path: str, start: int, stop: int) -> bytes:
    try:
        content = bytes(system.cat_file(path, start=start, end=stop))
    except Exception as error:
        raise OSError(reason(error)) from None
    # Some servers ignore the range and return the whole file.
    return content if len(content) <= stop - start else content[start:stop]
