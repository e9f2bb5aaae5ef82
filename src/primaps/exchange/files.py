"""Files of other tools: bounded reading from folders and zip files, and writing piece by piece."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
import unicodedata
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from primaps.data.images import opened, upright_size
from primaps.utils.errors import InputError, PrimapsError
from primaps.utils.inputs import parse_json, read_bytes

T = TypeVar("T")
MAX_PIXELS = 178_956_970
"""Maximum number of pixels that a file may declare for an image, the limit of Pillow."""
MAX_FILE = 2 << 30
"""Maximum size of a file in bytes, unpacked."""
MAX_NAME, MAX_PATH = 250, 1000
"""Maximum number of bytes of a file name and of a path, below the limits of file systems."""
MAX_RATIO, RATIO_FROM = 200, 1 << 26
"""Maximum compression ratio of files in a zip file, for files of at least 64 MB unpacked."""


def check_text(text: str, what: str) -> None:
    """Check that a name has no line breaks or other control characters.

    Raises:
        InputError: The name has such a character.
    """
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs", "Cn", "Zl", "Zp"):
            raise InputError(
                f"{what} {text!r} has the unsupported character {character!r}; rename it"
            )


def safe_name(name: object, where: str) -> str:
    """Return a relative path with ``/`` as separator that stays in its folder.

    Raises:
        InputError: The name is not such a path.

    Examples:
        >>> safe_name("a\\\\b.png", "x.json")
        'a/b.png'
        >>> safe_name("../b.png", "x.json")
        Traceback (most recent call last):
        primaps.utils.errors.InputError: x.json: the file name '../b.png' is outside of its ...
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f"{where}: a file name is {name!r}; it must be text; export it again")
    check_text(name, f"{where}: the file name")
    path = PurePosixPath(name.replace("\\", "/"))
    drive = PureWindowsPath(name).drive
    if path.is_absolute() or drive or ".." in path.parts or not path.parts:
        raise InputError(f"{where}: the file name {name!r} is outside of its folder; rename it")
    sizes = [len(part.encode()) + 1 for part in path.parts]
    if max(sizes) > MAX_NAME or sum(sizes) > MAX_PATH:
        raise InputError(f"{where}: the file name {name[:60]!r}... is too long; rename it")
    return str(path)


def get_field(content: Any, key: str, kind: type[T] | tuple[type[T], ...], where: str) -> T:
    """Return ``content[key]`` if it has the type ``kind``.

    Raises:
        InputError: The key is missing, or its value has another type.

    Examples:
        >>> get_field({"id": 3}, "id", int, "a.json")
        3
        >>> get_field({"id": "3"}, "id", int, "a.json")
        Traceback (most recent call last):
        primaps.utils.errors.InputError: a.json: field 'id' must be int, got str; export it again
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(content, dict) or key not in content:
        raise InputError(f"{where}: field {key!r} is missing; does the file have another format?")
    value = content[key]
    if not isinstance(value, kinds) or isinstance(value, bool):
        names = " or ".join(one.__name__ for one in kinds)
        raise InputError(
            f"{where}: field {key!r} must be {names}, got {type(value).__name__}; export it again"
        )
    return value


def text_lines(content: bytes, where: str) -> list[str]:
    """Return the lines of a text in UTF-8, without blank lines at the end and spaces around lines.

    Raises:
        InputError: The text is not UTF-8.

    Examples:
        >>> text_lines(b"car\\r\\nroad \\n\\n", "classes.txt")
        ['car', 'road']
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{where} is not text in UTF-8; save it again in UTF-8") from None
    return [line.strip() for line in text.rstrip().splitlines()]


def image_size(width: Any, height: Any, where: str) -> tuple[int, int]:
    """Return height and width of an image as a file declares them.

    Raises:
        InputError: They are not positive integers, or more than ``MAX_PIXELS``.
    """
    try:
        if isinstance(height, bool) or isinstance(width, bool):
            raise ValueError
        size = int(height), int(width)
    except (TypeError, ValueError, OverflowError):
        size = (0, 0)
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise InputError(
            f"{where}: the image size {width!r} x {height!r} must be at least 1 x 1 and at most "
            f"{MAX_PIXELS:,} pixels; export it again"
        )
    return size


