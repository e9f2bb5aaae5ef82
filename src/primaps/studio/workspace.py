"""The folder of a studio: its images, the options of the fit, and the files in it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from primaps import config
from primaps.data import ImageError, ImageFile, find_images
from primaps.data.collection import find_files, own_name
from primaps.data.depth import collection_depth
from primaps.data.images import image_size
from primaps.persistence import read_record
from primaps.utils.errors import InputError, NotFoundError
from primaps.utils.files import is_utf8, locked, write_json
from primaps.utils.inputs import read_json

NAME = "studio.json"
Classes = config.Classes | Literal["auto"]
MAX_FOLDERS = 2000
"""Maximum number of folders that the page lists."""


@dataclass(frozen=True)
class ListedImage:
    """An image in ``studio.json``.

    Attributes:
        key: Key of the image in label maps and corrections.
        path: Path below the image folder.
        width, height: Size in pixels; 0 if the image cannot be read.
    """

    key: str
    path: str
    width: Annotated[int, Ge(0)]
    height: Annotated[int, Ge(0)]


@dataclass(frozen=True)
class StudioRecord:
    """The content of ``studio.json``.

    Attributes:
        format: Version of the file format.
        folder: Image folder given to the command.
        chosen: Folder below it that was chosen in the page; "" is the image folder itself.
        images: Images in the order of their numbers.
        classes: Requested number of classes.
        options: Options of the model.
        model: Folder of the model given with ``--model``; "" if the studio fits its own.
    """

    format: Literal[1]
    folder: str
    chosen: str
    images: list[ListedImage]
    classes: Classes
    options: dict[str, Any]
    model: str


class Workspace:
    """The images and the output folder of a studio; see :func:`open_workspace`.

    Args:
        folder: Image folder, searched recursively and never written to.
        out: Output folder of the studio.
        options: Options of the model to fit.
        model: Folder of an existing model.

    Attributes:
        images: Images in the order of their numbers.
        skipped: A sentence about each image that cannot be used.
        collection: Id of the collection, which changes when the numbers belong to other images.
        depth: Bits of the values of images of more than 8 bits; None without such images.
    """

    def __init__(
        self, folder: Path, out: Path, options: dict[str, Any], model: Path | None = None
    ) -> None:
        self.folder, self.out = folder.resolve(), out.resolve()
        self.options = options
        self.given_model = None if model is None else model.expanduser().resolve()
        self.chosen = ""
        self.images: list[ListedImage] = []
        self.skipped: list[str] = []
        self.collection = ""
        self.depth = self._given_depth()
        self.record: StudioRecord | None = None
        if (self.out / NAME).is_file():
            self._reopen(read_json(self.out / NAME, StudioRecord, "move it away to start over"))
        else:
            self.choose("")

    @property
    def model(self) -> Path:
        """Folder of the model."""
        return self.given_model or self.out / "model"

    @property
    def image_folder(self) -> Path:
        """The chosen image folder."""
        return self.folder / self.chosen

    def _given_depth(self) -> int | None:
        """Return the depth of the existing model, or of the options."""
        if self.given_model is not None:
            with suppress(InputError, OSError):  # opening the model reports them
                return read_record(self.given_model).training.depth
        return self.options.get("depth")

    def file(self, number: int) -> ImageFile:
        """Return an image by its number.

        Raises:
            NotFoundError: No image has this number.
        """
        if not 0 <= number < len(self.images):
            raise NotFoundError(
                f"image number must be between 0 and {len(self.images) - 1}, got {number}"
            )
        image = self.images[number]
        return ImageFile(self.image_folder / image.path, image.key, depth=self.depth)

    def number(self, key: str) -> int:
        """Return the number of the image with a key.

        Raises:
            InputError: No image has this key.
        """
        for number, image in enumerate(self.images):
            if image.key == key:
                return number
        raise InputError(f"this studio has no image with the key {key!r}")

    def folders(self) -> list[dict[str, Any]]:
        """List the folders with images, and the number of images in and below each."""
        counts: Counter[str] = Counter()
        for path in find_files(self.folder, self.out):
            relative = path.parent.relative_to(self.folder)
            for one in (relative, *relative.parents):
                counts["" if one == Path() else one.as_posix()] += 1
            if len(counts) > MAX_FOLDERS:
                break
        return [{"path": path, "images": number} for path, number in sorted(counts.items())]

    def choose(self, path: str) -> None:
        """Choose a folder that :meth:`folders` lists.

        Raises:
            InputError: The folder is not listed, or a fit has begun.
        """
        if self.record is not None:
            raise InputError(
                f"{self.out} already belongs to {self.chosen or 'all images'}; use another --out"
            )
        if path and path not in {one["path"] for one in self.folders()}:
            raise InputError(f"{path!r} is not a folder with images below {self.folder}")
        root = self.folder / path
        images: list[ListedImage] = []
        skipped: list[str] = []
        try:
            files = find_images(root, exclude=self.out, log=skipped.append)
        except NotFoundError:
            files = []  # the page shows an empty folder, which is not an error
        if unlisted := [file for file in files if not is_utf8(str(file.source))]:
            skipped.append(
                f"{len(unlisted)} names are not UTF-8, first {unlisted[0].source}; rename these "
                "images"
            )
            files = [file for file in files if is_utf8(str(file.source))]
        for file in files:
            assert isinstance(file.source, Path)
            width = height = 0
            try:
                width, height = image_size(file.source)
            except ImageError as error:
                skipped.append(str(error))
            relative = file.source.relative_to(own_name(root)).as_posix()
            images.append(ListedImage(file.key, relative, width, height))
        self.depth = self._given_depth() or collection_depth(files)
        self.chosen, self.images, self.skipped = path, images, skipped
        self.collection = _collection_id(root, images)

    def begin(self, classes: int | str) -> None:
        """Write ``studio.json``, which fixes the images, the options and the number of classes.

        Raises:
            InputError: The folder has no images.
        """
        if not self.images:
            raise InputError(f"{self.image_folder} has no images")
        if self.depth is not None and self.given_model is None:
            self.options = {**self.options, "depth": self.depth}
        content = {
            "format": 1,
            "folder": str(self.folder),
            "chosen": self.chosen,
            "images": [asdict(image) for image in self.images],
            "classes": classes,
            "options": self.options,
            "model": str(self.given_model or ""),
        }
        write_json(self.out / NAME, content)
        self.record = read_json(self.out / NAME, StudioRecord)

    def _reopen(self, record: StudioRecord) -> None:
        path = self.out / NAME
        if record.folder != str(self.folder):
            raise InputError(
                f"{self.out} belongs to the images in {record.folder}, not to {self.folder}; "
                "use another --out, or give that folder"
            )
        if self.given_model is not None and record.model != str(self.given_model):
            raise InputError(f"{path} belongs to another model; use another --out")
        if _leaves_folder(record.chosen):
            raise InputError(
                f"{path}: chosen must be a folder inside the image folder; use another --out"
            )
        root = self.folder / record.chosen
        for image in record.images:
            for text in (image.path, image.key):
                if not text or _leaves_folder(text):
                    raise InputError(
                        f"{path}: {text!r} is not a path inside the image folder; use another --out"
                    )
            if not (root / image.path).is_file():
                self.skipped.append(f"{root / image.path} no longer exists")
            elif not image.width:
                self.skipped.append(f"{root / image.path} cannot be read")
        self.record, self.options = record, record.options
        self.chosen, self.images = record.chosen, record.images
        self.given_model = Path(record.model) if record.model else None
        self.depth = self._given_depth()
        self.collection = _collection_id(root, record.images)


def _collection_id(root: Path, images: list[ListedImage]) -> str:
    """Return the id of a folder and the numbers of its images, which a restart keeps."""
    paths = [os.fsencode(root), *(os.fsencode(image.path) for image in images)]
    return hashlib.sha256(b"\0".join(paths)).hexdigest()[:8]


def _leaves_folder(text: str) -> bool:
    return Path(text).is_absolute() or ".." in Path(text).parts


def unused_path(folder: Path, name: str) -> Path:
    """Return the first of ``name-1``, ``name-2``, ... that does not exist in a folder."""
    number = 1
    while (folder / f"{name}-{number}").exists():
        number += 1
    return folder / f"{name}-{number}"


@contextmanager
def open_workspace(
    folder: str | Path,
    out: str | Path | None,
    options: dict[str, Any],
    model: str | Path | None = None,
) -> Iterator[Workspace]:
    """Open and lock the output folder of a studio; a second studio waits for the first one to end.

    Raises:
        NotFoundError: The image folder does not exist.
        InputError: The output folder is below the image folder, or belongs to something else.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise NotFoundError(f"{folder} is not a folder; give the folder of the images")
    path = Path(out).expanduser() if out else Path(f"{root.resolve().name or 'images'}-studio")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; use another --out")
    if root.resolve() in (path.resolve(), *path.resolve().parents):
        raise InputError(f"{path} is inside the image folder {root}; use an --out outside of it")
    if path.is_dir() and any(path.iterdir()) and not (path / NAME).is_file():
        raise InputError(f"{path} is not empty and not the folder of a studio; use another --out")
    with locked(path):
        yield Workspace(root, path, options, None if model is None else Path(model))
