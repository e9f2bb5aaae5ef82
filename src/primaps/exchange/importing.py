"""From other tools back to label maps and ``classes.json``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from primaps.data.collection import IMAGE_SUFFIXES
from primaps.exchange.classes import NOTHING, Classes, read_classes
from primaps.exchange.exporting import write_classes
from primaps.exchange.formats import find_format
from primaps.exchange.source import open_source, safe_name
from primaps.results import check_folder, own_folder
from primaps.utils.errors import InputError
from primaps.utils.progress import ProgressCallback, silent


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        images: number of label maps written.
        out: the folder.
        classes: of the label maps.
    """

    images: int
    out: Path
    classes: Classes


def import_labels(
    path: str | Path,
    source_format: str,
    out: str | Path,
    *,
    classes: Classes | str | Path | None = None,
    progress: ProgressCallback = silent,
) -> Imported:
    """Write labels of another tool as label maps and ``classes.json``: ``primaps import``.

    ``out/<name without suffix>.png`` has the class of every pixel, 255 where there is none, so that
    ``evaluate --labels out`` finds the map of each image.

    Args:
        path: a file, folder or zip file of the tool.
        source_format: a format that can be read, see :data:`primaps.exchange.FORMATS`.
        out: folder to write to: absent, empty, or an earlier import that nobody changed since.
        classes: classes, or the ``classes.json`` or model that has them: classes are numbered as
            there, and every name must be one of these. None takes the order of the file.

    Raises:
        InputError: anything is not as it should be. Nothing is left at ``out`` then.
    """
    form, out = find_format(source_format, reading=True), Path(out)
    wanted = read_classes(classes) if isinstance(classes, str | Path) else classes
    check_folder(out.absolute())
    with open_source(path) as source, own_folder(out) as folder:
        if form.read is None:
            raise InputError(f"{source_format} cannot be read")
        found, total, images = form.read(source)
        table = _table(found, wanted, path)
        names: dict[str, None] = {}
        for name, labels in images:
            safe = safe_name(name, str(path))
            if safe in names:
                raise InputError(f"{path} has two label maps of {safe}: keep one of them")
            names[safe] = None
            target = folder / f"{safe}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(table[labels]).save(target)
            progress("import", len(names), total, {})
        if not names:
            raise InputError(f"{path} has no images; is it {source_format}?")
        for name, key in zip(names, keys(list(names)), strict=True):
            (folder / f"{name}.png").rename(folder / f"{key}.png")
        write_classes(wanted or found, folder / "classes.json")
    return Imported(len(names), out, wanted or found)


def keys(names: list[str]) -> list[str]:
    """Names without their suffix; where this makes two alike, as they are.

    The same rule as for images, so that a label map has the key of its image.

    Examples:
        >>> keys(["a.jpg", "b.jpg", "b.png", "c.1"])
        ['a', 'b.jpg', 'b.png', 'c.1']
    """
    bare = [
        str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else str(path)
        for path in map(PurePosixPath, names)
    ]
    count = Counter(one.casefold() for one in bare)
    return [
        one if count[one.casefold()] == 1 else name for one, name in zip(bare, names, strict=True)
    ]


def _table(found: Classes, wanted: Classes | None, path: str | Path) -> np.ndarray:
    """Of each value that was read the value to write."""
    table = np.full(256, NOTHING, np.uint8)
    table[: len(found)] = np.arange(len(found))
    if wanted is not None:
        strange = [name for name in found.names if name not in wanted.names]
        if strange:
            raise InputError(
                f"{path} has the class {strange[0]!r}, which is none of {', '.join(wanted.names)}: "
                "rename it there, or import without classes"
            )
        table[: len(found)] = [wanted.names.index(name) for name in found.names]
    return table
