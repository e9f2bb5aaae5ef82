"""Arguments that have another name now: the old one is refused by a sentence that says the new."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from primaps.utils.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")


def renamed(**names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Refuse keyword arguments by their old names.

    Args:
        names: old name to new name.

    Examples:
        >>> @renamed(report="progress")
        ... def fit(progress=None): ...
        >>> fit(report=print)
        Traceback (most recent call last):
        primaps.utils.errors.InputError: fit: the argument 'report' is now 'progress'
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            for old, new in names.items():
                if old in kwargs:
                    name = getattr(function, "__name__", "function")
                    raise InputError(f"{name}: the argument {old!r} is now {new!r}")
            return function(*args, **kwargs)

        return wrapper

    return decorate
