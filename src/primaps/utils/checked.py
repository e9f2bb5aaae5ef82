"""Arguments of functions checked by their annotations, before anything is done with them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from primaps.utils.typed import conform

P = ParamSpec("P")
T = TypeVar("T")


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Check the arguments that are options, by the types that the function declares for them.

    Options are numbers, texts, paths, switches, choices, and unions of these;
    ``Annotated[int, Range(1)]`` bounds one. What else a function takes is its own to check.

    Raises:
        InputError: an option is not of its type, or outside its range.

    Examples:
        >>> from primaps.utils.typed import Range
        >>> @checked
        ... def draw(image, most: Annotated[int, Range(1)] = 200): ...
        >>> draw("a.png", most=0)
        Traceback (most recent call last):
        primaps.utils.errors.InputError: most is 0; it must be at least 1
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        given = signature.bind(*args, **kwargs)
        for name, kind in _options(function).items():
            if name in given.arguments:
                given.arguments[name] = conform(given.arguments[name], kind, name)
        return function(*given.args, **given.kwargs)

    return wrapper


@functools.cache
def _options(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of the parameters that are options."""
    hints = get_type_hints(function, include_extras=True)
    return {name: kind for name, kind in hints.items() if name != "return" and is_option(kind)}


def is_option(kind: Any) -> bool:
    """Whether values of a type are plain: numbers, texts, paths, switches, choices, or unions.

    Examples:
        >>> is_option(Annotated[int, "a number"] | None), is_option(int | list[int])
        (True, False)
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return is_option(parts[0])
    if origin in (Union, UnionType):
        return all(map(is_option, parts))
    return origin is Literal or kind in (bool, int, float, str, Path, NoneType)
