"""Images behind URLs, by fsspec: s3://, gs://, hf://, https:// and whatever has a driver."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from primaps.data.archives import ARCHIVES, members
from primaps.data.reading import ImageError
from primaps.data.stored import Stored
from primaps.utils.errors import MissingPackageError, NotFoundError


def is_url(text: str) -> bool:
    """Whether an input is a URL.

    Examples:
        >>> is_url("s3://bucket/photos"), is_url("photos/a.jpg"), is_url("C:\\\\photos")
        (True, False, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def images_at(url: str, suffixes: frozenset[str]) -> Iterator[tuple[str, Stored]]:
    """Images of a file, a folder (recursive), a glob or tar files: each by its path below the URL.

    Raises:
        MissingPackageError: fsspec or the driver of the protocol is not installed.
        NotFoundError: nothing is there, or it cannot be reached.
    """
    system, path = _system(url)
    try:
        root, found = _listed(system, path, suffixes)
    except Exception as error:  # drivers raise errors of their own
        raise NotFoundError(f"{url} cannot be listed ({_reason(error)})") from None
    for one in found:
        name = str(system.unstrip_protocol(one))
        if one.lower().endswith(ARCHIVES):
            part = partial(_part, system, one)
            try:
                with system.open(one, "rb") as file:
                    yield from members(name, file, part, suffixes)
            except Exception as error:
                raise NotFoundError(f"{name} cannot be read ({_reason(error)})") from None
        else:
            key = posixpath.splitext(posixpath.relpath(one, root))[0]
            yield key, Stored(name, partial(_whole, system, one, name))


def _listed(system: Any, path: str, suffixes: frozenset[str]) -> tuple[str, list[str]]:
    """The folder that keys are relative to, and files."""
    wanted = (*suffixes, *ARCHIVES)
    if re.search(r"[*?\[]", path):
        root = path[: re.search(r"[*?\[]", path).start()].rpartition("/")[0]  # type: ignore[union-attr]
        return root, _shown(sorted(system.glob(path)), root, wanted)
    if path.lower().endswith(wanted) and not path.endswith("/"):
        if not system.exists(path):
            raise FileNotFoundError("it does not exist")
        return posixpath.dirname(path), [path]
    return path, _shown(sorted(system.find(path)), path, tuple(suffixes))


def _shown(paths: list[str], root: str, wanted: tuple[str, ...]) -> list[str]:
    """Files with these suffixes below a folder; not the hidden ones, nor what leads out of it."""
    hidden = re.compile(r"(^|/)\.")
    found = [path for path in paths if path.lower().endswith(wanted)]
    return [p for p in found if not hidden.search(p[len(root) :].lstrip("/"))
            and not hidden.search(posixpath.relpath(p, root))]  # fmt: skip


def _system(url: str) -> tuple[Any, str]:
    protocol = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise MissingPackageError(f"{url} needs fsspec: pip install 'primaps[remote]'") from None
    try:
        return url_to_fs(url)
    except ImportError as error:
        raise MissingPackageError(f"{protocol}:// needs its driver: {error}") from None
    except ValueError as error:
        raise NotFoundError(f"{url} is no URL that fsspec knows ({error})") from None
    except Exception as error:  # credentials, names
        raise NotFoundError(f"{url} cannot be reached ({_reason(error)})") from None


def _whole(system: Any, path: str, name: str) -> bytes:
    try:
        return bytes(system.cat_file(path))
    except Exception as error:
        raise ImageError(f"{name} cannot be read ({_reason(error)})") from None


def _part(system: Any, path: str, start: int, stop: int) -> bytes:
    try:
        content = bytes(system.cat_file(path, start=start, end=stop))
    except Exception as error:
        raise OSError(_reason(error)) from None
    # A server that gives no parts gives everything.
    return content if len(content) <= stop - start else content[start:stop]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
