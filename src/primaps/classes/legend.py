"""The classes as a person sees them: id, name, color, parts, and the values of label maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from torch import Tensor

from primaps.utils.errors import PrimapsError
from primaps.utils.validation import short

HIDDEN = 255
"""Value of the pixels of hidden classes, as of pixels that are not counted."""


class EditError(PrimapsError, ValueError):
    """An edit that cannot be made, or a class that is not there; the message says which and why."""


@dataclass(frozen=True)
class Class:
    """A class as a person sees it.

    Attributes:
        id: which parts it has, in the tree's names: ``3``, ``3.1``, ``0+4``. No other edit and no
            other cut changes it.
        name: given, or made from the names of what it was split from or merged of.
        color: red, green and blue, 0..255.
        parts: numbers of its parts.
        hidden: its pixels have no class.
        named: a person gave the name.
    """

    id: str
    name: str
    color: tuple[int, int, int]
    parts: tuple[int, ...]
    hidden: bool = False
    named: bool = False


@dataclass(frozen=True)
class Legend:
    """All classes after the edits, in the order of their first parts.

    Attributes:
        classes: the shown ones have the values 0, 1, ... of label maps, in this order.
        parts: number of parts of the tree.
    """

    classes: tuple[Class, ...]
    parts: int

    @property
    def shown(self) -> tuple[Class, ...]:
        """Those that label maps have."""
        return tuple(one for one in self.classes if not one.hidden)

    @property
    def hides(self) -> bool:
        """Whether label maps have pixels of the value 255, which are of no class."""
        return len(self.shown) < len(self.classes)

    @property
    def names(self) -> list[str]:
        """Of the shown classes."""
        return [one.name for one in self.shown]

    @property
    def colors(self) -> UInt8[np.ndarray, "k 3"]:
        """Of the shown classes."""
        return np.array([one.color for one in self.shown], np.uint8).reshape(-1, 3)

    def table(self) -> Integer[Tensor, " l"]:
        """Value of each part in a label map: a shown class, or 255 for hidden ones.

        Raises:
            EditError: a shown class would have the value of hidden ones.
        """
        if self.hides and len(self.shown) > HIDDEN:
            raise EditError(
                f"{len(self.shown)} classes are shown beside hidden ones; label maps have room for "
                f"{HIDDEN}: hide or merge more, or cut at fewer classes"
            )
        found = torch.full((self.parts,), HIDDEN, dtype=torch.long)
        for value, one in enumerate(self.shown):
            found[list(one.parts)] = value
        return found

    def find(self, text: str) -> Class:
        """The class with this id or, if there is none, of this name.

        Raises:
            EditError: there is none.
        """
        for key in ("id", "name"):
            for one in self.classes:
                if getattr(one, key) == text:
                    return one
        there = ", ".join(
            one.id if not one.named else f"{one.id} ({one.name})" for one in self.classes
        )
        raise EditError(f"there is no class {short(text)}; there are {there}")
