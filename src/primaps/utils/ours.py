"""Single files of results: this package replaces its own, by a mark inside, and no others."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primaps.utils.files import atomic_path, save_picture, write_json
from primaps.utils.outputs import OutputError
from primaps.version import VERSION

if TYPE_CHECKING:
    from PIL import Image

GENERATOR = f"primaps {VERSION}"
"""Who wrote a file: what :data:`MARKS` find is followed by it."""
MARKS = {
    ".html": b'<meta name="generator" content="primaps ',
    ".json": b'"generator": "primaps ',
    ".md": b"<!-- generator: primaps ",
    ".png": b"Software\0primaps ",
    ".safetensors": b'"generator":"primaps ',
}
HEAD = 1 << 16
"""Bytes in which the mark has to be."""


@contextlib.contextmanager
def own_path(path: str | Path) -> Iterator[Path]:
    """:func:`primaps.utils.files.atomic_path`, if nothing is there or it is of this package.

    The file that the block writes carries the mark of its kind; one of a kind without marks is only
    ever replaced by what it is already.

    Raises:
        OutputError: the file was not written by this package.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "report.html"
        >>> for _ in range(2):
        ...     with own_path(path) as temporary:
        ...         _ = temporary.write_bytes(MARKS[".html"] + b'0.1">')
        >>> _ = path.write_text("<p>mine")
        >>> with own_path(path) as temporary:
        ...     pass
        Traceback (most recent call last):
        primaps.utils.outputs.OutputError: .../report.html was not written by primaps: ...
    """
    path = Path(path)
    need_own(path)
    with atomic_path(path) as temporary:
        yield temporary
        if path.suffix.lower() in MARKS:
            assert _marked(temporary), f"{path.suffix} is written without its mark"
        elif path.exists() and path.read_bytes() != temporary.read_bytes():
            raise _foreign(path)
        need_own(path)  # once more: writing takes a while


def need_own(path: Path) -> None:
    """Refuse a path at which something is that this package did not write, before any work.

    Raises:
        OutputError: it is.
    """
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_file():
        raise OutputError(f"{path} is no ordinary file: it is not replaced; give another name")
    if path.suffix.lower() in MARKS and not _marked(path):
        raise _foreign(path)


def write_scores(path: Path, content: dict[str, Any]) -> None:
    """Write the scores of an evaluation as JSON.

    Raises:
        OutputError: the file is there, and not of this package.
    """
    with own_path(path) as temporary:
        write_json(temporary, {"generator": GENERATOR, **content})


def write_png(picture: Image.Image, path: str | Path) -> None:
    """Write a picture as PNG.

    Raises:
        OutputError: the file is there, and not of this package.
    """
    from PIL.PngImagePlugin import PngInfo

    mark = PngInfo()
    mark.add_text("Software", GENERATOR)
    with own_path(path) as temporary:
        save_picture(picture, temporary, pnginfo=mark)


def _marked(path: Path) -> bool:
    with path.open("rb") as file:
        return MARKS[path.suffix.lower()] in file.read(HEAD)


def _foreign(path: Path) -> OutputError:
    return OutputError(
        f"{path} was not written by primaps: it is not replaced; move it away, or give another name"
    )
