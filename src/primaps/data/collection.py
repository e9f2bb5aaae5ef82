"""Image collections: files, folders, globs, archives and URLs, and the labels of their images."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

import torch
from annotated_types import Interval, Len
from PIL import Image

from primaps.data.images import Stored
from primaps.data.storage import ARCHIVES, COMPRESSED, images_at, is_url, local_archive
from primaps.utils.errors import InputError, NotFoundError
from primaps.utils.inputs import read_json
from primaps.utils.seeding import generator
from primaps.utils.validation import validate

_KINDS = "avif bmp gif jfif jp2 jpeg jpg pgm png ppm tif tiff webp"
LABELS = 65_536
"""Number of values that a 16-bit label map can have."""
MAX_CLASSES = 4096
"""Maximum number of classes in ``classes.json``; a confusion matrix has as many rows."""
IgnoreIndex = Annotated[int, Interval(ge=0, le=LABELS - 1)]
Level = Annotated[int, Interval(ge=0, le=255)]
IMAGE_SUFFIXES = frozenset(f".{kind}" for kind in _KINDS.split())


@dataclass(frozen=True)
class ImageFile:
    """An image of a collection.

    Attributes:
        source: file, image in memory, or image in an archive or on a server.
        key: path relative to the input, without its suffix and unique in the collection. Results
            and label maps have this name.
    """

    source: Path | Image.Image | Stored
    key: str


def find_images(
    inputs: str | Path | Sequence[str | Path], exclude: str | Path | None = None
) -> list[ImageFile]:
    """List the images of files, folders, globs, archives and URLs, sorted by path.

    Folders are searched recursively for files with the suffix of an image. A file that is named
    is always included. Hidden files are skipped. Keys are relative to the folder, or to the common
    folder of several inputs. Files that differ in their suffix only keep it in their keys
    (``a.jpg`` and ``a.png``).

    Tar files that are named or match a glob contribute their images, under their paths in the
    archive (the layout of WebDataset). URLs are files, folders, globs or tar files on servers
    (``s3://``, ``gs://``, ``hf://``, ``https://``, ...), if fsspec has a driver. If two images of
    archives or URLs have the same key, the name of the archive or URL is put before it.

    Args:
        inputs: files, folders, globs and URLs.
        exclude: folder inside an input whose images are skipped, for example the output folder.

    Raises:
        NotFoundError: an input does not exist or matches no file, or no image was found.
        MissingPackageError: a URL needs a package that is not installed.
    """
    given: list[Any] = [inputs]
    if isinstance(inputs, Iterable) and not isinstance(inputs, str):
        given = list(inputs)
    if invalid := [entry for entry in given if not isinstance(entry, str | Path)]:
        raise InputError(f"an input is {invalid[0]!r}; give files, folders or globs")
    if not given:
        raise NotFoundError("no input was given; give files, folders or globs")
    local, groups = _split_inputs(given)
    files = _local_images(local, exclude) if local else []
    if groups:
        files = _join(files, groups)
        if not files:
            inputs_named = ", ".join(map(str, given))
            raise NotFoundError(f"no image in {inputs_named}")
    return files


def _split_inputs(
    given: Sequence[str | Path],
) -> tuple[list[str | Path], dict[str, list[ImageFile]]]:
    """Return the inputs that are local files, and the images of each archive and URL."""
    local: list[str | Path] = []
    groups: dict[str, list[ImageFile]] = {}
    for entry in given:
        text, path = str(entry), Path(entry).expanduser()
        if isinstance(entry, str) and is_url(entry):
            groups[text] = [ImageFile(one, key) for key, one in images_at(entry, IMAGE_SUFFIXES)]
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
        for archive in (one.resolve() for one in archives):
            images = local_archive(archive, IMAGE_SUFFIXES)
            groups[str(archive)] = [ImageFile(one, key) for key, one in images]
    return local, groups


def _join(files: list[ImageFile], groups: dict[str, list[ImageFile]]) -> list[ImageFile]:
    """Join local images and the images of archives and URLs; each one has its own key."""
    joined = [*files, *(file for group in groups.values() for file in group)]
    if len({file.key.casefold() for file in joined}) < len(joined):
        joined = list(files)
        for name, group in groups.items():
            stem = PurePosixPath(name.rstrip("/")).stem
            joined += [ImageFile(file.source, f"{stem}/{file.key}") for file in group]
    counts = Counter(file.key.casefold() for file in joined)
    found: list[ImageFile] = []
    for file in joined:
        suffix = PurePosixPath(str(file.source)).suffix
        again = counts[file.key.casefold()] > 1
        found.append(ImageFile(file.source, file.key + suffix) if again else file)
    known: dict[str, ImageFile] = {}
    for file in found:
        if (other := known.setdefault(file.key.casefold(), file)) is not file:
            raise NotFoundError(
                f"{other.source} and {file.source} would have the same output name; process "
                "them in separate runs"
            )
    return found


def _local_images(given: Sequence[str | Path], exclude: str | Path | None) -> list[ImageFile]:
    """List the images of local files, folders and globs."""
    found: dict[Path, None] = {}  # a set with an order
    roots: list[Path] = []
    excluded_folder = Path(exclude).resolve() if exclude is not None else None
    excluded = 0
    for entry in given:
        path = Path(entry).expanduser()
        if path.is_dir():
            roots.append(path.resolve())
            candidates = _images_below(path.resolve())
        elif path.is_file():
            roots.append(path.resolve().parent)
            candidates = [path.resolve()]
        elif os.path.lexists(path):
            raise NotFoundError(f"{entry} is {_kind(path)}; give files, folders or globs")
        else:
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
            if not matches:
                raise NotFoundError(f"{entry} does not exist and matches no file")
            candidates = []
            for match in map(Path, matches):
                if match.is_dir():
                    candidates += _images_below(match.resolve())
                elif match.is_file() and match.suffix.lower() in IMAGE_SUFFIXES:
                    candidates.append(match.resolve())
            wild = next(i for i, part in enumerate(path.parts) if re.search(r"[*?\[]", part))
            roots.append(Path(*path.parts[:wild]).resolve())
        if excluded_folder and roots[-1] in excluded_folder.parents:
            outside = [c for c in candidates if excluded_folder not in c.parents]
            excluded += len(candidates) - len(outside)
            candidates = outside
        found |= dict.fromkeys(candidates)
    if not found:
        inputs_named = ", ".join(map(str, given))
        if excluded:
            raise NotFoundError(
                f"all {excluded} images in {inputs_named} are in the output folder {exclude}; "
                "choose another output folder"
            )
        raise NotFoundError(
            f"no image in {inputs_named} (supported suffixes: {', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    root = Path(os.path.commonpath(roots))
    names = {path: path.relative_to(root) for path in found}
    stems = Counter(str(name.with_suffix("")).casefold() for name in names.values())
    files = []
    for path, name in sorted(names.items(), key=lambda item: item[1]):
        alone = stems[str(name.with_suffix("")).casefold()] == 1
        files.append(ImageFile(path, (name.with_suffix("") if alone else name).as_posix()))
    return files


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


def _images_below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def find_label(file: ImageFile, labels: str | Path) -> Path | None:
    """Find the label map of an image: its key below ``labels``, as PNG or TIFF."""
    keys = [file.key]
    if Path(file.key).suffix.lower() in IMAGE_SUFFIXES:  # the suffix distinguishes two files
        keys.append(str(Path(file.key).with_suffix("")))
    candidates = [Path(labels) / f"{key}{end}" for key in keys for end in (".png", ".tif", ".tiff")]
    return next((path for path in candidates if path.is_file()), None)


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
        content = read_json(path, ClassList, form)
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
