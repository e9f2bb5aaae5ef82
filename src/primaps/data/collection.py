"""Image collections: files, folders, globs, archives and URLs, and the labels of their images."""

from __future__ import annotations

import glob
import logging
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple, TypeVar

import torch
from annotated_types import Interval, Len
from PIL import Image

from primaps.data.images import Stored, load_image
from primaps.data.storage import ARCHIVES, COMPRESSED, images_at, is_url, local_archive
from primaps.utils.errors import InputError, NotFoundError
from primaps.utils.files import user_path
from primaps.utils.inputs import need_file, parse_json
from primaps.utils.seeding import generator
from primaps.utils.validation import validate

logger = logging.getLogger("primaps")
_KINDS = "avif bmp gif jfif jp2 jpe jpeg jpg mpo pgm png ppm tif tiff webp"
_UNREAD = (
    "3fr arw cr2 cr3 crw dcm dng eps exr heic heics heif hif iiq j2k jpf jpx jxl nef nrw orf pef "
    "psd raf raw rw2 sr2 srf srw svg tga x3f"
)
LABELS = 65_536
"""Number of values that a 16-bit label map can have."""
MAX_CLASSES = 4096
"""Maximum number of classes in ``classes.json``; a confusion matrix has as many rows."""
LARGEST_CLASS_LIST = 4 << 20
"""Maximum size of ``classes.json`` in bytes."""
IgnoreIndex = Annotated[int, Interval(ge=0, le=LABELS - 1)]
Level = Annotated[int, Interval(ge=0, le=255)]
IMAGE_SUFFIXES = frozenset(f".{kind}" for kind in _KINDS.split())
UNREAD_SUFFIXES = frozenset(f".{kind}" for kind in _UNREAD.split())
"""Suffixes of images in formats that are not read; :func:`find_images` counts them."""


@dataclass(frozen=True)
class ImageFile:
    """An image of a collection.

    Attributes:
        source: file, image in memory, or image in an archive or on a server.
        key: path relative to the input, without its suffix and unique in the collection. Results
            and label maps have this name.
        depth: bits of the values of an image of more than 8 bits, which all images of the
            collection share (:func:`primaps.data.at_depth`); None is not decided yet.
    """

    source: Path | Image.Image | Stored
    key: str
    depth: int | None = field(default=None, kw_only=True)

    def load(self) -> Image.Image:
        """Read the image as :func:`primaps.load_image` does, with the depth of its collection.

        Raises:
            ImageError: the image cannot be read.
        """
        return load_image(self.source, self.depth)


def find_images(
    inputs: str | Path | Sequence[str | Path],
    exclude: str | Path | None = None,
    log: Callable[[str], None] = logger.warning,
) -> list[ImageFile]:
    """List the images of files, folders, globs, archives and URLs, sorted by path.

    Folders are searched recursively for files with the suffix of an image. A file that is named
    is always included. Hidden files are skipped. Links are followed: a linked file or folder has
    the name of the link, and a link to a folder above itself is skipped. Keys are relative to the
    folder, or to the common folder of several inputs. Files that differ in their suffix only keep
    it in their keys (``a.jpg`` and ``a.png``).

    Tar files that are named or match a glob contribute their images, under their paths in the
    archive (the layout of WebDataset). URLs are files, folders, globs or tar files on servers
    (``s3://``, ``gs://``, ``hf://``, ``https://``, ...), if fsspec has a driver. If two images of
    archives or URLs have the same key, the name of the archive or URL is put before it.

    Args:
        inputs: files, folders, globs and URLs.
        exclude: folder inside an input whose images are skipped, for example the output folder.
        log: called with one sentence if links without a target, images of formats that are not
            read (``.heic``, ``.dng``, ...) or folders without permission are left out.

    Raises:
        InputError: an input is not a path, or empty.
        NotFoundError: an input does not exist or matches no file, or no image was found.
        MissingPackageError: a URL needs a package that is not installed.
    """
    given: list[Any] = [inputs]
    if isinstance(inputs, Iterable) and not isinstance(inputs, str):
        given = list(inputs)
    if invalid := [entry for entry in given if not isinstance(entry, str | Path) or not str(entry)]:
        raise InputError(f"an input is {invalid[0]!r}; give files, folders or globs")
    if not given:
        raise NotFoundError("no input was given; give files, folders or globs")
    left_out = LeftOut()
    local, groups = _split_inputs(given, left_out)
    files = _local_images(local, exclude, left_out) if local else []
    if groups:
        files = _join(files, groups)
        if not files:
            inputs_named = ", ".join(map(str, given))
            raise NotFoundError(f"no image in {inputs_named}")
    if left_out:
        log(f"left out: {left_out}")
    return files


