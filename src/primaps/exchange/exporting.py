"""From the label maps that ``predict`` and ``propose`` wrote to the formats of other tools."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from primaps.data.collection import ImageFile, find_images
from primaps.data.images import ImageError, opened, upright_size
from primaps.exchange.classes import Classes, read_classes
from primaps.exchange.errors import check_text
from primaps.exchange.formats import find_format
from primaps.exchange.labeled import LabeledImage, proposals
from primaps.exchange.source import one_sentence
from primaps.results import check_folder, own_folder
from primaps.utils.errors import InputError
from primaps.utils.inputs import read_json
from primaps.utils.progress import ProgressCallback, silent

logger = logging.getLogger("primaps")
PROPOSAL = Classes(("proposal",))


@dataclass(frozen=True)
class Exported:
    """What an export did.

    Attributes:
        images: number of images written.
        out: the folder.
        next: what to do with it in the tool.
    """

    images: int
    out: Path
    next: str


def export_labels(
    result: str | Path,
    images: str | Path | Sequence[str | Path],
    to: str,
    out: str | Path,
    *,
    classes: Classes | str | Path | None = None,
    per: str | None = None,
    progress: ProgressCallback = silent,
    log: Callable[[str], None] = logger.warning,
) -> Exported:
    """Write label maps in the format of another tool: ``primaps export``.

    ``result`` holds no images, and does not say where they were: maps are found by the relative
    paths of the images, so both folders may have been moved. Give what ``predict`` was given.

    Args:
        result: folder that ``predict``, ``propose`` or :func:`import_labels` wrote.
        images: the files, folders or globs that the maps are of.
        to: a format, see :data:`primaps.exchange.FORMATS`.
        out: folder to write to: absent, empty, or an earlier export that nobody changed since.
        classes: names and colors, or the ``classes.json`` or model that has them; those that
            ``result`` has if None.
        per: one region per ``class`` or connected ``region``, for formats that list regions; None
            takes what suits the tool.
        log: called with a sentence about images that have no label map; they are left out.

    Raises:
        InputError: anything is not as it should be. Nothing is left at ``out`` then.
        NotFoundError: there is no image.
    """
    result, out, form = Path(result), Path(out), find_format(to)
    if per is not None and per not in ("class", "region"):
        raise InputError(f"per is {per!r}; it must be class or region")
    if per is not None and form.per is None:
        raise InputError(f"{to} does not list regions: leave out per")
    proposed, named = _about(result)
    if proposed and not form.instances:
        raise InputError(
            f"{result} has proposals, which are masks without a class, and {to} has only classes: "
            "export to coco, cvat, labelme or labelstudio, or predict with a model"
        )
    if isinstance(classes, str | Path):
        classes = read_classes(classes)
    chosen = classes or named
    if chosen is None:
        raise InputError(
            f"{result} does not say what its classes are: give a classes.json or the model"
        )
    check_folder(out.absolute())
    files = _with_maps(find_images(images, exclude=out), result, log)

    def labeled() -> Generator[LabeledImage]:
        for done, file in enumerate(files):
            source = Path(str(file.source))
            name = str(Path(file.key).parent / source.name)
            check_text(name, "the file name")
            labels = _read_map(result / f"{file.key}.png")
            size = _size(source)
            if labels.shape != size:
                raise InputError(
                    f"{result / file.key}.png has {labels.shape[1]} x {labels.shape[0]} pixels, "
                    f"but {source} {size[1]} x {size[0]}: are these the images that it was made of?"
                )
            if proposed:
                yield proposals(name, file.key, labels, source)
            else:
                where = f"{result / file.key}.png"
                yield LabeledImage(name, file.key, chosen.normalized(labels, where), source)
            progress("export", done + 1, len(files), {})

    with own_folder(out) as folder, contextlib.closing(labeled()) as stream:
        form.write(stream, chosen, folder, per or form.per or "class")
    names = ", ".join(chosen.names)
    return Exported(len(files), out, form.next.format(out=out, names=names))


def _about(result: Path) -> tuple[bool, Classes | None]:
    """Whether a folder has proposals, and its classes if it names them."""
    if not result.is_dir():
        raise InputError(f"{result} is no folder that predict or propose wrote")
    record = result / "primaps.json"
    try:
        content = read_json(record, dict[str, Any]) if record.exists() else {}
    except InputError as error:
        raise InputError(f"{error}: run predict or propose again") from None
    if content.get("command") == "propose":
        return True, PROPOSAL
    if (result / "classes.json").is_file():
        return False, read_classes(result)
    names = content.get("names")
    if not isinstance(names, list) or not names:
        return False, None
    return False, Classes(tuple(names))


def _with_maps(files: list[ImageFile], result: Path, log: Callable[[str], None]) -> list[ImageFile]:
    """The images that have a label map; every map must have its image."""
    present = [file for file in files if (result / f"{file.key}.png").is_file()]
    known = {result / f"{file.key}.png" for file in present}
    spare = sorted(set(result.rglob("*.png")) - known)  # pictures beside maps are JPEGs
    if spare:
        raise InputError(
            f"{len(spare)} label maps of {result} have no image, first "
            f"{spare[0].relative_to(result)}: give the images as predict was given them"
        )
    if not present:
        raise InputError(f"{result} has no label maps of these images")
    if absent := len(files) - len(present):
        first = next(file for file in files if file not in present)
        log(f"{absent} of {len(files)} images have no label map in {result}; first {first.source}")
    return present


def _read_map(path: Path) -> Integer[np.ndarray, "h w"]:
    try:
        with opened(path) as image:
            labels = np.asarray(image)
    except ImageError as error:
        raise InputError(f"{error}: predict it again") from None
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise InputError(f"{path} is no label map: it must have one channel of whole numbers")
    return labels


def _size(path: Path) -> tuple[int, int]:
    """Height and width, upright."""
    with one_sentence(), opened(path) as image:
        return upright_size(image)[::-1]


def write_classes(classes: Classes, path: Path) -> None:
    """Write ``classes.json``."""
    path.write_text(json.dumps(classes.as_json(), ensure_ascii=False, indent=1) + "\n", "utf-8")
