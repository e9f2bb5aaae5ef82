"""A file that is none of this machine's: a member of an archive, or of a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stored:
    """Where the content of an image is to be had.

    Attributes:
        name: what to call it.
        read: its content; raises an :class:`primaps.ImageError` if it cannot be had.
        within: the file of this machine that it is a part of, if there is one.
    """

    name: str
    read: Callable[[], bytes]
    within: Path | None = None

    def __str__(self) -> str:
        return self.name
