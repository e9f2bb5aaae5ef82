"""Export label maps to the formats of other tools, and import them."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from primaps.data import LogCallback
from primaps.data.collection import (
    IMAGE_SUFFIXES,
    ImageFile,
    Level,
    composed_path,
    find_images,
    unique_keys,
)
from primaps.data.images import Stored, image_size, opened
from primaps.exchange.classes import Classes, classes_of, read_classes
from primaps.exchange.files import check_text, open_files, safe_name
from primaps.exchange.formats import find_format
from primaps.exchange.labeled import LabeledImage, mask_proposals
from primaps.geometry.regions import NO_LABEL
from primaps.results import check_folder, output_folder
from primaps.utils.errors import InputError
from primaps.utils.inputs import read_json
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validate

logger = logging.getLogger("primaps")
MAP_SUFFIXES = (".png", ".tif")
"""Suffixes of the label maps that predict and propose write."""
PROPOSAL = Classes(("proposal",))


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Attributes:
        images: Number of exported images.
        out: The folder.
        next: Next step in the other tool.
    """

    images: int
    out: Path
    next: str


@dataclass(frozen=True)
class Imported:
    """Result of an import.

    Attributes:
        images: Number of label maps.
        out: The folder.
        classes: Classes of the label maps.
    """

    images: int
    out: Path
    classes: Classes


