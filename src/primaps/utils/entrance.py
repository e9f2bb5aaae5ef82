"""What every public function is entered by: options checked, and torch as this package expects it.

A caller may have other defaults: gradients off, inference mode, another default type of numbers.
Inside they are torch's own, so that results are the same, and afterwards what they were.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import ParamSpec, TypeVar

import torch

from primaps.utils.checked import checked

P = ParamSpec("P")
T = TypeVar("T")


def entrance(function: Callable[P, T]) -> Callable[P, T]:
    """Check options as :func:`primaps.utils.checked.checked` does, and run in plain torch.

    Examples:
        >>> @entrance
        ... def half() -> torch.dtype:
        ...     return torch.tensor(0.5).dtype
        >>> torch.set_default_dtype(torch.float64)
        >>> half(), torch.tensor(0.5).dtype
        (torch.float32, torch.float64)
        >>> torch.set_default_dtype(torch.float32)
    """
    inner = checked(function)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        with plain_torch():
            return inner(*args, **kwargs)

    return wrapper


@contextmanager
def plain_torch() -> Iterator[None]:
    """float32 where no type is given, no inference mode; gradients as they are."""
    with _float32():
        if not torch.is_inference_mode_enabled():
            yield
            return
        gradients = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            yield


_inside = 0
_before = torch.float32
_counting = Lock()


@contextmanager
def _float32() -> Iterator[None]:
    """The default type is the process's: the first thread inside changes it, the last one back."""
    global _inside, _before
    with _counting:
        if not _inside:
            _before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _inside += 1
    try:
        yield
    finally:
        with _counting:
            _inside -= 1
            if not _inside:
                torch.set_default_dtype(_before)
