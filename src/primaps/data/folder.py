"""Collections of images: files, folders and globs, and the labels beside them."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from annotated_types import Interval, Len
from PIL.Image import Image

from primaps.data.archives import ARCHIVES, COMPRESSED, local_archive
from primaps.data.remote import images_at, is_url
from primaps.data.stored import Stored
from primaps.utils.errors import InputError, NotFoundError
from primaps.utils.inputs import read_json
from primaps.utils.validation import validate

_KINDS = "avif bmp gif jfif jp2 jpeg jpg pgm png ppm tif tiff webp"
LABELS = 65_536
"""Values that a label map of 16 bits can have."""
MOST_CLASSES = 4096
"""Names that ``classes.json`` may have: each image of an evaluation has a table of as many rows."""
IgnoreIndex = Annotated[int, Interval(ge=0, le=LABELS - 1)]
Level = Annotated[int, Interval(ge=0, le=255)]
IMAGE_SUFFIXES = frozenset(f".{kind}" for kind in _KINDS.split())


@dataclass(frozen=True)
class ImageFile:
    """An image of a collection.

    Attributes:
        source: the file, an image in memory, or a file in an archive or on a server.
        key: path relative to the input that it was found in, without its suffix and unique in the
            collection; results are written, and labels looked up, under this name.
    """

    source: Path | Image | Stored
    key: str


def find_images(
    inputs: str | Path | Sequence[str | Path], exclude: str | Path | None = None
) -> list[ImageFile]:
    """List the images of files, folders (searched recursively) and globs, sorted by path.

    Keys are relative to the folder, or to the common folder if several inputs are given. If two
    files differ in their suffix only, it stays in their keys (``a.jpg`` and ``a.png``). A folder
    contributes files with the suffix of an image; a file that is named is always taken. Hidden
    files are left out, and what lies below ``exclude``, if that is a folder inside an input.

    Tar files that are named, or match a glob, contribute their images under their paths in it
    (WebDataset's layout). URLs are files, folders, globs or tar files on servers (``s3://``,
    ``gs://``, ``hf://``, ``https://``, ...), if fsspec has a driver; keys are relative to them.
    Where two of these would have the same key, the name of the archive or URL comes first.

    Raises:
        NotFoundError: an input does not exist, matches nothing, or there is no image.
        MissingPackageError: a URL needs a package that is not installed.
    """
    given: list[Any] = [inputs]
    if isinstance(inputs, Iterable) and not isinstance(inputs, str):
        given = list(inputs)
    if odd := [entry for entry in given if not isinstance(entry, str | Path)]:
        raise InputError(f"an input is {odd[0]!r}; name files, folders or globs")
    if not given:
        raise NotFoundError("no input was given: name files, folders or globs")
    here, groups = _elsewhere(given)
    files = _on_disk(here, exclude) if here else []
    if groups:
        files = _together(files, groups)
        if not files:
            inputs_named = ", ".join(map(str, given))
            raise NotFoundError(f"no image in {inputs_named}")
    return files


def _elsewhere(given: Sequence[str | Path]) -> tuple[list[str | Path], dict[str, list[ImageFile]]]:
    """Inputs that are files of this machine, and the images of each archive and URL."""
    here: list[str | Path] = []
    groups: dict[str, list[ImageFile]] = {}
    for entry in given:
        text, path = str(entry), Path(entry).expanduser()
        if isinstance(entry, str) and is_url(entry):
            groups[text] = [ImageFile(one, key) for key, one in images_at(entry, IMAGE_SUFFIXES)]
            continue
        lower = text.lower()
        if lower.endswith(COMPRESSED):
            raise NotFoundError(
                f"{entry} is compressed, and images in it are no smaller by that: "
                "decompress it to .tar"
            )
        archives = [path] if path.is_file() else []
        if lower.endswith(ARCHIVES) and not archives:
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
            archives = [one for one in map(Path, matches) if one.is_file()]
        if not lower.endswith(ARCHIVES) or not archives:
            here.append(entry)
            continue
        for archive in (one.resolve() for one in archives):
            images = local_archive(archive, IMAGE_SUFFIXES)
            groups[str(archive)] = [ImageFile(one, key) for key, one in images]
    return here, groups


def _together(files: list[ImageFile], groups: dict[str, list[ImageFile]]) -> list[ImageFile]:
    """Images of this machine, archives and URLs, each with a key of its own."""
    together = [*files, *(file for group in groups.values() for file in group)]
    if len({file.key.casefold() for file in together}) < len(together):
        together = list(files)
        for name, group in groups.items():
            stem = PurePosixPath(name.rstrip("/")).stem
            together += [ImageFile(file.source, f"{stem}/{file.key}") for file in group]
    counts = Counter(file.key.casefold() for file in together)
    found: list[ImageFile] = []
    for file in together:
        suffix = PurePosixPath(str(file.source)).suffix
        again = counts[file.key.casefold()] > 1
        found.append(ImageFile(file.source, file.key + suffix) if again else file)
    known: dict[str, ImageFile] = {}
    for file in found:
        if (other := known.setdefault(file.key.casefold(), file)) is not file:
            raise NotFoundError(
                f"{other.source} and {file.source} would have results of one name: give them in "
                "runs of their own"
            )
    return found


def _on_disk(given: Sequence[str | Path], exclude: str | Path | None) -> list[ImageFile]:
    """Images of files, folders and globs of this machine."""
    found: dict[Path, None] = {}  # a set that keeps order
    roots: list[Path] = []
    barred = Path(exclude).resolve() if exclude is not None else None
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
            raise NotFoundError(f"{entry} is {_kind(path)}: name files, folders or globs")
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
        if barred and roots[-1] in barred.parents:
            outside = [c for c in candidates if barred not in c.parents]
            excluded += len(candidates) - len(outside)
            candidates = outside
        found |= dict.fromkeys(candidates)
    if not found:
        inputs_named = ", ".join(map(str, given))
        if excluded:
            raise NotFoundError(
                f"all {excluded} images in {inputs_named} lie in the output folder {exclude}, "
                "where results are: write to another folder"
            )
        raise NotFoundError(
            f"no image in {inputs_named} (looked for {', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    root = Path(os.path.commonpath(roots))
    names = {path: path.relative_to(root) for path in found}
    stems = Counter(str(name.with_suffix("")).casefold() for name in names.values())
    files = []
    for path, name in sorted(names.items(), key=lambda item: item[1]):
        alone = stems[str(name.with_suffix("")).casefold()] == 1
        files.append(ImageFile(path, (name.with_suffix("") if alone else name).as_posix()))
    return files


def files_here(files: Iterable[ImageFile]) -> list[Path]:
    """The files of this machine that images come from."""
    found: dict[Path, None] = {}
    for file in files:
        path = file.source.within if isinstance(file.source, Stored) else file.source
        if isinstance(path, Path):
            found[path] = None
    return list(found)


def _kind(path: Path) -> str:
    """What a path that is no file and no folder is, in words."""
    if path.is_symlink():
        return f"a link to {path.readlink()}, which does not exist"
    return "neither a file nor a folder, but a device, a pipe or the like"


def _images_below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def find_label(file: ImageFile, labels: str | Path) -> Path | None:
    """The label map of an image: the same relative path under ``labels``, as PNG or TIFF."""
    keys = [file.key]
    if Path(file.key).suffix.lower() in IMAGE_SUFFIXES:  # kept to tell two files apart
        keys.append(str(Path(file.key).with_suffix("")))
    candidates = [Path(labels) / f"{key}{end}" for key in keys for end in (".png", ".tif", ".tiff")]
    return next((path for path in candidates if path.is_file()), None)


@dataclass(frozen=True)
class ClassList:
    """The content of ``classes.json``.

    Attributes:
        classes: names of the classes 0..K-1, each another one.
        ignore_index: label that is not counted; None says nothing about it.
        colors: of the classes, red, green and blue in 0..255; None says nothing about them.
    """

    classes: Annotated[list[Annotated[str, Len(1, 200)]], Len(1, MOST_CLASSES)]
    ignore_index: IgnoreIndex | None = None
    colors: list[tuple[Level, Level, Level]] | None = None

    def __post_init__(self) -> None:
        twice = [name for name, number in Counter(self.classes).items() if number > 1]
        if twice:
            raise InputError(f"two classes have the name {twice[0]!r}; each needs its own")
        if self.colors is not None and len(self.colors) != len(self.classes):
            raise InputError(f"there are {len(self.colors)} colors for {len(self.classes)} classes")


def read_classes(labels: str | Path) -> tuple[list[str] | None, int | None]:
    """Class names and ignore index from ``classes.json`` in the folder of labels or above it.

    The file reads ``{"classes": ["road", ...], "ignore_index": 255}``. At most two folders up are
    searched, so that ``labels/val`` finds the file of the data set. Without one both are None.

    Raises:
        InputError: the file is there and does not read like this.
    """
    folder = Path(labels).resolve()
    for candidate in (folder, *folder.parents[:2]):
        path = candidate / "classes.json"
        if not path.is_file():
            continue
        form = 'it must read {"classes": [names], "ignore_index": number}'
        content = read_json(path, ClassList, form)
        return content.classes, content.ignore_index
    return None, None


def read_protocol(
    labels: str | Path, ignore_index: int | None = None
) -> tuple[list[str] | None, int]:
    """Class names, if a ``classes.json`` gives them, and the label that is not counted.

    Args:
        ignore_index: None takes that of ``classes.json``, or 255 without one.

    Raises:
        NotFoundError: there is no such folder.
        InputError: ``classes.json`` does not read as it should.
    """
    if not Path(labels).is_dir():
        raise NotFoundError(f"{labels} is not a folder of label maps")
    names, stated = read_classes(labels)
    validate(ignore_index, IgnoreIndex | None, "ignore_index")
    if ignore_index is None:
        ignore_index = 255 if stated is None else stated
    return names, ignore_index
