"""Paths, atomic writing of files, and locks.

Whether a file may be written is decided in :mod:`primaps.results`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from primaps.utils.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger("primaps")
_UMASK = Lock()
MAX_NAME, MAX_SUFFIX = 255, 64
"""Maximum bytes of a file name, and of the suffix that a temporary file takes over."""
_HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname()) or "host"


def cache_dir() -> Path:
    """Return the folder of converted weights and cached features.

    It is ``$PRIMAPS_CACHE`` if set, else ``$XDG_CACHE_HOME/primaps``, else ``~/.cache/primaps``.
    """
    if chosen := os.environ.get("PRIMAPS_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "primaps"


def user_path(path: str | Path) -> Path:
    """Expand ``~`` and ``~user`` in a path.

    Raises:
        InputError: The user does not exist.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: no user has this name; give another path") from None


@contextlib.contextmanager
def atomic_path(path: str | Path, *, private: bool = False) -> Iterator[Path]:
    """Return a temporary path that replaces ``path`` when the block ends without an error.

    A reader sees the old file or the complete new one.

    Args:
        private: only the owner can read and write the file.

    Examples:
        >>> target = Path(tempfile.mkdtemp()) / "folder" / "a.txt"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text("complete")
        >>> target.read_text()
        'complete'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(path.parent.resolve())
    prefix = f".writing-{_HOST}-{os.getpid()}-"
    # Libraries choose the format by the suffix. That of a long name need not be one.
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= MAX_SUFFIX else ""
    with named(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            if not private:  # mkstemp creates private files
                share(temporary, 0o666)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def share(path: Path, mode: int) -> None:
    """Give a private temporary file or folder the permissions of other new files.

    File systems without permissions refuse this, which changes nothing there.

    Args:
        mode: 0o666 for a file, 0o777 for a folder; the umask of the process is subtracted.
    """
    with _UMASK:  # reading the umask requires setting it, for all threads
        umask = os.umask(0)
        os.umask(umask)
    with contextlib.suppress(OSError):
        path.chmod(mode & ~umask)


def fitting_name(stem: str, suffix: str) -> str:
    """Return ``stem + suffix`` as a path whose last part is short enough for file systems.

    Of a longer name, the end of the stem is replaced by its digest.

    Examples:
        >>> fitting_name("folder/a", ".overlay.jpg")
        'folder/a.overlay.jpg'
        >>> len(fitting_name("a" * 250, ".overlay.jpg"))
        255
    """
    parent, slash, name = stem.rpartition("/")
    if len(os.fsencode(name + suffix)) <= MAX_NAME:
        return stem + suffix
    end = f"~{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}{suffix}"
    start = os.fsencode(name)[: MAX_NAME - len(os.fsencode(end))].decode("utf-8", "ignore")
    return f"{parent}{slash}{start}{end}"


def is_utf8(name: str) -> bool:
    r"""Return whether a name of a file is text; others have bytes that are not UTF-8.

    Examples:
        >>> is_utf8("caf\u00e9.jpg"), is_utf8(os.fsdecode(b"caf\xe9.jpg"))
        (True, False)
    """
    return not any("\udc80" <= letter <= "\udcff" for letter in name)


def save_image(image: Image.Image, path: Path, **options: Any) -> None:
    """Write an image in the format of the suffix.

    Pillow does not notice if a nearly full disk takes only a part of a write.
    """
    content = io.BytesIO()
    content.name = path.name  # Pillow derives the format from the suffix
    image.save(content, **options)
    path.write_bytes(content.getvalue())


@contextlib.contextmanager
def temporary_folder(parent: str | Path | None = None) -> Iterator[Path]:
    """Return a folder that is removed at the end of the block.

    A folder that a killed process left is removed by the next process.

    Args:
        parent: None is the temporary folder of the system.

    Examples:
        >>> with temporary_folder() as folder:
        ...     folder.is_dir()
        True
        >>> folder.exists()
        False
    """
    parent = Path(parent or tempfile.gettempdir())
    _clear_abandoned(parent.resolve())
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=f".writing-{_HOST}-{os.getpid()}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Add the name of a file to errors of writing it.

    The error of a full disk has no file name, or that of a temporary file.

    Examples:
        >>> with named(Path("masks.png")):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device: 'masks.png'
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or _elsewhere(error, path):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        # The error class of safetensors would take long to import.
        found = re.search(r"\(os error (\d+)\)", str(error))
        if type(error).__name__ != "SafetensorError" or found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def _elsewhere(error: OSError, path: Path) -> bool:
    """Return whether an error is about another file, for example one that is read."""
    name = error.filename
    return name is not None and not Path(os.fsdecode(name)).name.startswith(".writing-")


@contextlib.contextmanager
def locked(path: Path, lock_file: Path | None = None) -> Iterator[None]:
    """Lock a file or folder; other processes and threads wait for it.

    A killed process releases its locks.

    Args:
        path: the file or folder; need not exist.
        lock_file: file of the lock. None is a file in the cache, which leaves nothing next to
            ``path`` and works among processes that share a cache. Folders that several machines
            write to need a separate lock file.
    """
    from filelock import FileLock, Timeout

    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    lock_file = lock_file or cache_dir() / "locks" / f"{name}.lock"
    lock = FileLock(lock_file)
    held = True
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=1, poll_interval=0.01)
    except Timeout:
        held = _supports_locks(lock_file)  # some versions of filelock repeat every error
        if held:
            logger.info("waiting for another run that writes to %s", path)
            lock.acquire(poll_interval=0.01)
    # A cache that cannot be written, or a file system without locks.
    except (OSError, NotImplementedError):
        held = False
    try:
        yield
    finally:
        if held:
            lock.release()


def _supports_locks(path: Path) -> bool:
    """Return whether the file system of a file supports locks, whoever holds this one."""
    if os.name == "nt":
        return True
    import fcntl

    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)
    return True


@cache
def _clear_abandoned(folder: Path) -> None:
    """Remove the temporary files that killed processes of this machine left, once per folder."""
    for path in folder.glob(f".writing-{_HOST}-*"):
        number = path.name.removeprefix(f".writing-{_HOST}-").partition("-")[0]
        if number.isdecimal() and not _runs(int(number)):
            with contextlib.suppress(OSError):  # of another user, or in a read-only folder
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    if os.name == "nt":  # on Windows, os.kill would terminate the process
        return True
    try:
        os.kill(process, 0)  # signal 0 only tests whether the process exists
    except ProcessLookupError:
        return False
    except OSError:
        return True  # of another user
    return True


def write_json(path: str | Path, content: Any, *, private: bool = False) -> None:
    """Write ``content`` as indented JSON, atomically.

    Args:
        private: only the owner can read and write the file.
    """
    with atomic_path(path, private=private) as temporary:
        temporary.write_bytes(json_bytes(content, indent=2) + b"\n")


def json_bytes(content: Any, **options: Any) -> bytes:
    r"""Return JSON in UTF-8, with letters as they are.

    Bytes of a file name that are not UTF-8, which Python represents as lone surrogates, become
    escapes such as ``\udcff``, with which the JSON remains valid.

    Examples:
        >>> json_bytes(["caf\u00e9", os.fsdecode(b"caf\xe9")])
        b'["caf\xc3\xa9", "caf\\udce9"]'
    """
    return json.dumps(content, ensure_ascii=False, **options).encode("utf-8", "backslashreplace")


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with Path(path).open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