class LeftOut:
    """Files and folders that a search leaves out, counted for one sentence."""

    def __init__(self) -> None:
        self._unread: list[Path] = []
        self._broken: list[Path] = []
        self._closed: list[Path] = []
        self._companions: list[str] = []

    def __len__(self) -> int:
        files = [*self._unread, *self._broken, *self._closed]
        return len(files) + len(self._companions)

    def add(self, path: Path) -> None:
        """Count a path that is not an image, if a user would expect it to be one."""
        suffix = path.suffix.lower()
        if suffix in UNREAD_SUFFIXES and path.is_file():
            self._unread.append(path)
        elif suffix in UNREAD_SUFFIXES | IMAGE_SUFFIXES and path.is_symlink():
            try:
                target_exists = path.exists()
            except OSError:  # a link to itself
                target_exists = False
            if not target_exists:
                self._broken.append(path)

    def add_closed(self, folder: Path) -> None:
        """Count a folder that cannot be read."""
        self._closed.append(folder)

    def add_companion(self, name: str) -> None:
        """Count an image of an archive that belongs to another one."""
        self._companions.append(name)

    def __str__(self) -> str:
        parts = []
        if self._unread:
            suffixes = ", ".join(sorted({path.suffix.lower() for path in self._unread}))
            parts.append(
                f"{_count(self._unread, 'image')} of formats that are not read ({suffixes})"
            )
        if self._broken:
            parts.append(f"{_count(self._broken, 'link')} without a target")
        if self._closed:
            parts.append(f"{_count(self._closed, 'folder')} that cannot be read")
        if self._companions:
            images = _count(self._companions, "image")
            parts.append(f"{images} that belong to another one, such as 0.seg.png to 0.jpg")
        named = sorted(map(str, [*self._unread, *self._broken, *self._closed]))
        first = [*named, *self._companions][0]
        hint = "; convert the images to JPEG, PNG or TIFF" if self._unread else ""
        return f"{' and '.join(parts)}; first {first}{hint}"


def _count(items: Sequence[Any], noun: str) -> str:
    return f"{len(items):,} {noun}{'s' if len(items) > 1 else ''}"


def _split_inputs(
    given: Sequence[str | Path], left_out: LeftOut
) -> tuple[list[str | Path], dict[str, list[ImageFile]]]:
    """Return the inputs that are local files, and the images of each archive and URL."""
    local: list[str | Path] = []
    groups: dict[str, list[ImageFile]] = {}
    for entry in given:
        text, path = str(entry), user_path(entry)
        if isinstance(entry, str) and is_url(entry):
            remote = images_at(entry, IMAGE_SUFFIXES, left_out.add_companion)
            groups[text] = [ImageFile(one, key) for key, one in remote]
            continue
        lower = text.lower()
        if lower.endswith(COMPRESSED):
            raise NotFoundError(
                f"{entry} is compressed, which is not supported; decompress it to .tar"
            )
        archives = [path] if path.is_file() else []
        if lower.endswith(ARCHIVES) and not archives:
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
            archives = [one for one in map(Path, matches) if one.is_file()]
        if not lower.endswith(ARCHIVES) or not archives:
            local.append(entry)
            continue
        for archive in map(own_name, archives):
            images = local_archive(archive, IMAGE_SUFFIXES, left_out.add_companion)
            groups[str(archive)] = [ImageFile(one, key) for key, one in images]
    return local, groups


