"""A part of a large collection, drawn by a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from primaps.utils.errors import InputError
from primaps.utils.seeding import generator

T = TypeVar("T")


def drawn(items: Sequence[T], number: int | None, seed: int = 0) -> Sequence[T]:
    """``number`` of the items, drawn at random without repetition, in their order; None is all.

    Raises:
        InputError: ``number`` is less than 1.

    Examples:
        >>> drawn(range(1000), 4), drawn("abc", 5)
        ([79, 345, 724, 788], 'abc')
    """
    if number is not None and number < 1:
        raise InputError(f"a sample of {number} images is none; at least 1 is needed")
    if number is None or number >= len(items):
        return items
    chosen = torch.randperm(len(items), generator=generator("sample", seed))[:number]
    return [items[place] for place in sorted(chosen.tolist())]
