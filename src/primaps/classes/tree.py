"""The tree of classes: below each class of a model its parts, above them what they merge into.

Nodes 0..L-1 are the parts (leaves); merge i joins two nodes to node L+i. The first L-K merges join
parts of one class, the last K-1 join classes, so that undoing the last K-1 merges gives the K
classes of the model, in their order, and every other number of classes from 1 to L is a cut
that is nested in, or nests, every other one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from primaps.utils.bilinear import upsample
from primaps.utils.errors import InputError, PrimapsError
from primaps.utils.inputs import need_tensor

MOST_PARTS = 4096
"""Parts that a tree that is read may have: :func:`primaps.classes.build_tree.grow` makes 256."""


class TreeError(PrimapsError, ValueError):
    """A tree that is none, or a cut that it does not have; the message says why."""


@dataclass(frozen=True)
class Tree:
    """Classes, their parts, and the order in which they merge.

    Attributes:
        parts: direction (length 1, half precision) of each part. Parts of a class lie next to each
            other, classes in the order of the model.
        masks: number of masks that each part was found in.
        merges: nodes joined by each merge, the one with the smaller first part first.
        cost: of each merge: what Eq. 9 loses per mask of the collection.
        classes: K, the classes of the model that it was grown from.

    Raises:
        TreeError: shapes do not fit, or merges are not those of a tree anchored at ``classes``.

    Examples:
        >>> tree = Tree(torch.eye(3), torch.tensor([5, 2, 4]), torch.tensor([[0, 1], [3, 2]]),
        ...             torch.tensor([0.1, 0.2]), classes=2)
        >>> tree.cut(2).tolist(), tree.cut(3).tolist(), tree.cut(1).tolist()
        ([0, 0, 1], [0, 1, 2], [0, 0, 0])
        >>> tree.names()
        ['0.1', '0.2', '1', '0', '0+1']
    """

    parts: Float[Tensor, "l c"]
    masks: Integer[Tensor, " l"]
    merges: Integer[Tensor, "l1 2"]
    cost: Float[Tensor, " l1"]
    classes: int

    def __post_init__(self) -> None:
        leaves = len(self.parts)
        if not (len(self.masks) == leaves and len(self.merges) == len(self.cost) == leaves - 1):
            raise TreeError(
                f"a tree of {leaves} parts has {leaves - 1} merges; this one has "
                f"{len(self.merges)}, {len(self.cost)} costs and {len(self.masks)} mask counts"
            )
        if not 1 <= self.classes <= leaves:
            raise TreeError(f"{self.classes} classes cannot have {leaves} parts")
        free = set(range(leaves))
        for number, pair in enumerate(self.merges.tolist()):
            if pair[0] == pair[1] or not set(pair) <= free:
                raise TreeError(f"merge {number} joins nodes {pair}, which are not both free")
            free = (free - set(pair)) | {leaves + number}
        if (self.owner.diff() < 0).any():
            raise TreeError("parts are not in the order of their classes")

    def __len__(self) -> int:
        """Number of parts: the most classes that a cut can have."""
        return len(self.parts)

    @cached_property
    def owner(self) -> Integer[Tensor, " l"]:
        """Class of the model that each part belongs to."""
        return self.cut(self.classes)

    @cached_property
    def leaves(self) -> list[tuple[int, ...]]:
        """Parts below each node, in order."""
        found: list[tuple[int, ...]] = [(leaf,) for leaf in range(len(self))]
        for one, other in self.merges.tolist():
            found.append(tuple(sorted(found[one] + found[other])))
        return found

    def nodes(self, classes: int) -> list[int]:
        """Nodes of the cut with ``classes`` classes, in the order of their first parts.

        Raises:
            TreeError: the tree has no such cut.
        """
        if not 1 <= classes <= len(self):
            raise TreeError(
                f"the tree has cuts of 1 to {len(self)} classes, none of {classes}; "
                "more classes take a fit of their own"
            )
        done = len(self) - classes
        gone = set(self.merges[:done].flatten().tolist())
        left = [node for node in range(len(self) + done) if node not in gone]
        return sorted(left, key=lambda node: self.leaves[node][0])

    def cut(self, classes: int) -> Integer[Tensor, " l"]:
        """Class 0..classes-1 of each part; at the model's own K these are the model's classes.

        Raises:
            TreeError: the tree has no such cut.
        """
        table = torch.empty(len(self), dtype=torch.long)
        for number, node in enumerate(self.nodes(classes)):
            table[list(self.leaves[node])] = number
        return table

    def names(self) -> list[str]:
        """Name of every node, which no cut changes: ``3`` is class 3 of the model, ``3.1`` and
        ``3.2`` are the two that it splits into, ``3.1.2`` is a part of a part, and ``0+3`` is what
        classes 0 and 3 merge into."""
        first = 2 * len(self) - self.classes
        found = [""] * (len(self) + len(self.merges))
        for node in self.nodes(self.classes):
            found[node] = str(int(self.owner[self.leaves[node][0]]))
        for node in reversed(range(len(self), first)):
            for place, child in enumerate(self.merges[node - len(self)].tolist()):
                found[child] = f"{found[node]}.{place + 1}"
        for node in range(first, len(found)):
            members = sorted({int(self.owner[leaf]) for leaf in self.leaves[node]})
            found[node] = "+".join(map(str, members))
        return found

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors; :meth:`from_tensors` reads it."""
        return {
            "parts": self.parts.half().cpu().contiguous(),
            "masks": self.masks.int().cpu(),
            "merges": self.merges.short().cpu().contiguous(),
            "cost": self.cost.float().cpu(),
            "classes": torch.tensor(self.classes, dtype=torch.int16),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Tree:
        """A tree from what :meth:`tensors` gave.

        Raises:
            TreeError: something is missing or does not fit.
        """
        where = "a tree of classes"
        try:
            parts = need_tensor(tensors, "parts", (None, None), where).half()
            if len(parts) > MOST_PARTS:
                raise InputError(f"{where} has {len(parts)} parts; {MOST_PARTS} are possible")
            masks = need_tensor(tensors, "masks", (len(parts),), where, integers=True).long()
            joins = len(parts) - 1
            merges = need_tensor(tensors, "merges", (joins, 2), where, integers=True).long()
            cost = need_tensor(tensors, "cost", (joins,), where).float()
            classes = int(need_tensor(tensors, "classes", (), where, integers=True))
        except InputError as error:
            raise TreeError(str(error)) from None
        return cls(parts=parts, masks=masks, merges=merges, cost=cost, classes=classes)


def part_map(
    tree: Tree, classes: Integer[Tensor, "H W"], features: Float[Tensor, "c h w"]
) -> Integer[Tensor, "H W"]:
    """The part of every pixel: among the parts of its class the one with the largest cosine.

    Every cut and every edit is a table applied to this map, so it is all that has to be predicted.

    Args:
        classes: of the model, 0..K-1, at image size and refined.
        features: what the prototypes are compared with; only their direction counts.

    Examples:
        >>> tree = Tree(torch.eye(3), torch.tensor([5, 2, 4]), torch.tensor([[0, 1], [3, 2]]),
        ...             torch.tensor([0.1, 0.2]), classes=2)
        >>> features = torch.tensor([[1.0, 0.2], [0.1, 0.9], [2.0, 2.0]]).view(3, 1, 2)
        >>> part_map(tree, torch.tensor([[0, 0]]), features).tolist()
        [[0, 1]]
        >>> part_map(tree, torch.tensor([[1, 0]]), features).tolist()
        [[2, 1]]
    """
    cosines = part_cosines(tree, features)[None]

    def cosine(part: int) -> Tensor:
        return upsample(cosines[:, part : part + 1], classes.shape)[0, 0]

    return best_parts(tree, classes.to(features.device), cosine)


def part_cosines(tree: Tree, features: Float[Tensor, "c h w"]) -> Float[Tensor, "l h w"]:
    """How alike each place is to each part, in [-1, 1]."""
    cosines = F.normalize(features, dim=0).flatten(1).T @ tree.parts.to(features).T
    return cosines.T.unflatten(1, features.shape[1:])


def best_parts(
    tree: Tree, classes: Integer[Tensor, "H W"], cosine: Callable[[int], Float[Tensor, "H W"]]
) -> Integer[Tensor, "H W"]:
    """:func:`part_map` from the cosine of every pixel with a part, asked for one part at a time."""
    owner = tree.owner.tolist()
    winner = torch.zeros(classes.shape, dtype=torch.int16, device=classes.device)
    for number in classes.unique().tolist():
        inside = classes == number
        own = [leaf for leaf, k in enumerate(owner) if k == number]
        winner[inside] = own[0]
        if len(own) == 1:
            continue
        best = torch.full(classes.shape, -2.0, device=classes.device)
        for leaf in own:
            value = cosine(leaf)
            winner[inside & (value > best)] = leaf
            best = torch.maximum(best, value)
    return winner
