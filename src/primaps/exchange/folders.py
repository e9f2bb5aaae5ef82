"""Folders that appear whole or not at all, and never in place of a user's files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from primaps.utils.errors import InputError
from primaps.utils.files import sha256, temporary_folder, user_path
from primaps.utils.inputs import read_json

MARK = ".primaps-export.json"
"""Says that a folder was made here, and the digest of its content as it was made."""


@contextlib.contextmanager
def whole_folder(out: str | Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that becomes it when the block ends without an error.

    ``out`` may be absent, empty, or what an earlier call made, unchanged since: that is replaced.

    Raises:
        InputError: ``out`` is a file, or holds anything else.

    Examples:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "out"
        >>> with whole_folder(place) as temporary:
        ...     _ = (temporary / "a.txt").write_text("complete")
        >>> sorted(path.name for path in place.iterdir())
        ['.primaps-export.json', 'a.txt']
    """
    out = user_path(out).absolute()
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(out.parent) as temporary:
        yield temporary
        (temporary / MARK).write_text(json.dumps({"sha256": _digest(temporary)}) + "\n", "utf-8")
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp makes folders private
        check_free(out)  # once more: writing takes a while
        if out.is_dir() and any(out.iterdir()):
            with temporary_folder(out.parent) as old:
                out.rename(old / "old")
                try:
                    temporary.rename(out)
                except BaseException:
                    (old / "old").rename(out)
                    raise
        else:
            temporary.replace(out)


def check_free(out: Path) -> None:
    """Raise unless ``out`` is absent, empty, or unchanged since it was made here."""
    if out.is_file():
        raise InputError(f"{out} is a file: give a folder to write to")
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        stated = read_json(out / MARK, dict[str, str])["sha256"]
    except (OSError, InputError, KeyError):
        raise InputError(f"{out} is not empty: give another folder, or empty it") from None
    if stated != _digest(out):
        raise InputError(
            f"{out} was changed since it was made: give another folder, so that no work is lost"
        )


def _digest(folder: Path) -> str:
    """SHA-256 of names and contents below a folder, without the mark."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path == folder / MARK:
            continue
        total.update(os.fsencode(path.relative_to(folder).as_posix()) + b"\0")
        if path.is_file():
            total.update(sha256(path).encode())
    return total.hexdigest()
