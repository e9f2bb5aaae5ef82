"""Values checked by the types that are declared for them: options, and every JSON that is read.

A type is what annotations can say: numbers, text, ``Literal``, unions, lists, dictionaries, frozen
dataclasses and named tuples; ``Annotated[int, Range(1)]`` bounds a number or a length.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)  # fmt: skip

from primaps.utils.errors import InputError

_SIZED = (str, list, tuple, dict, Mapping)


class Range(NamedTuple):
    """Bounds of a number, or of the length of a text or list; ``below`` is itself left out."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def holds(self, value: float) -> bool:
        """Whether a value is inside."""
        return self.least <= value <= self.most and self.above < value < self.below

    def words(self) -> str:
        """As a condition, for messages.

        Examples:
            >>> Range(1).words(), Range(0, below=1).words(), Range(above=0).words()
            ('at least 1', 'at least 0 and below 1', 'above 0')
        """
        bounds = {"at least": self.least, "at most": self.most, "above": self.above}
        bounds["below"] = self.below
        return " and ".join(f"{word} {v:g}" for word, v in bounds.items() if math.isfinite(v))


def conform(value: Any, kind: Any, name: str) -> Any:
    """A value as a type wants it: numbers of NumPy become Python's, lists become tuples.

    Args:
        kind: the type.
        name: of the value, for the message.

    Raises:
        InputError: the value is not of this type, or outside its range.

    Examples:
        >>> conform(3, Annotated[int, Range(1)], "epochs")
        3
        >>> conform(1.5, int, "epochs")
        Traceback (most recent call last):
        primaps.utils.errors.InputError: epochs is 1.5; it must be a whole number
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        bounds = [part for part in parts[1:] if isinstance(part, Range)]
        sized = isinstance(value, str | list | tuple | dict)
        # Before its content is looked at, of which there may be millions.
        if sized and (get_origin(parts[0]) or parts[0]) in _SIZED:
            _check_range(len(value), bounds, f"{name} has the length {len(value)}")
        found = conform(value, parts[0], name)
        if found is not None and not sized:
            _check_range(found, bounds, f"{name} is {short(value)}")
        for choices in parts[1:]:
            if get_origin(choices) is Literal and found is not None:
                conform(found, choices, name)
        return found
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _one_of(value, parts, name)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in parts):
            raise InputError(f"{name} {short(value)} must be one of {', '.join(map(str, parts))}")
        return value
    if kind is bool and (isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")):
        return bool(value)  # NumPy's own too
    if kind is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if kind is float and isinstance(value, Real) and not isinstance(value, bool):
        if not _is_finite(value):
            raise InputError(f"{name} is {short(value)}; it must be a finite number")
        return float(value) if not isinstance(value, int) else value
    if kind is str and isinstance(value, str):
        return value
    if kind in (None, NoneType) and value is None:
        return None
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return _sequence(value, origin, parts, name)
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {
            conform(k, parts[0], f"a key of {name}"): conform(v, parts[1], f"{name}.{k}")
            for k, v in value.items()
        }
    if isinstance(kind, type):
        if isinstance(value, kind) and kind not in (int, float):
            return value
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            return _dataclass(value, kind, name)
    raise InputError(f"{name} is {short(value)}; it must be {_words(kind)}")


def check_fields(instance: Any) -> None:
    """Check every field of a frozen dataclass by its type, in ``__post_init__``.

    Raises:
        InputError: a field is not of its type, or outside its range.
    """
    for name, kind in _hints(type(instance)).items():
        object.__setattr__(instance, name, conform(getattr(instance, name), kind, name))


def _check_range(value: Any, bounds: list[Range], what: str) -> None:
    for bound in bounds:
        if not bound.holds(value):
            raise InputError(f"{what}; it must be {bound.words()}")


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no floating point holds
        return False


def _one_of(value: Any, kinds: tuple[Any, ...], name: str) -> Any:
    wanted = [kind for kind in kinds if kind is not NoneType]
    if value is not None and len(wanted) == 1 and get_origin(wanted[0]) is Literal:
        return conform(value, wanted[0], name)
    reasons = []
    for kind in kinds:
        try:
            return conform(value, kind, name)
        except InputError as error:
            reasons.append((_fits_kind(value, kind), str(error)))
    closest = [reason for fits, reason in reasons if fits]
    if closest:  # of the right kind, but outside its range
        raise InputError(closest[0])
    choices = " or ".join(_words(kind) for kind in kinds)
    raise InputError(f"{name} is {short(value)}; it must be {choices}")


def _fits_kind(value: Any, kind: Any) -> bool:
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if plain in (int, float):
        return isinstance(value, Real) and not isinstance(value, bool)
    origin = get_origin(plain) or plain
    return isinstance(origin, type) and isinstance(value, origin | dict)


def _sequence(value: Any, origin: type, parts: tuple[Any, ...], name: str) -> Any:
    if origin is list or parts[-1:] == (Ellipsis,):
        return origin(conform(v, parts[0], f"{name}[{i}]") for i, v in enumerate(value))
    if len(value) != len(parts):
        raise InputError(f"{name} has {len(value)} entries; it must have {len(parts)}")
    pairs = enumerate(zip(value, parts, strict=True))
    return tuple(conform(v, part, f"{name}[{i}]") for i, (v, part) in pairs)


def _dataclass(value: dict[str, Any], kind: Any, name: str) -> Any:
    hints, fields = _hints(kind), {f.name: f for f in dataclasses.fields(kind)}
    for key in value:
        if key not in hints:
            raise InputError(f"{name} has the unknown field {short(key)}")
    missing = dataclasses.MISSING
    for key, field in fields.items():
        if key not in value and field.default is missing and field.default_factory is missing:
            raise InputError(f"{name} lacks the field {key}")
    return kind(**{k: conform(v, hints[k], f"{name}.{k}") for k, v in value.items()})


def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _words(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(parts[0])
    if origin in (Union, UnionType):
        return " or ".join(map(_words, parts))
    if origin is Literal:
        return " or ".join(map(str, parts))
    if dataclasses.is_dataclass(kind):
        return "an object"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    names |= {NoneType: "null", Path: "a path", list: "a list", tuple: "a list", dict: "an object"}
    return names.get(origin or kind, getattr(kind, "__name__", str(kind)))


def short(value: Any) -> str:
    """A value as it may be in a message: its beginning, if it is long.

    Examples:
        >>> short([0] * 1000)
        '[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,...'
    """
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
