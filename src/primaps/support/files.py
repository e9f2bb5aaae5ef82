"""Where files live and how they are written: whole, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

logger = logging.getLogger("primaps")
_HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname()) or "host"


def cache_dir() -> Path:
    """Folder of converted weights and stored features.

    ``$PRIMAPS_CACHE`` if set, else ``$XDG_CACHE_HOME/primaps``, else ``~/.cache/primaps``.
    """
    if chosen := os.environ.get("PRIMAPS_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "primaps"


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block ends without an error.

    A reader sees the old file or the complete new one, never a half-written one.

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
    # The suffix stays, because libraries choose the format by it.
    prefix = f".writing-{_HOST}-{os.getpid()}-"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder or file; another process of this user that wants it waits. The lock is in the
    cache, so that nothing is left in the folder."""
    from filelock import FileLock, Timeout

    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    path = cache_dir() / "locks" / f"{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=1)
    except Timeout:
        logger.info("waiting for another run that writes to %s", folder)
        lock.acquire()
    except OSError:  # no cache to write to: then nobody else of this machine has one either
        yield
        return
    try:
        yield
    finally:
        lock.release()


@cache
def _clear_abandoned(folder: Path) -> None:
    """Remove what killed processes of this machine left half-written, once per folder."""
    for path in folder.glob(f".writing-{_HOST}-*"):
        number = path.name.removeprefix(f".writing-{_HOST}-").partition("-")[0]
        if number.isdecimal() and not _runs(int(number)):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    if os.name == "nt":  # there the question would end it
        return True
    try:
        os.kill(process, 0)  # no signal, only the question
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is another user's
    return True


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def sha256(path: str | Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with Path(path).open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
