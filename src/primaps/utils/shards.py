"""Independent processes that share a collection: which of them this one is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from primaps.utils.errors import InputError

T = TypeVar("T")


class Shard(NamedTuple):
    """One of several shares.

    Attributes:
        number: 1..total.
        total: how many shares there are.
    """

    number: int
    total: int

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """The items of this share: every ``total``-th.

        Examples:
            >>> [Shard(number, 2).of("abcde") for number in (1, 2)]
            ['ace', 'bd']
        """
        return items[self.number - 1 :: self.total]

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


def read_shard(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard:
    """The share that ``I/N`` names, or with ``auto`` the one that torchrun and Slurm started this
    process for; None is everything.

    Of torchrun it is the process, of a Slurm array the task, and of torchrun in the tasks of an
    array the process among all of theirs.

    Raises:
        InputError: it is not I/N, I is not in 1..N, or a variable of theirs has no number.

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
        primaps.utils.errors.InputError: shard 5/4: there are the shards 1/4 to 4/4
    """
    if text is None:
        return Shard(1, 1)
    if text != "auto":
        if not (match := re.fullmatch(r"(\d+)/(\d+)", text.strip())):
            raise InputError(
                f"shard {text}: it reads I/N, as 1/4 to 4/4 for four processes, or auto"
            )
        number, count = (int(part) for part in match.groups())
        return _checked(number, count, f"shard {text}")
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
    return _checked(index + 1, count, f"torchrun or Slurm started shard {index + 1}/{count}")


def _checked(number: int, count: int, said: str) -> Shard:
    if not 1 <= number <= count:
        last = max(count, 1)
        raise InputError(f"{said}: there are the shards 1/{last} to {last}/{last}")
    return Shard(number, count)


def _number(environment: Mapping[str, str], name: str, default: str) -> int:
    try:
        return int(environment.get(name, default))
    except ValueError:
        raise InputError(f"{name} is {environment[name]!r} and no number: give shard I/N") from None
