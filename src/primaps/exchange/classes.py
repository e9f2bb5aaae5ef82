"""Names and colors of the classes of label maps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from primaps.data.collection import LARGEST_CLASS_LIST, parse_class_list, read_class_file
from primaps.exchange.files import check_text, get_field
from primaps.geometry.regions import NO_LABEL
from primaps.persistence import read_class_summary, read_legend
from primaps.utils.colors import palette
from primaps.utils.errors import InputError
from primaps.utils.inputs import parse_json

MAX_CLASSES = 255


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes 0..K-1 of label maps.

    Attributes:
        names: One to 255 distinct names, without line breaks and without spaces at their ends.
        colors: RGB colors of 8 bits, (K, 3); None for the palette of primaps.
        ignore_index: Value of pixels without a label in label maps that are read.

    Raises:
        InputError: Names or colors are malformed.

    Examples:
        >>> classes = Classes(("road", "sky"))
        >>> classes.colors.tolist()
        [[243, 195, 0], [135, 86, 146]]
        >>> classes.normalized(np.array([[0, 1, 255]]), "a.png").tolist()
        [[0, 1, 255]]
    """

    names: tuple[str, ...]
    colors: UInt8[np.ndarray, "k 3"] = None  # type: ignore[assignment] # set below
    ignore_index: int = NO_LABEL

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= MAX_CLASSES:
            raise InputError(
                f"the number of classes must be between 1 and {MAX_CLASSES}, got {len(self.names)}"
            )
        for name in self.names:
            if not isinstance(name, str) or not name or name != name.strip():
                raise InputError(f"the class name {name!r} is empty or has spaces at its ends")
            check_text(name, "the class name")
        if double := {name for name in self.names if self.names.count(name) > 1}:
            raise InputError(f"two classes have the name {min(double)!r}; rename or merge them")
        colors = palette(len(self.names)) if self.colors is None else self.colors
        if colors.shape != (len(self.names), 3) or colors.dtype != np.uint8:
            raise InputError(
                f"{len(self.names)} classes need {len(self.names)} RGB colors of 8 bits, got "
                f"{len(colors)} of the type {colors.dtype}"
            )
        object.__setattr__(self, "colors", colors)

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Classes) and self.as_json() == other.as_json()

    @property
    def hex_colors(self) -> list[str]:
        """Colors as ``#rrggbb``."""
        return [f"#{color.tobytes().hex()}" for color in self.colors]

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``classes.json``, as labeled folders have it, with colors."""
        return {
            "classes": list(self.names),
            "ignore_index": NO_LABEL,
            "colors": self.colors.tolist(),
        }

    def normalized(
        self, labels: Integer[np.ndarray, "h w"], where: object
    ) -> UInt8[np.ndarray, "h w"]:
        """Return a label map with 255 for the ignore index.

        Args:
            labels: Label map with classes, the ignore index or 255.
            where: File, for error messages.

        Raises:
            InputError: The label map has another value.
        """
        table = np.full((1 << 16) + 1, -1, np.int16)  # the last value is for all beyond
        table[: len(self)] = np.arange(len(self))
        table[[NO_LABEL, self.ignore_index]] = NO_LABEL
        found = table[labels.astype(np.int64).clip(-1, 1 << 16)]
        if (found < 0).any():
            raise InputError(
                f"{where}: value {labels[found < 0].min()} is not a class (0 to {len(self) - 1}) "
                f"or the ignore index {self.ignore_index}; give the classes.json of these maps"
            )
        return found.astype(np.uint8)


def read_classes(path: str | Path) -> Classes:
    """Read classes from a ``classes.json``, a folder with this file, or a saved model.

    ``classes.json`` is ``{"classes": ["road", ...], "ignore_index": 255, "colors": [[r, g, b],
    ...]}``; only the names are required. Classes of a model without names are ``class 0``,
    ``class 1``, ... in the colors of primaps.

    Raises:
        InputError: The file does not exist or is malformed.
    """
    path = Path(path)
    if (summary := read_class_summary(path) if path.is_dir() else None) is not None:
        legend = read_legend(path, summary.tree)
        return Classes(tuple(legend.names), legend.colors)
    candidates = [path / "classes.json", path / "config.json"] if path.is_dir() else [path]
    file = next((one for one in candidates if one.is_file()), None)
    if file is None:
        raise InputError(f"{path} has no classes.json; give this file, its folder, or a model")
    return parse_classes(read_class_file(file), str(file))


def parse_classes(text: bytes, where: str) -> Classes:
    """Return the classes from the content of ``classes.json``; see :func:`read_classes`."""
    hint = (
        'it must be {"classes": [names], "ignore_index": number, "colors": [[r, g, b], ...]}, '
        "where only the names are required"
    )
    if len(text) <= LARGEST_CLASS_LIST:
        content = parse_json(text, Any, where, hint)
        if isinstance(content, dict) and "config" in content and "classes" not in content:
            count = get_field(content["config"], "classes", int, where)
            return Classes(tuple(f"class {k}" for k in range(min(count, MAX_CLASSES + 1))))
    listed = parse_class_list(text, where, hint)
    colors = None if listed.colors is None else np.array(listed.colors, np.uint8)
    ignore_index = NO_LABEL if listed.ignore_index is None else listed.ignore_index
    try:
        return Classes(tuple(listed.classes), colors, ignore_index)  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def distinct_colors(
    colors: UInt8[np.ndarray, "k 3"], taken: Iterable[Sequence[int]] = ((0, 0, 0),)
) -> UInt8[np.ndarray, "k 3"]:
    """Change colors as little as needed to make them distinct, for formats without class numbers.

    Args:
        colors: RGB colors.
        taken: Colors that none of the result may have.

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
    """Return a color from ``#rrggbb``; None for any other text.

    Examples:
        >>> parse_color("#ff8000"), parse_color("red")
        ((255, 128, 0), None)
    """
    if text is None or not re.fullmatch("#[0-9a-fA-F]{6}", text):
        return None
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def classes_of(names: Sequence[str], colors: Sequence[Sequence[int] | None] = ()) -> Classes:
    """Return classes with the colors of a file; missing colors are those of primaps."""
    if len(names) > MAX_CLASSES:
        return Classes(tuple(names))  # raises
    chosen = palette(len(names)).tolist()
    for k, color in enumerate(colors[: len(names)]):
        chosen[k] = chosen[k] if color is None else list(color)
    return Classes(tuple(names), np.array(chosen, np.uint8).reshape(len(names), 3))