def parse_xml(content: bytes, where: str) -> ET.Element:
    """Parse an XML document without a document type, whose entities could grow without bound.

    Raises:
        InputError: The content is not XML, or declares a document type.
    """

    class Builder(ET.TreeBuilder):
        def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
            raise InputError(f"{where}: a document type is not supported; remove <!DOCTYPE ...>")

    try:
        return ET.fromstring(content, ET.XMLParser(target=Builder()))
    except InputError:
        raise
    except (ET.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{where} is not XML ({error}); is it cut off?") from None


class InputFiles:
    """Files of a folder or zip file by their relative names.

    Attributes:
        path: The folder, zip file or single file.
        names: Sorted relative names of the files; the name of a single file.
    """

    def __init__(self, path: Path, names: list[str], content: Callable[[str], bytes]) -> None:
        self.path, self.names, self._content = path, sorted(names), content
        self._known = frozenset(names)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def where(self, name: str) -> str:
        """Return the path of a file for error messages."""
        alone = self.path.is_file() and len(self.names) == 1
        return str(self.path) if alone else f"{self.path}/{name}"

    def find(self, suffix: str) -> str:
        """Return the name of the only file whose name ends with ``suffix``.

        Raises:
            InputError: No file or several files have this suffix.
        """
        names = [name for name in self.names if name.lower().endswith(suffix)]
        if len(names) != 1:
            listed = f"{len(names)}, first {names[0]} and {names[1]}" if names else "none"
            raise InputError(f"{self.path} must have one file *{suffix}, but has {listed}")
        return names[0]

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            InputError: The file does not exist, is damaged, or too large.
        """
        if name not in self._known:
            raise InputError(f"{self.path}: the file {name} does not exist; export it again")
        try:
            return self._content(name)
        except PrimapsError:
            raise
        except Exception as error:  # zipfile and its decompressors raise many types
            raise InputError(f"{self.where(name)} cannot be read ({error}); restore it") from None

    def json(self, name: str) -> Any:
        """Return the content of a JSON file.

        Raises:
            InputError: The file is not JSON, or nested too deeply.
        """
        return parse_json(self.read(name), Any, self.where(name), "is it cut off?")

    def image(self, name: str, mode: str | None = None) -> np.ndarray:
        """Return an image file as an array, converted to a mode of Pillow.

        Raises:
            ImageError: The file is not an image, damaged, or too large.
        """
        return decode_image(self.read(name), self.where(name), mode)

    def label_map(self, name: str) -> UInt8[np.ndarray, "h w"]:
        """Return an image file of one channel of 8 bits.

        Raises:
            InputError: The image has another shape or type.
            ImageError: The file is not an image, damaged, or too large.
        """
        labels = self.image(name)
        if labels.ndim != 2 or labels.dtype != np.uint8:
            raise InputError(f"{self.where(name)} must have one channel of 8 bits; convert it")
        return labels

    def size(self, name: str) -> tuple[int, int]:
        """Return height and width of an image file, rotated by its EXIF orientation."""
        with opened(self.where(name), self.read(name)) as image:
            return image_size(*upright_size(image), self.where(name))


def decode_image(content: bytes, where: str, mode: str | None = None) -> np.ndarray:
    """Return an encoded image as an array, converted to a mode of Pillow.

    Raises:
        ImageError: The content is not an image, damaged, or too large.
    """
    with opened(where, content) as image:
        return np.asarray(image if mode is None else image.convert(mode))


@contextlib.contextmanager
def open_files(path: str | Path) -> Iterator[InputFiles]:
    """Open a folder, the only zip file in a folder, a zip file, or another file.

    Links that leave the folder and hidden files are skipped.

    Raises:
        InputError: The path does not exist, or is a damaged zip file, or a zip file with paths
            that leave its folder.
    """
    path = Path(path)
    if path.is_dir():
        root = path.resolve()
        inside = [
            one.relative_to(path).as_posix()
            for one in path.rglob("*")
            if one.is_file() and one.resolve().is_relative_to(root)
        ]
        names = [name for name in inside if not any(p.startswith(".") for p in name.split("/"))]
        if len(names) == 1 and names[0].lower().endswith(".zip"):
            with open_files(path / names[0]) as files:
                yield files
        else:
            yield InputFiles(path, names, lambda name: read_bytes(path / name, MAX_FILE))
    elif not path.is_file():
        raise InputError(f"{path} does not exist")
    elif path.suffix.lower() != ".zip":
        yield InputFiles(path, [path.name], lambda name: read_bytes(path, MAX_FILE))
    else:
        try:
            archive = zipfile.ZipFile(path)
        except Exception as error:  # zipfile raises many types for damaged bytes
            raise InputError(f"{path} is not a zip file, or cut off ({error})") from None
        with archive:
            infos = {
                safe_name(info.filename, str(path)): info
                for info in archive.infolist()
                if not info.filename.endswith("/")  # is_dir() fails for an empty name
            }
            yield InputFiles(path, list(infos), lambda name: _unpack(archive, infos[name]))


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    ratio = info.file_size / max(info.compress_size, 1)
    if info.file_size > MAX_FILE or (ratio > MAX_RATIO and info.file_size > RATIO_FROM):
        raise InputError(
            f"{archive.filename}: {info.filename} has {info.file_size:,} bytes unpacked and "
            f"{info.compress_size:,} packed, like a zip bomb; unpack it yourself"
        )
    with archive.open(info) as file:  # reads no more than the size declared above
        return file.read()


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def to_json(content: Any) -> str:
    """Return JSON on one line, without escapes for letters."""
    return _ENCODER.encode(content)


@contextlib.contextmanager
def json_arrays(path: Path, *names: str, **fixed: Any) -> Iterator[Callable[[str, Any], None]]:
    """Write a JSON object of arrays that grow side by side, in constant memory.

    Each array is written to a temporary file until all are complete.

    Args:
        path: File to write.
        names: Keys of the arrays.
        fixed: Other fields of the object.

    Yields:
        Function that appends to the array with a key.

    Examples:
        >>> path = Path(tempfile.mkdtemp()) / "a.json"
        >>> with json_arrays(path, "images", "annotations", version=1) as add:
        ...     add("images", {"id": 1}); add("annotations", {"id": 7}); add("images", {"id": 2})
        >>> json.loads(path.read_text())
        {'version': 1, 'images': [{'id': 1}, {'id': 2}], 'annotations': [{'id': 7}]}
    """
    with contextlib.ExitStack() as stack:
        arrays = {name: stack.enter_context(tempfile.TemporaryFile()) for name in names}
        yield lambda name, content: _append(arrays[name], content)
        with path.open("wb") as file:
            text = ",\n".join(f"{to_json(key)}:{to_json(value)}" for key, value in fixed.items())
            file.write(f"{{{text}".encode())
            for name, array in arrays.items():
                separator = ",\n" if file.tell() > 1 else ""
                file.write(f"{separator}{to_json(name)}:[".encode())
                array.seek(0)
                shutil.copyfileobj(array, file, 1 << 20)
                file.write(b"]")
            file.write(b"}\n")


@contextlib.contextmanager
def json_array(path: Path) -> Iterator[Callable[[Any], None]]:
    """Write a JSON array piece by piece; yields the function that appends to it."""
    with path.open("w+b") as file:
        file.write(b"[")
        yield lambda content: _append(file, content)
        file.write(b"]\n")


def _append(file: IO[bytes], content: Any) -> None:
    file.write((b",\n" if file.tell() > 1 else b"") + to_json(content).encode())


def add_to_zip(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file to a zip file with a fixed date, for identical bytes."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.external_attr = 0o644 << 16
    compressed = name.endswith(".png")
    info.compress_type = zipfile.ZIP_STORED if compressed else zipfile.ZIP_DEFLATED
    archive.writestr(info, content)


def png(array: np.ndarray, colors: UInt8[np.ndarray, "k 3"] | None = None) -> bytes:
    """Return a PNG of 8 bits: indices, with or without a palette of colors, or RGB."""
    image = Image.fromarray(array)
    if colors is not None:
        image.putpalette(colors.tobytes())
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file, and create the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
