"""Which images are computed together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def alike(
    items: Iterable[T], key: Callable[[T], Hashable], size: int, waiting: int
) -> Iterator[list[T]]:
    """Lists of up to ``size`` items of the same key, each item in one list.

    Items wait until there are ``size`` of their key. When ``waiting`` of them do, the longest list
    goes as it is, so that memory is bounded.

    Examples:
        >>> list(alike("abababcb", str.lower, 2, 4))
        [['a', 'a'], ['b', 'b'], ['b', 'b'], ['a'], ['c']]
        >>> list(alike("abc", str.lower, 2, 2))
        [['a'], ['b'], ['c']]
    """
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        group = groups.setdefault(key(item), [])
        group.append(item)
        if len(group) == size or sum(map(len, groups.values())) >= waiting:
            longest = max(groups, key=lambda one: len(groups[one]))
            yield groups.pop(longest)
    yield from groups.values()
