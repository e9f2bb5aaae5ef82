"""JSON and zip files written piece by piece, so that memory does not grow with the images."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Add = Callable[[str, Any], None]
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def to_json(content: Any) -> str:
    """JSON on one line, letters of all languages as they are."""
    return _ENCODER.encode(content)


@contextlib.contextmanager
def json_arrays(path: Path, *names: str, **fixed: Any) -> Iterator[Add]:
    """A JSON object of arrays that grow side by side; gives the function that adds to one.

    Each array waits in a temporary file of its own until all are written one after the other.

    Args:
        names: keys of the arrays.
        fixed: what else the object has.

    Examples:
        >>> path = Path(tempfile.mkdtemp()) / "a.json"
        >>> with json_arrays(path, "images", "annotations", version=1) as add:
        ...     add("images", {"id": 1}); add("annotations", {"id": 7}); add("images", {"id": 2})
        >>> json.loads(path.read_text())
        {'version': 1, 'images': [{'id': 1}, {'id': 2}], 'annotations': [{'id': 7}]}
    """
    with contextlib.ExitStack() as stack:
        parts = {name: stack.enter_context(tempfile.TemporaryFile()) for name in names}

        def add(name: str, content: Any) -> None:
            _append(parts[name], content)

        yield add
        with path.open("wb") as file:
            text = ",\n".join(f"{to_json(key)}:{to_json(value)}" for key, value in fixed.items())
            file.write(f"{{{text}".encode())
            for name, part in parts.items():
                begin = ",\n" if file.tell() > 1 else ""
                file.write(f"{begin}{to_json(name)}:[".encode())
                part.seek(0)
                shutil.copyfileobj(part, file, 1 << 20)
                file.write(b"]")
            file.write(b"}\n")


@contextlib.contextmanager
def json_array(path: Path) -> Iterator[Callable[[Any], None]]:
    """A JSON array; gives the function that adds to it."""
    with path.open("w+b") as file:
        file.write(b"[")
        yield lambda content: _append(file, content)
        file.write(b"]\n")


def _append(file: IO[bytes], content: Any) -> None:
    file.write((b",\n" if file.tell() > 1 else b"") + to_json(content).encode())


class Packed:
    """A zip file whose bytes depend on what is put into it alone."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._file = file

    def add(self, name: str, content: bytes) -> None:
        """Put a file into it."""
        info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
        info.external_attr = 0o644 << 16
        # Pictures are packed already.
        info.compress_type = zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
        self._file.writestr(info, content)


@contextlib.contextmanager
def zip_file(path: Path) -> Iterator[Packed]:
    """A new zip file."""
    with zipfile.ZipFile(path, "w") as file:
        yield Packed(file)


def png(array: np.ndarray, colors: UInt8[np.ndarray, "k 3"] | None = None) -> bytes:
    """A PNG of 8 bits: indices (with the colors of a palette) or red, green and blue."""
    picture = Image.fromarray(array)
    if colors is not None:
        picture.putpalette(colors.tobytes())
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def put(path: Path, content: bytes | str) -> None:
    """Write a file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