def export_labels(
    result: str | Path,
    images: str | Path | Sequence[str | Path],
    to: str,
    out: str | Path,
    *,
    classes: Classes | str | Path | None = None,
    per: str | None = None,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> Exported:
    """Write label maps or mask proposals in the format of another tool: ``primaps export``.

    The label map of an image is found by the relative path of the image; both folders may have
    been moved. Pass the same images as to ``predict``.

    Args:
        result: Folder that ``predict``, ``propose`` or :func:`import_labels` wrote.
        images: Files, folders or globs of the images of these label maps.
        to: Name of a format in :data:`primaps.exchange.formats.FORMATS`.
        out: Output folder: new, empty, or an earlier export that was not changed since.
        classes: Classes, or a ``classes.json`` or model with names and colors; None for those that
            ``result`` has.
        per: One region per ``class`` or per connected ``region``, for formats that list regions;
            None for the default of the format.
        progress: Progress callback.
        log: Log callback for images without a label map, which are skipped.

    Returns:
        Number of images, the folder, and the next step in the other tool.

    Raises:
        InputError: An option, a label map or a name is invalid. ``out`` is then not created.
        OutputError: ``out`` must not be replaced.
        ImageError: A label map or image is damaged.
        NotFoundError: There are no images.
        MissingPackageError: The format needs an extra that is not installed.
    """
    result, out, row = Path(result), Path(out), find_format(to)
    if per is not None and per not in ("class", "region"):
        raise InputError(f"per must be class or region, got {per!r}")
    if per is not None and row.per is None:
        raise InputError(f"{to} does not support regions; omit per")
    has_proposals, recorded = recorded_classes(result)
    if has_proposals and not row.proposals:
        raise InputError(
            f"{result} has mask proposals, which have no class, and {to} has only classes; export "
            "to coco, cvat, labelme or labelstudio, or predict with a model"
        )
    chosen = (read_classes(classes) if isinstance(classes, str | Path) else classes) or recorded
    if chosen is None:
        raise InputError(f"{result} has no class names; give a classes.json or the model")
    check_folder(out.absolute())
    files = _images_with_maps(find_images(images, exclude=out, log=log), result, log)

    def labeled() -> Generator[LabeledImage]:
        for number, file in enumerate(files, start=1):
            yield _labeled_image(file, result, None if has_proposals else chosen)
            progress("export", number, len(files), {})

    with output_folder(out) as folder, contextlib.closing(labeled()) as stream:
        row.write(stream, chosen, folder, per or row.per or "class")
    return Exported(len(files), out, row.next.format(out=out, names=", ".join(chosen.names)))


def recorded_classes(result: Path) -> tuple[bool, Classes | None]:
    """Return whether a folder has mask proposals, and the classes that it names."""
    if not result.is_dir():
        raise InputError(f"{result} is not a folder; give the folder that predict or propose wrote")
    record, content = result / "primaps.json", {}
    if record.exists():
        content = read_json(record, dict[str, Any], "run predict or propose again")
    if content.get("command") == "propose":
        return True, PROPOSAL
    if (result / "classes.json").is_file():
        return False, read_classes(result)
    names = content.get("names")
    if not isinstance(names, list) or not names:
        return False, None
    kind = list[tuple[Level, Level, Level]] | None
    colors = validate(content.get("colors"), kind, f"{record}: colors")
    return False, classes_of(names, colors or ())


def _map_path(result: Path, file: ImageFile) -> Path:
    """Return the label map that predict or propose wrote: a GeoTIFF if the image has a place."""
    paths = [composed_path(result, f"{file.key}{end}") for end in MAP_SUFFIXES]
    return next((path for path in paths if path is not None), result / f"{file.key}.png")


def _images_with_maps(files: list[ImageFile], result: Path, log: LogCallback) -> list[ImageFile]:
    """Return the images that have a label map; every label map must have its image."""
    present = [file for file in files if _map_path(result, file).is_file()]
    known = {_map_path(result, file) for file in present}
    written = {path for end in MAP_SUFFIXES for path in result.rglob(f"*{end}")}
    if spare := sorted(written - known):  # overlays are JPEG files
        raise InputError(
            f"{len(spare)} label maps of {result} have no image, first "
            f"{spare[0].relative_to(result)}; give the same images as to predict"
        )
    if not present:
        raise InputError(
            f"{result} has no label maps of these images; give the images that predict processed"
        )
    if absent := len(files) - len(present):
        first = next(file for file in files if file not in present)
        log(f"{absent} of {len(files)} images have no label map in {result}; first {first.source}")
    return present


def _labeled_image(file: ImageFile, result: Path, classes: Classes | None) -> LabeledImage:
    """Return an image with its label map, or with its mask proposals if ``classes`` is None."""
    source, path = file.source, _map_path(result, file)
    assert isinstance(source, Path | Stored)
    member = str(source).rpartition(": ")[2]  # of an archive
    name = str(PurePosixPath(file.key).parent / PurePosixPath(member).name)
    check_text(name, "the file name")
    labels = read_map(path)
    width, height = image_size(source)
    if labels.shape != (height, width):
        raise InputError(
            f"{path} has {labels.shape[1]} x {labels.shape[0]} pixels, but its image {source} "
            f"{width} x {height}; give the images of these label maps"
        )
    if classes is None:
        return mask_proposals(name, file.key, labels, source)
    return LabeledImage(name, file.key, classes.normalized(labels, path), source)


def read_map(path: Path) -> Integer[np.ndarray, "h w"]:
    """Read a label map as it is.

    Raises:
        InputError: The file does not have one channel of integers.
        ImageError: The file is damaged.
    """
    with opened(path) as image:
        labels = np.asarray(image)
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise InputError(f"{path} is not a label map of one integer channel; predict it again")
    return labels


def import_labels(
    path: str | Path,
    source_format: str,
    out: str | Path,
    *,
    classes: Classes | str | Path | None = None,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> Imported:
    """Write labels of another tool as label maps and ``classes.json``: ``primaps import``.

    ``out/<name without suffix>.png`` has the class of every pixel, and 255 for no label, as
    ``evaluate --labels out`` expects it.

    Args:
        path: File, folder or zip file of the tool.
        source_format: Name of a format that can be imported.
        out: Output folder: new, empty, or an earlier import that was not changed since.
        classes: Classes, or a ``classes.json`` or model with the names that the file may have, in
            the order of the values to write; None for the order of the file.
        progress: Progress callback.
        log: Log callback, called with a sentence about each kind of content that label maps cannot
            hold, such as points and lines, and its number.

    Returns:
        Number of label maps, the folder, and the classes.

    Raises:
        InputError: The file is malformed or has other classes. ``out`` is then not created.
        OutputError: ``out`` must not be replaced.
        ImageError: An image file is damaged.
    """
    row, out = find_format(source_format, reading=True), Path(out)
    assert row.read is not None
    wanted = read_classes(classes) if isinstance(classes, str | Path) else classes
    check_folder(out.absolute())
    with open_files(path) as files, output_folder(out) as folder:
        found = row.read(files)
        table = _value_table(found.classes, wanted, path)
        names: dict[str, None] = {}
        for image in found.images:
            safe = safe_name(image.name, str(path))
            labels = image.label_map(found.notes, path)
            if safe in names:
                raise InputError(f"{path} has two label maps of {safe}; remove one of them")
            names[safe] = None
            target = folder / f"{safe}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(table[labels]).save(target)
            progress("import", len(names), found.total, {})
        if not names:
            raise InputError(f"{path} has no images of the format {source_format}")
        for name, key in zip(names, image_keys(list(names)), strict=True):
            (folder / f"{name}.png").rename(folder / f"{key}.png")
        content = json.dumps((wanted or found.classes).as_json(), ensure_ascii=False, indent=1)
        (folder / "classes.json").write_text(content + "\n", "utf-8")
    for note, count in found.notes.items():
        log(f"{path}: {note}: {count:,}")
    return Imported(len(names), out, wanted or found.classes)


def image_keys(names: list[str]) -> list[str]:
    """Return names without suffix, or with it where two names would be equal.

    :func:`primaps.data.collection.find_images` has the same rule for the keys of images.

    Examples:
        >>> image_keys(["a.jpg", "b.jpg", "b.png", "c.1"])
        ['a', 'b.jpg', 'b.png', 'c.1']
    """
    keys = [
        str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else str(path)
        for path in map(PurePosixPath, names)
    ]
    return unique_keys(keys, names)


def _value_table(
    found: Classes, wanted: Classes | None, path: str | Path
) -> UInt8[np.ndarray, " 256"]:
    """Return the value to write for each value that was read."""
    table = np.full(256, NO_LABEL, np.uint8)
    table[: len(found)] = np.arange(len(found))
    if wanted is not None:
        for k, name in enumerate(found.names):
            if name not in wanted.names:
                raise InputError(
                    f"{path}: the class {name!r} is not one of {', '.join(wanted.names)}; rename "
                    "it in the tool, or import without classes"
                )
            table[k] = wanted.names.index(name)
    return table
