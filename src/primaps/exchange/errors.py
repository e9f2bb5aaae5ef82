"""The one error of this package, and the checks of foreign content that raise it."""

from __future__ import annotations

import unicodedata
from typing import Any, TypeVar

from primaps.utils import inputs
from primaps.utils.errors import InputError

T = TypeVar("T")
MAX_PIXELS = 178_956_970
"""Pixels that a file may claim for an image: where Pillow, too, suspects an attack."""


def parse_json(content: bytes, where: str) -> Any:
    """JSON in UTF-8, with one sentence about what is none.

    Raises:
        InputError: it is no JSON, or nested too deeply.
    """
    return inputs.parse_json(content, Any, where, "is it cut off?")


def need(content: Any, key: str, kind: type[T] | tuple[type[T], ...], where: str) -> T:
    """``content[key]``, which must be of the type ``kind``.

    Raises:
        InputError: there is no such key, or it is of another type.

    Examples:
        >>> need({"id": 3}, "id", int, "a.json")
        3
        >>> need({"id": "3"}, "id", int, "a.json")
        Traceback (most recent call last):
        primaps.utils.errors.InputError: a.json: 'id' must be int, but is str
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    names = " or ".join(one.__name__ for one in kinds)
    if not isinstance(content, dict):
        raise InputError(f"{where} must be an object with {key!r}, but is {_kind(content)}")
    if key not in content:
        raise InputError(f"{where} has no {key!r}; is it of another format?")
    found = content[key]
    if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
        raise InputError(f"{where}: {key!r} must be {names}, but is {_kind(found)}")
    return found


def need_size(width: Any, height: Any, where: str) -> tuple[int, int]:
    """Height and width of an image, from foreign content.

    Raises:
        InputError: they are no whole numbers, below 1, or give more than ``MAX_PIXELS``.
    """
    try:
        if isinstance(height, bool) or isinstance(width, bool):
            raise ValueError
        size = int(height), int(width)
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"{where} has the size {width!r} x {height!r}, which is no number of pixels"
        ) from None
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise InputError(f"{where} claims to have {size[1]} x {size[0]} pixels; it is damaged")
    return size


def check_text(text: str, what: str) -> None:
    """Raise if text has line breaks or other control characters, which lists and XML cannot hold.

    Joiners, which several scripts need within words, are fine.

    Raises:
        InputError: it does.
    """
    strange = [one for one in text if unicodedata.category(one) in ("Cc", "Cs", "Cn", "Zl", "Zp")]
    if strange:
        raise InputError(f"{what} {text!r} has the character {strange[0]!r}: rename it")


def _kind(content: Any) -> str:
    return "null" if content is None else type(content).__name__
