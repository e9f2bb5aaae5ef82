"""Shards: independent processes that divide a collection among them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from primaps.utils.errors import InputError

T = TypeVar("T")


class Shard(NamedTuple):
    """One of several shards.

    Attributes:
        number: 1..total.
        total: number of shards.
    """

    number: int
    total: int

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items of this shard: every ``total``-th item.

        Examples:
            >>> [Shard(number, 2).of("abcde") for number in (1, 2)]
            ['ace', 'bd']
        """
        return items[self.number - 1 :: self.total]

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


def read_shard(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard:
    """Read a shard ``I/N``; ``auto`` is the shard of this process, None the whole collection.

    With ``auto`` the shard is the process under torchrun, the task in a Slurm array, or the process
    among the processes of all tasks.

    Raises:
        InputError: the text is not I/N, I is not in 1..N, or an environment variable of torchrun or
            Slurm is not a number.

    Examples:
        >>> read_shard("2/4")
        Shard(number=2, total=4)
        >>> read_shard("auto", {"RANK": "0", "WORLD_SIZE": "8"})
        Shard(number=1, total=8)
        >>> array = {"SLURM_ARRAY_TASK_ID": "13", "SLURM_ARRAY_TASK_COUNT": "4"}
        >>> read_shard("auto", {**array, "SLURM_ARRAY_TASK_MIN": "10"})
        Shard(number=4, total=4)
        >>> read_shard("5/4")
        Traceback (most recent call last):
        primaps.utils.errors.InputError: shard index must be between 1 and 4, got 5
    """
    if text is None:
        return Shard(1, 1)
    if text != "auto":
        if not (match := re.fullmatch(r"(\d+)/(\d+)", text.strip())):
            raise InputError(
                f"shard must be I/N (1/4 to 4/4 for four processes) or auto, got {text}"
            )
        number, count = (int(part) for part in match.groups())
        return _checked(number, count)
    index, count = 0, 1
    if "SLURM_ARRAY_TASK_COUNT" in environment:
        task, first = (
            _number(environment, f"SLURM_ARRAY_TASK_{name}", "0") for name in ("ID", "MIN")
        )
        step = max(1, _number(environment, "SLURM_ARRAY_TASK_STEP", "1"))
        index, count = (task - first) // step, _number(environment, "SLURM_ARRAY_TASK_COUNT", "1")
    if "RANK" in environment and "WORLD_SIZE" in environment:
        processes = _number(environment, "WORLD_SIZE", "1")
        index, count = index * processes + _number(environment, "RANK", "0"), count * processes
    return _checked(index + 1, count, " from torchrun or Slurm")


def _checked(number: int, count: int, source: str = "") -> Shard:
    if not 1 <= number <= count:
        last = max(count, 1)
        raise InputError(f"shard index{source} must be between 1 and {last}, got {number}")
    return Shard(number, count)


def _number(environment: Mapping[str, str], name: str, default: str) -> int:
    try:
        return int(environment.get(name, default))
    except ValueError:
        raise InputError(
            f"environment variable {name} must be a number, got {environment[name]!r}: "
            "pass the shard as I/N"
        ) from None
