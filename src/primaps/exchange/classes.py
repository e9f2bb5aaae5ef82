"""Names and colors of the values that label maps have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval
from jaxtyping import Integer, UInt8

from primaps.data.folder import ClassList
from primaps.exchange.errors import check_text, parse_json
from primaps.persistence import read_class_summary, read_legend
from primaps.utils.colors import palette
from primaps.utils.errors import InputError
from primaps.utils.inputs import read_bytes
from primaps.utils.validation import validate

NOTHING = 255
"""Value of a pixel without a label, in every label map of this package."""
MAX_CLASSES = 255
Number = Annotated[int, Interval(ge=1, le=MAX_CLASSES)]


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes 0..K-1 of label maps.

    Attributes:
        names: one to 255, all different, without line breaks or blanks at their ends.
        colors: (K, 3) of 8 bits; those of primaps if None.
        ignore_index: value of pixels without a label; any value is allowed in files that are read.
        hidden: classes that are treated as no label.

    Raises:
        InputError: names or colors are not like that.

    Examples:
        >>> classes = Classes(("road", "sky"))
        >>> classes.colors.tolist()
        [[243, 195, 0], [135, 86, 146]]
        >>> classes.normalized(np.array([[0, 1, 255]]), "a.png").tolist()
        [[0, 1, 255]]
    """

    names: tuple[str, ...]
    colors: UInt8[np.ndarray, "k 3"] = None  # type: ignore[assignment] # filled in below
    ignore_index: int = NOTHING
    hidden: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= MAX_CLASSES:
            raise InputError(
                f"there are {len(self.names)} classes; label maps of 8 bits hold 1 to {MAX_CLASSES}"
            )
        for name in self.names:
            if not isinstance(name, str) or not name or name != name.strip():
                raise InputError(f"{name!r} is no name of a class: no blanks around its letters")
            check_text(name, "the class")
        if double := {name for name in self.names if self.names.count(name) > 1}:
            raise InputError(f"two classes have the name {min(double)!r}: rename or merge them")
        colors = palette(len(self.names)) if self.colors is None else self.colors
        if colors.shape != (len(self.names), 3) or colors.dtype != np.uint8:
            raise InputError(
                f"colors of {len(self.names)} classes are {len(self.names)} x 3 numbers of 0 to "
                f"255, but there are {len(colors)}"
            )
        object.__setattr__(self, "colors", colors)

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Classes) and self.as_json() == other.as_json()

    @property
    def hexadecimal(self) -> list[str]:
        """Colors as ``#rrggbb``."""
        return [f"#{color.tobytes().hex()}" for color in self.colors]

    def as_json(self) -> dict[str, Any]:
        """Content of ``classes.json``, the shape of labeled folders with colors added."""
        return {
            "classes": list(self.names),
            "ignore_index": NOTHING,
            "colors": self.colors.tolist(),
        }

    def normalized(
        self, labels: Integer[np.ndarray, "h w"], where: object
    ) -> UInt8[np.ndarray, "h w"]:
        """A label map with 255 wherever there is no label: ignored and hidden values.

        Raises:
            InputError: it has a value that is no class.
        """
        table = np.full(1 << 16, -1, np.int16)
        table[: len(self)] = np.arange(len(self))
        table[[NOTHING, self.ignore_index, *self.hidden]] = NOTHING
        if labels.min(initial=0) < 0 or labels.max(initial=0) >= len(table):
            raise InputError(f"{where} has values outside 0..65535; it is no label map")
        found = table[labels]
        if (found < 0).any():
            raise InputError(
                f"{where} has the value {labels[found < 0].min()}, but the classes are "
                f"0..{len(self) - 1}: give the classes.json that belongs to these maps"
            )
        return found.astype(np.uint8)


def read_classes(path: str | Path) -> Classes:
    """Classes of a ``classes.json``, of a folder that holds one, or of a saved model.

    ``classes.json`` reads ``{"classes": ["road", ...], "ignore_index": 255, "colors": [[r, g, b],
    ...]}``, where all but the names may be missing. A model without it has the names ``class 0``,
    ``class 1``, ... and the colors of primaps.

    Raises:
        InputError: there is neither, or they do not read like this.
    """
    path = Path(path)
    if (summary := read_class_summary(path) if path.is_dir() else None) is not None:
        shown = read_legend(path, summary.tree)  # a model with its tree and edits
        return Classes(tuple(shown.names), shown.colors)
    candidates = [path / "classes.json", path / "config.json"] if path.is_dir() else [path]
    file = next((one for one in candidates if one.is_file()), None)
    if file is None:
        raise InputError(f"{path} has no classes.json: give that file, its folder, or a model")
    try:
        return parse_classes(read_bytes(file), str(file))
    except InputError as error:
        raise InputError(str(error)) from None


def parse_classes(text: bytes, where: str) -> Classes:
    """Classes from the content of such a file, see :func:`read_classes`."""
    content = parse_json(text, where)
    model = content.get("config") if isinstance(content, dict) else None
    try:
        if isinstance(model, dict) and "classes" not in content:
            number = validate(model.get("classes"), Number, "classes")
            return Classes(tuple(f"class {k}" for k in range(number)))
        found: ClassList = validate(content, ClassList, "the content")
        colors = found.colors or palette(len(found.classes)).tolist()
        ignore = NOTHING if found.ignore_index is None else found.ignore_index
        return Classes(tuple(found.classes), np.array(colors, np.uint8), ignore)
    except InputError as error:
        raise InputError(
            f'{where}: {error}; it must read {{"classes": [names], "ignore_index": number, '
            '"colors": [[r, g, b], ...]}, where only the names are needed'
        ) from None


def distinct_colors(
    colors: UInt8[np.ndarray, "k 3"], taken: Iterable[Sequence[int]] = ((0, 0, 0),)
) -> UInt8[np.ndarray, "k 3"]:
    """Colors changed as little as needed for no two to be alike, and none to be ``taken``.

    For formats that tell classes apart by their color alone.

    Examples:
        >>> distinct_colors(np.array([[9, 9, 9], [9, 9, 9], [0, 0, 0]], np.uint8)).tolist()
        [[9, 9, 9], [9, 9, 10], [0, 0, 1]]
    """
    used = {tuple(color) for color in taken}
    result = []
    for color in colors.tolist():
        code = (color[0] << 16) + (color[1] << 8) + color[2]
        while (found := (code >> 16, code >> 8 & 255, code & 255)) in used:
            code = (code + 1) % (1 << 24)
        used.add(found)
        result.append(found)
    return np.array(result, np.uint8).reshape(-1, 3)


def parse_color(text: str | None) -> tuple[int, int, int] | None:
    """A color ``#rrggbb``; None if it is written in another way.

    Examples:
        >>> parse_color("#ff8000"), parse_color("red")
        ((255, 128, 0), None)
    """
    if text is None or not re.fullmatch("#[0-9a-fA-F]{6}", text):
        return None
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def with_colors(names: Sequence[str], found: Sequence[Sequence[int] | None]) -> Classes:
    """Classes from what a file says; colors that it leaves open are those of primaps."""
    own = palette(len(names)).tolist()
    chosen = [own[i] if color is None else list(color) for i, color in enumerate(found)]
    return Classes(tuple(names), np.array(chosen, np.uint8).reshape(len(names), 3))
