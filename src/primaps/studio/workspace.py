"""The folder of a studio: which images, what was asked for, and where everything lies."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from primaps.data import ImageError, ImageFile, find_images
from primaps.data.folder import IMAGE_SUFFIXES
from primaps.data.reading import image_size
from primaps.utils.errors import InputError, NotFoundError
from primaps.utils.files import locked, write_json
from primaps.utils.inputs import read_json
from primaps.utils.typed import Range

NAME = "studio.json"
Classes = Annotated[int, Range(2, 256)] | Literal["auto"]
MOST_FOLDERS = 2000


@dataclass(frozen=True)
class Listed:
    """An image of the studio: its key, its path below the folder of photos, its size."""

    key: str
    path: str
    width: Annotated[int, Range(0)]
    height: Annotated[int, Range(0)]


@dataclass(frozen=True)
class Record:
    """The content of ``studio.json``.

    Attributes:
        format: of the file.
        photos: the folder that the command was given.
        chosen: the folder below it that was chosen in the page; "" is itself.
        images: in the order of their numbers.
        classes: number of classes asked for.
        options: of the model.
        model: folder of a model that was given; "" is ``model``.
    """

    format: Literal[1]
    photos: str
    chosen: str
    images: list[Listed]
    classes: Classes
    options: dict[str, Any]
    model: str


class Workspace:
    """Photos and the folder beside them; see :func:`opened`.

    Args:
        photos: folder of images, searched recursively; nothing is written there.
        out: the studio's own folder.
        options: of the model to fit.
        model: folder of a model that is there already.

    Attributes:
        images: in the order of their numbers.
        problems: a sentence about each image that cannot be used.
        collection: another one whenever the numbers are of other images.
    """

    def __init__(
        self, photos: Path, out: Path, options: dict[str, Any], model: Path | None = None
    ) -> None:
        self.photos, self.out = photos.resolve(), out.resolve()
        self.options = options
        self.given = None if model is None else model.expanduser().resolve()
        self.chosen = ""
        self.images: list[Listed] = []
        self.problems: list[str] = []
        self.collection = ""
        self.record: Record | None = None
        if (self.out / NAME).is_file():
            self._reopen(read_json(self.out / NAME, Record, "move it away to begin anew"))
        else:
            self.choose("")

    @property
    def model(self) -> Path:
        """Folder of the model."""
        return self.given or self.out / "model"

    def file(self, number: int) -> ImageFile:
        """An image by its number.

        Raises:
            NotFoundError: there is none.
        """
        if not 0 <= number < len(self.images):
            raise NotFoundError(f"there is no image {number}; there are {len(self.images)}")
        one = self.images[number]
        return ImageFile(self.photos / self.chosen / one.path, one.key)

    def number(self, key: str) -> int | None:
        """Number of the image with a key."""
        return next((n for n, one in enumerate(self.images) if one.key == key), None)

    def folders(self) -> list[dict[str, Any]]:
        """The folders with images, and how many lie in and below each."""
        counts: Counter[str] = Counter()
        for folder, below, names in os.walk(self.photos):
            below[:] = sorted(name for name in below if not name.startswith("."))
            place = Path(folder)
            if place == self.out or self.out in place.parents:
                below.clear()
                continue
            own = sum(
                Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
                for name in names
            )
            if own:
                relative = place.relative_to(self.photos)
                for one in (relative, *relative.parents):
                    counts["" if one == Path() else one.as_posix()] += own
            if len(counts) > MOST_FOLDERS:
                break
        return [{"path": path, "images": number} for path, number in sorted(counts.items())]

    def choose(self, path: str) -> None:
        """Take the images of a folder, one that :meth:`folders` lists.

        Raises:
            InputError: there is no such folder, or a fit has begun.
        """
        if self.record is not None:
            raise InputError(f"{self.out} is of {self.chosen or 'all images'}: use another --out")
        if path and path not in {one["path"] for one in self.folders()}:
            raise InputError(f"{path!r} is no folder with images below {self.photos}")
        root = self.photos / path
        images: list[Listed] = []
        problems: list[str] = []
        try:
            files = find_images(root, exclude=self.out)
        except NotFoundError:
            files = []  # an empty folder is a state of the page, not an error
        for file in files:
            assert isinstance(file.source, Path)
            width = height = 0
            try:
                width, height = image_size(file.source)
            except ImageError as error:
                problems.append(str(error))
            relative = file.source.relative_to(root.resolve()).as_posix()
            images.append(Listed(file.key, relative, width, height))
        self.chosen, self.images, self.problems = path, images, problems
        self.collection = secrets.token_hex(4)

    def begin(self, classes: int | str) -> None:
        """Write down which images there are and what was asked for: from now on they stay."""
        if not self.images:
            raise InputError(f"there is no image in {self.photos / self.chosen}")
        content = {
            "format": 1,
            "photos": str(self.photos),
            "chosen": self.chosen,
            "images": [asdict(one) for one in self.images],
            "classes": classes,
            "options": self.options,
            "model": str(self.given or ""),
        }
        write_json(self.out / NAME, content)
        self.record = read_json(self.out / NAME, Record)

    def _reopen(self, record: Record) -> None:
        path = self.out / NAME
        if record.photos != str(self.photos):
            raise InputError(
                f"{self.out} is the studio of {record.photos}, not of {self.photos}: "
                "give another --out, or that folder"
            )
        if self.given is not None and record.model != str(self.given):
            raise InputError(f"{path} is of another model: give another --out")
        if Path(record.chosen).is_absolute() or ".." in Path(record.chosen).parts:
            raise InputError(f"{path}: chosen is no folder below the photos")
        root = self.photos / record.chosen
        for one in record.images:
            for text in (one.path, one.key):
                if Path(text).is_absolute() or ".." in Path(text).parts or not text:
                    raise InputError(f"{path}: {text!r} is no file below the photos")
            if not (root / one.path).is_file():
                self.problems.append(f"{root / one.path} is not there any more")
            elif not one.width:
                self.problems.append(f"{root / one.path} cannot be read")
        self.record, self.options = record, record.options
        self.chosen, self.images = record.chosen, record.images
        self.given = Path(record.model) if record.model else None
        self.collection = hashlib.sha256(os.fsencode(root)).hexdigest()[:8]


def unused(folder: Path, name: str) -> Path:
    """The first of ``name-1``, ``name-2``, ... in a folder that is not there."""
    number = 1
    while (folder / f"{name}-{number}").exists():
        number += 1
    return folder / f"{name}-{number}"


@contextmanager
def opened(
    photos: str | Path,
    out: str | Path | None,
    options: dict[str, Any],
    model: str | Path | None = None,
) -> Iterator[Workspace]:
    """A studio's folder, held: a second studio on it waits until the first one ends.

    Raises:
        NotFoundError: there is no such folder.
        InputError: the studio's folder would lie among the photos, or is of another studio.
    """
    root = Path(photos).expanduser()
    if not root.is_dir():
        raise NotFoundError(f"{photos} is no folder: give the folder of the photos")
    place = Path(out).expanduser() if out else Path(f"{root.resolve().name or 'photos'}-studio")
    if place.exists() and not place.is_dir():
        raise InputError(f"{place} is a file: give another --out")
    inside = root.resolve()
    if place.resolve() == inside or inside in place.resolve().parents:
        raise InputError(f"{place} lies among the photos of {root}: give an --out outside of them")
    if place.is_dir() and any(place.iterdir()) and not (place / NAME).is_file():
        raise InputError(f"{place} is not empty and no studio's folder: give another --out")
    with locked(place):
        yield Workspace(root, place, options, None if model is None else Path(model))