def own_name(path: Path) -> Path:
    """Return the absolute path of a file or folder under its own name, which may be a link's."""
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def _join(files: list[ImageFile], groups: dict[str, list[ImageFile]]) -> list[ImageFile]:
    """Join local images and the images of archives and URLs; each one has its own key."""
    joined = [*files, *(file for group in groups.values() for file in group)]
    if len({same_name(file.key) for file in joined}) < len(joined):
        joined = list(files)
        for name, group in groups.items():
            stem = PurePosixPath(name.rstrip("/")).stem
            joined += [ImageFile(file.source, f"{stem}/{file.key}") for file in group]
    suffixes = [PurePosixPath(str(file.source)).suffix for file in joined]
    whole = [file.key + suffix for file, suffix in zip(joined, suffixes, strict=True)]
    keys = unique_keys([file.key for file in joined], whole)
    found = [ImageFile(file.source, key) for file, key in zip(joined, keys, strict=True)]
    known: dict[str, ImageFile] = {}
    for file in found:
        if (other := known.setdefault(same_name(file.key), file)) is not file:
            raise NotFoundError(
                f"{other.source} and {file.source} would have the same output name; process "
                "them in separate runs"
            )
    return found


def unique_keys(stems: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the keys of files: their names without suffix, or with it where keys would be equal.

    Args:
        stems: names without suffix.
        names: names with suffix.

    Examples:
        >>> unique_keys(["a", "b", "b"], ["a.jpg", "b.jpg", "b.png"])
        ['a', 'b.jpg', 'b.png']
        >>> unique_keys(["a", "a", "a.jpg"], ["a.jpg", "a.png", "a.jpg.png"])
        ['a.jpg', 'a.png', 'a.jpg.png']
    """
    keys, whole = list(stems), [False] * len(stems)
    while True:
        counts = Counter(map(same_name, keys))
        equal = [i for i, key in enumerate(keys) if not whole[i] and counts[same_name(key)] > 1]
        if not equal:
            return keys
        for i in equal:  # their names may be equal to other keys: repeat
            keys[i], whole[i] = names[i], True


def same_name(name: str) -> str:
    """Return a form of a name that is equal for names that are one file on some file systems.

    These ignore the case, or how letters with accents are composed (NFC and NFD in Unicode).

    Examples:
        >>> same_name("Caf\u00e9") == same_name("cafe\u0301")
        True
    """
    return name.casefold() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


def _local_images(
    given: Sequence[str | Path], exclude: str | Path | None, left_out: LeftOut
) -> list[ImageFile]:
    """List the images of local files, folders and globs."""
    found: dict[Path, None] = {}  # a set with an order
    roots: list[Path] = []
    excluded_folder = Path(exclude).resolve() if exclude is not None else None
    excluded = 0
    for entry in given:
        path, before = user_path(entry), len(left_out)
        if path.is_dir():
            roots.append(own_name(path))
            candidates = [one for one in _walk(roots[-1], left_out) if _is_image(one)]
        elif path.is_file():
            own = own_name(path)
            roots.append(own.parent)
            found[own] = None
            continue
        elif os.path.lexists(path):
            raise NotFoundError(f"{entry} is {_kind(path)}; give files, folders or globs")
        else:
            root, candidates = _matches(path, left_out)
            roots.append(root)
            if not candidates and len(left_out) == before:
                raise NotFoundError(f"{entry} does not exist and matches no file")
        skip = None if _is_inside(roots[-1].resolve(), excluded_folder) else excluded_folder
        kept = [one for one in candidates if not _is_inside(one.folder, skip)]
        excluded += len(candidates) - len(kept)
        found |= dict.fromkeys(one.path for one in kept)
    if not found:
        inputs_named = ", ".join(map(str, given))
        if excluded:
            raise NotFoundError(
                f"all {excluded} images in {inputs_named} are in the output folder {exclude}; "
                "choose another output folder"
            )
        raise NotFoundError(
            f"no image in {inputs_named} (supported suffixes: {', '.join(sorted(IMAGE_SUFFIXES))})"
            + (f"; left out: {left_out}" if left_out else "")
        )
    root = Path(os.path.commonpath(roots))
    names = sorted((path.relative_to(root), path) for path in found)
    whole = [name.as_posix() for name, _ in names]
    keys = unique_keys([name.with_suffix("").as_posix() for name, _ in names], whole)
    return [ImageFile(path, key) for (_, path), key in zip(names, keys, strict=True)]


def find_files(folder: Path, exclude: Path) -> Iterator[Path]:
    """Yield the image files below a folder as :func:`find_images` lists them, unsorted."""
    for entry in _walk(folder, LeftOut()):
        if _is_image(entry) and not _is_inside(entry.folder, exclude):
            yield entry.path


class _Entry(NamedTuple):
    """A file that a search finds.

    Attributes:
        path: the file under its own name and those of the folders above it, some of them links.
        folder: folder that it really lies in.
    """

    path: Path
    folder: Path


def _is_image(entry: _Entry) -> bool:
    return entry.path.suffix.lower() in IMAGE_SUFFIXES


def _is_inside(folder: Path, other: Path | None) -> bool:
    return other is not None and (folder == other or other in folder.parents)


def _walk(folder: Path, left_out: LeftOut, top: Path | None = None) -> Iterator[_Entry]:
    """Yield the files of a folder and of the folders below it, hidden ones excepted.

    Links to folders are followed, except to a folder that the link lies in.

    Args:
        folder: an absolute path.
        top: folder above it that the search began in.
    """
    between = folder.relative_to(top).parts if top and folder.is_relative_to(top) else ()
    inside = [folder, *folder.parents][: len(between) + 1]
    above = tuple(path.resolve() for path in reversed(inside))
    waiting = [(folder, above)] if len(set(above)) == len(above) else []
    while waiting:
        path, above = waiting.pop()
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError:
            if path != folder and path.exists():  # otherwise it was removed meanwhile
                left_out.add_closed(path)
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            own = path / entry.name
            try:
                if entry.is_dir():
                    real = own.resolve() if entry.is_symlink() else above[-1] / entry.name
                    if real not in above:
                        waiting.append((own, (*above, real)))
                    continue
                if entry.is_file() and own.suffix.lower() not in UNREAD_SUFFIXES:
                    yield _Entry(own, above[-1])
                    continue
            except OSError:  # a link to itself
                pass
            left_out.add(own)


def _matches(pattern: Path, left_out: LeftOut) -> tuple[Path, list[_Entry]]:
    """Return the fixed folder of a glob, and the images that match it or lie in a match."""
    parts = pattern.parts
    wild = next((i for i, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts))
    root = Path(*parts[:wild])
    found: list[_Entry] = []
    if "**" in parts:  # glob follows links in circles
        first = parts.index("**")
        folders = glob.glob(str(Path(*parts[:first])))  # noqa: PTH207
        for folder in map(Path, sorted(folders)):
            base = root.resolve() / folder.relative_to(root)
            for entry in _walk(base, left_out, root.resolve()) if base.is_dir() else ():
                below = entry.path.relative_to(base).parts
                ends = range(len(below) + 1)
                if any(_match(below[:end], parts[first:]) for end in ends) and _is_image(entry):
                    found.append(entry)
        return root.resolve(), found
    root = root.resolve()
    for match in map(Path, sorted(glob.glob(str(pattern)))):  # noqa: PTH207
        relative = match.relative_to(Path(*parts[:wild]))
        own = own_name(match) if ".." in relative.parts else root / relative
        if own.is_dir():
            found += [entry for entry in _walk(own, left_out, root) if _is_image(entry)]
        elif own.is_file() and own.suffix.lower() in IMAGE_SUFFIXES:
            found.append(_Entry(own, own.parent.resolve()))
        else:
            left_out.add(own)
    outside = [one.path.parent for one in found if not one.path.is_relative_to(root)]
    return Path(os.path.commonpath([root, *outside])), found


def _match(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether parts of a path match those of a glob, in which ``**`` stands for any."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_match(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatch(parts[0], pattern[0]) and _match(parts[1:], pattern[1:])


def local_files(files: Iterable[ImageFile]) -> list[Path]:
    """Return the local files that images come from."""
    found: dict[Path, None] = {}
    for file in files:
        path = file.source.archive if isinstance(file.source, Stored) else file.source
        if isinstance(path, Path):
            found[path] = None
    return list(found)


def _kind(path: Path) -> str:
    """Describe a path that is neither a file nor a folder."""
    if path.is_symlink():
        return f"a link to {path.readlink()}, which does not exist"
    return "neither a file nor a folder"


def find_label(file: ImageFile, labels: str | Path) -> Path | None:
    """Find the label map of an image: its key below ``labels``, as PNG or TIFF.

    A name with accents is found however its letters are composed (NFC and NFD in Unicode).
    """
    keys = [file.key]
    if Path(file.key).suffix.lower() in IMAGE_SUFFIXES:  # the suffix distinguishes two files
        keys.append(str(Path(file.key).with_suffix("")))
    names = [f"{key}{end}" for key in keys for end in (".png", ".tif", ".tiff")]
    for name in names:
        if (path := Path(labels) / name).is_file():
            return path
    if not file.key.isascii():
        for name in names:
            composed = composed_path(Path(labels), name)
            if composed is not None and composed.is_file():
                return composed
    return None


def composed_path(folder: Path, name: str) -> Path | None:
    """Return the path of a file below a folder; None if it does not exist.

    A name with accents is found however its letters are composed (NFC and NFD in Unicode).
    """
    if (folder / name).exists() or name.isascii():
        return folder / name if (folder / name).exists() else None
    path = folder
    for part in PurePosixPath(name).parts:
        own = path / part
        if not own.exists():
            if not path.is_dir():
                return None
            listed = _listed(path, path.stat().st_mtime_ns)
            if (found := listed.get(unicodedata.normalize("NFC", part))) is None:
                return None
            own = path / found
        path = own
    return path


@lru_cache(maxsize=8)
def _listed(folder: Path, changed: int) -> dict[str, str]:
    """Return the names in a folder by their NFC form."""
    return {unicodedata.normalize("NFC", name): name for name in os.listdir(folder)}  # noqa: PTH208


@dataclass(frozen=True)
class ClassList:
    """The content of ``classes.json``.

    Attributes:
        classes: distinct names of the classes 0 to K - 1.
        ignore_index: label that is not evaluated; None if the file has none.
        colors: red, green and blue of each class, 0 to 255; None if the file has none.
    """

    classes: Annotated[list[Annotated[str, Len(1, 200)]], Len(1, MAX_CLASSES)]
    ignore_index: IgnoreIndex | None = None
    colors: list[tuple[Level, Level, Level]] | None = None

    def __post_init__(self) -> None:
        twice = [name for name, number in Counter(self.classes).items() if number > 1]
        if twice:
            raise InputError(f"two classes have the name {twice[0]!r}; names must be distinct")
        if self.colors is not None and len(self.colors) != len(self.classes):
            raise InputError(
                f"{len(self.colors)} colors for {len(self.classes)} classes; give one per class"
            )


def parse_class_list(content: bytes, where: str, hint: str = "") -> ClassList:
    """Parse the content of ``classes.json``.

    Args:
        where: File, for error messages.
        hint: What the file must contain, for error messages.

    Raises:
        InputError: The content is too large, not JSON, or not of this form.
    """
    if len(content) > LARGEST_CLASS_LIST:
        raise InputError(
            f"{where} has more than {LARGEST_CLASS_LIST:,} bytes; a list of classes has at most "
            f"{MAX_CLASSES:,} names: shorten it"
        )
    return parse_json(content, ClassList, where, hint)


def read_class_file(path: Path) -> bytes:
    """Read ``classes.json``, at most one byte more than :func:`parse_class_list` accepts."""
    need_file(path, sys.maxsize)
    with path.open("rb") as file:
        return file.read(LARGEST_CLASS_LIST + 1)


def read_classes(labels: str | Path) -> tuple[list[str] | None, int | None]:
    """Read class names and ignore index from ``classes.json``.

    The file contains ``{"classes": ["road", ...], "ignore_index": 255}``. It is in the folder of
    label maps or up to two folders above: ``labels/val`` uses the file of the data set.

    Returns:
        Class names and ignore index; both are None if the file does not exist.

    Raises:
        InputError: the file has another content.
    """
    folder = Path(labels).resolve()
    for candidate in (folder, *folder.parents[:2]):
        path = candidate / "classes.json"
        if not path.is_file():
            continue
        form = 'it must contain {"classes": [names], "ignore_index": number}'
        content = parse_class_list(read_class_file(path), str(path), form)
        return content.classes, content.ignore_index
    return None, None


def read_protocol(
    labels: str | Path, ignore_index: int | None = None
) -> tuple[list[str] | None, int]:
    """Return the class names of ``classes.json``, None without it, and the ignore index.

    Args:
        labels: folder of label maps.
        ignore_index: None is the value of ``classes.json``, or 255 without it.

    Raises:
        NotFoundError: the folder does not exist.
        InputError: ``classes.json`` is not valid.
    """
    if not Path(labels).is_dir():
        raise NotFoundError(f"{labels} is not a folder of label maps")
    names, stated = read_classes(labels)
    validate(ignore_index, IgnoreIndex | None, "ignore_index")
    if ignore_index is None:
        ignore_index = 255 if stated is None else stated
    return names, ignore_index


ImageCollection = str | Path | Sequence[str | Path] | Sequence[ImageFile] | Sequence[Image.Image]
"""Files, folders, globs or URLs; or image files; or images in memory."""


def image_files(images: ImageCollection) -> list[ImageFile]:
    """List the images of a collection; image files and images in memory are not changed.

    Raises:
        NotFoundError: a path does not exist, or no image was found.

    Examples:
        >>> [file.key for file in image_files([Image.new("L", (8, 8)), Image.new("L", (8, 8))])]
        ['0', '1']
    """
    if isinstance(images, str | Path) or not isinstance(images, Iterable):
        return find_images(images)
    items: list[Any] = list(images)
    if items and all(isinstance(item, ImageFile) for item in items):
        return items
    if items and all(isinstance(item, Image.Image) for item in items):
        return [ImageFile(item, str(i)) for i, item in enumerate(items)]
    return find_images(items)


T = TypeVar("T")


def sample_items(items: Sequence[T], number: int | None, seed: int = 0) -> Sequence[T]:
    """Sample ``number`` items without replacement, in their order; None returns all items.

    Raises:
        InputError: ``number`` is less than 1.

    Examples:
        >>> sample_items(range(1000), 4), sample_items("abc", 5)
        ([79, 345, 724, 788], 'abc')
    """
    if number is not None and number < 1:
        raise InputError(f"sample size must be at least 1, got {number}")
    if number is None or number >= len(items):
        return items
    chosen = torch.randperm(len(items), generator=generator("sample", seed))[:number]
    return [items[index] for index in sorted(chosen.tolist())]
