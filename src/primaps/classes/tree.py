"""The tree of classes of a model: its structure, and how it is built from the masks of the fit.

Nodes 0..L-1 are the leaves; merge i joins two nodes to node L+i. The first L-K merges join leaves
of one class and the last K-1 merges join classes. Undoing the last K-1 merges therefore gives the
K classes of the model in their order. Every other number of classes from 1 to L is a cut of the
same tree, so all cuts are nested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from primaps.utils.bilinear import upsample
from primaps.utils.errors import InputError, PrimapsError
from primaps.utils.inputs import need_tensor
from primaps.utils.parallel import one_thread
from primaps.utils.seeding import generator

MAX_LEAVES = 4096
"""Maximum number of leaves of a tree that is read; :func:`grow` builds up to 256."""
SAMPLE = 200_000
"""Maximum number of masks that a tree is built from; larger collections are sampled."""
ITERATIONS = 10
"""Iterations of the 2-means of a split."""
MIN_MASKS = 8
"""Minimum number of masks of a leaf that results from a split."""


class TreeError(PrimapsError, ValueError):
    """A tree is not valid, or does not have a cut; the message says why."""


@dataclass(frozen=True)
class Tree:
    """Classes, their leaves, and the order in which they merge.

    Attributes:
        directions: direction (length 1, half precision) of each leaf. Leaves of a class are
            adjacent, and classes have the order of the model.
        masks: number of masks of each leaf.
        merges: the two nodes that each merge joins, the one with the smaller first leaf first.
        cost: loss of Eq. 9 by each merge, per mask of the collection.
        classes: K, the number of classes of the model.

    Raises:
        TreeError: Shapes do not match, or merges are not those of a tree with ``classes`` classes.

    Examples:
        >>> tree = Tree(torch.eye(3), torch.tensor([5, 2, 4]), torch.tensor([[0, 1], [3, 2]]),
        ...             torch.tensor([0.1, 0.2]), classes=2)
        >>> tree.cut(2).tolist(), tree.cut(3).tolist(), tree.cut(1).tolist()
        ([0, 0, 1], [0, 1, 2], [0, 0, 0])
        >>> tree.names()
        ['0.1', '0.2', '1', '0', '0+1']
    """

    directions: Float[Tensor, "l c"]
    masks: Integer[Tensor, " l"]
    merges: Integer[Tensor, "l1 2"]
    cost: Float[Tensor, " l1"]
    classes: int

    def __post_init__(self) -> None:
        leaves = len(self.directions)
        if not (len(self.masks) == leaves and len(self.merges) == len(self.cost) == leaves - 1):
            raise TreeError(
                f"a tree of {leaves} leaves needs {leaves - 1} merges and costs and {leaves} mask "
                f"counts, got {len(self.merges)}, {len(self.cost)} and {len(self.masks)}"
            )
        if not 1 <= self.classes <= leaves:
            raise TreeError(f"{self.classes} classes cannot have {leaves} leaves")
        free = set(range(leaves))
        for number, pair in enumerate(self.merges.tolist()):
            if pair[0] == pair[1] or not set(pair) <= free:
                raise TreeError(
                    f"merge {number} joins nodes {pair}; they must be distinct and not yet merged"
                )
            free = (free - set(pair)) | {leaves + number}
        if (self.owner.diff() < 0).any():
            raise TreeError("leaves are not in the order of their classes")

    def __len__(self) -> int:
        """Return the number of leaves, which is the maximum number of classes of a cut."""
        return len(self.directions)

    @cached_property
    def owner(self) -> Integer[Tensor, " l"]:
        """Class of the model of each leaf."""
        return self.cut(self.classes)

    @cached_property
    def node_leaves(self) -> list[tuple[int, ...]]:
        """Leaves below each node, in ascending order."""
        found: list[tuple[int, ...]] = [(leaf,) for leaf in range(len(self))]
        for one, other in self.merges.tolist():
            found.append(tuple(sorted(found[one] + found[other])))
        return found

    def nodes(self, classes: int) -> list[int]:
        """Return the nodes of the cut with ``classes`` classes, ordered by their first leaves.

        Raises:
            TreeError: The tree does not have this cut.
        """
        if not 1 <= classes <= len(self):
            raise TreeError(
                f"the tree can be cut at 1 to {len(self)} classes, got {classes}; fit again for "
                "more classes"
            )
        done = len(self) - classes
        merged = set(self.merges[:done].flatten().tolist())
        left = [node for node in range(len(self) + done) if node not in merged]
        return sorted(left, key=lambda node: self.node_leaves[node][0])

    def cut(self, classes: int) -> Integer[Tensor, " l"]:
        """Return the class 0..classes-1 of each leaf; with K classes, those of the model.

        Raises:
            TreeError: The tree does not have this cut.
        """
        table = torch.empty(len(self), dtype=torch.long)
        for number, node in enumerate(self.nodes(classes)):
            table[list(self.node_leaves[node])] = number
        return table

    def names(self) -> list[str]:
        """Return the name of every node, which is the same in all cuts.

        ``3`` is class 3 of the model, ``3.1`` and ``3.2`` are its halves, ``3.1.2`` is the second
        half of ``3.1``, and ``0+3`` is the merge of classes 0 and 3.
        """
        first = 2 * len(self) - self.classes
        found = [""] * (len(self) + len(self.merges))
        for node in self.nodes(self.classes):
            found[node] = str(int(self.owner[self.node_leaves[node][0]]))
        for node in reversed(range(len(self), first)):
            for place, child in enumerate(self.merges[node - len(self)].tolist()):
                found[child] = f"{found[node]}.{place + 1}"
        for node in range(first, len(found)):
            members = sorted({int(self.owner[leaf]) for leaf in self.node_leaves[node]})
            found[node] = "+".join(map(str, members))
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Return the tree as tensors, for safetensors."""
        return {
            "directions": self.directions.half().cpu().contiguous(),
            "masks": self.masks.int().cpu(),
            "merges": self.merges.short().cpu().contiguous(),
            "cost": self.cost.float().cpu(),
            "classes": torch.tensor(self.classes, dtype=torch.int16),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Tree:
        """Build the tree from the output of :meth:`tensors`.

        Raises:
            TreeError: A tensor is missing or has another shape.
        """
        where = "a tree of classes"
        try:
            directions = need_tensor(tensors, "directions", (None, None), where).half()
            if len(directions) > MAX_LEAVES:
                raise InputError(f"{where} has {len(directions)} leaves; at most {MAX_LEAVES}")
            masks = need_tensor(tensors, "masks", (len(directions),), where, integers=True).long()
            joins = len(directions) - 1
            merges = need_tensor(tensors, "merges", (joins, 2), where, integers=True).long()
            cost = need_tensor(tensors, "cost", (joins,), where).float()
            classes = int(need_tensor(tensors, "classes", (), where, integers=True))
        except InputError as error:
            raise TreeError(str(error)) from None
        return cls(directions, masks, merges, cost, classes)


def leaf_map(
    tree: Tree, classes: Integer[Tensor, "H W"], features: Float[Tensor, "c h w"]
) -> Integer[Tensor, "H W"]:
    """Return the leaf of every pixel: the most similar one among the leaves of its class.

    Every cut and every edit is a table that is applied to this map.

    Args:
        classes: classes 0..K-1 of the model, refined, at image size.
        features: features that the prototypes are compared with; only their direction counts.

    Examples:
        >>> tree = Tree(torch.eye(3), torch.tensor([5, 2, 4]), torch.tensor([[0, 1], [3, 2]]),
        ...             torch.tensor([0.1, 0.2]), classes=2)
        >>> features = torch.tensor([[1.0, 0.2], [0.1, 0.9], [2.0, 2.0]]).view(3, 1, 2)
        >>> leaf_map(tree, torch.tensor([[0, 0]]), features).tolist()
        [[0, 1]]
        >>> leaf_map(tree, torch.tensor([[1, 0]]), features).tolist()
        [[2, 1]]
    """
    cosines = leaf_cosines(tree, features)[None]

    def cosine(leaf: int) -> Tensor:
        return upsample(cosines[:, leaf : leaf + 1], classes.shape)[0, 0]

    return best_leaves(tree, classes.to(features.device), cosine)


def leaf_cosines(tree: Tree, features: Float[Tensor, "c h w"]) -> Float[Tensor, "l h w"]:
    """Return the cosine similarity of each feature with each leaf."""
    cosines = F.normalize(features, dim=0).flatten(1).T @ tree.directions.to(features).T
    return cosines.T.unflatten(1, features.shape[1:])


def best_leaves(
    tree: Tree, classes: Integer[Tensor, "H W"], cosine: Callable[[int], Float[Tensor, "H W"]]
) -> Integer[Tensor, "H W"]:
    """Return :func:`leaf_map` from a function that gives the cosines of all pixels with a leaf."""
    owner = tree.owner.tolist()
    winner = torch.zeros(classes.shape, dtype=torch.int16, device=classes.device)
    for number in classes.unique().tolist():
        inside = classes == number
        candidates = [leaf for leaf, k in enumerate(owner) if k == number]
        winner[inside] = candidates[0]
        if len(candidates) == 1:
            continue
        best = torch.full(classes.shape, -2.0, device=classes.device)
        for leaf in candidates:
            value = cosine(leaf)
            winner[inside & (value > best)] = leaf
            best = torch.maximum(best, value)
    return winner


def leaf_count(classes: int) -> int:
    """Return the number of leaves if masks suffice: 4 per class, limited to 64 to 256 in total.

    Examples:
        >>> leaf_count(3), leaf_count(27), leaf_count(100)
        (64, 108, 256)
    """
    return max(classes, min(256, max(64, 4 * classes)))


@one_thread()
def grow(
    features: Float[Tensor, "m c"],
    assigned: Integer[Tensor, " m"],
    prototypes: Float[Tensor, "k c"],
    *,
    leaves: int | None = None,
    seed: int = 0,
) -> Tree:
    """Build the tree of the classes of a model.

    Below the classes, the leaf whose split by spherical 2-means gains most of Eq. 9 is split next.
    Above the classes, the pair with the smallest cost of Ward's method merges next. The time is
    linear in the number of masks up to 200,000, and constant above.

    Args:
        features: feature of each mask, of length 1.
        assigned: class of each mask, 0..K-1.
        prototypes: prototypes of the model. A class without a mask has its prototype as its leaf.
        leaves: number of leaves; None is :func:`leaf_count`. Few masks give fewer leaves.
        seed: random seed of the sample.

    Raises:
        InputError: There is no mask, or features and classes differ in number.

    Examples:
        >>> features = F.normalize(torch.eye(4).repeat(10, 1) + 0.1, dim=1)
        >>> tree = grow(features, torch.arange(4).repeat(10) // 2, features[[0, 2]], leaves=4)
        >>> tree.names()[:4], tree.owner.tolist()
        (['0.1', '0.2', '1.1', '1.2'], [0, 0, 1, 1])
    """
    if not len(features) or len(features) != len(assigned):
        raise InputError(
            "a tree needs at least one mask, and one class per mask; got "
            f"{len(features)} mask features and {len(assigned)} classes"
        )
    if len(features) > SAMPLE:
        sampled = torch.randperm(len(features), generator=generator("tree", seed))[:SAMPLE]
        sampled = sampled.sort().values.to(features.device)
        features, assigned = features[sampled], assigned[sampled]
    classes = len(prototypes)
    wanted = max(classes, leaves or leaf_count(classes))
    directions = F.normalize(prototypes.to(features), dim=1)
    rows = [(assigned == k).nonzero()[:, 0] for k in range(classes)]
    halves, order = _split_all(features, rows, wanted)

    found = [leaf for k in range(classes) for leaf in _below(k, halves)]
    number = {leaf: place for place, leaf in enumerate(found)}
    merges = []
    for node in reversed(order):
        merges.append([number[half] for half in halves[node]])
        number[node] = len(found) + len(merges) - 1
    totals = torch.stack(
        # The sum of no features has no direction: a class without a mask keeps its prototype.
        [features[rows[n]].sum(0) if len(rows[n]) else directions[n] for n in found]
    )
    counts = torch.tensor([len(rows[n]) for n in found])
    above = torch.stack([features[rows[k]].sum(0) for k in range(classes)])
    above = torch.where(above.norm(dim=1, keepdim=True) > 0, above, directions)
    weights = torch.tensor([max(1, len(rows[k])) for k in range(classes)]).to(features)
    first = len(found) + len(merges)
    for pair in merge_order(above.cpu(), weights.cpu()).tolist():
        merges.append([number[n] if n < classes else first + n - classes for n in pair])
    return Tree(
        directions=F.normalize(totals, dim=1).half().cpu(),
        masks=counts,
        merges=torch.tensor(merges, dtype=torch.long).view(-1, 2),
        cost=_costs(totals.double().cpu(), merges) / len(features),
        classes=classes,
    )


def merge_order(
    totals: Float[Tensor, "k c"], weights: Float[Tensor, " k"]
) -> Integer[Tensor, "k1 2"]:
    """Merge the pair of groups with the smallest cost of Ward's method until one group is left.

    Args:
        totals: sum of the features of each group.
        weights: number of features of each group, positive.

    Returns:
        The groups joined by each merge; group k+i is the result of merge i.

    Examples:
        >>> totals = torch.tensor([[4.0, 0.0], [0.0, 4.0], [2.9, 0.7]])
        >>> merge_order(totals, torch.tensor([4.0, 4.0, 3.0])).tolist()
        [[0, 2], [3, 1]]
    """
    count = len(totals)
    totals, weights = totals.double().clone(), weights.double().clone()
    cost = torch.full((count, count), torch.inf, dtype=torch.double)
    number = list(range(count))  # node number of each row
    for row in range(count - 1):
        cost[row, row + 1 :] = ward(
            totals[row], weights[row], totals[row + 1 :], weights[row + 1 :]
        )
    cost = torch.minimum(cost, cost.T)
    merges = []
    for step in range(count - 1):
        row, column = divmod(int(cost.argmin()), count)  # first of two equal minima: row < column
        merges.append([number[row], number[column]])
        totals[row] += totals[column]
        weights[row] += weights[column]
        number[row] = count + step
        alive = cost[row].isfinite()
        alive[column] = False
        cost[column, :] = cost[:, column] = torch.inf
        fresh = ward(totals[row], weights[row], totals, weights)
        cost[row, :] = cost[:, row] = torch.where(alive, fresh, torch.inf)
    return torch.tensor(merges).view(-1, 2)


def ward(
    total: Float[Tensor, " c"],
    weight: Float[Tensor, ""],
    totals: Float[Tensor, "g c"],
    weights: Float[Tensor, " g"],
) -> Float[Tensor, " g"]:
    """Return the increase of the sum of squared distances to the mean by merging two groups.

    Args:
        total, weight: sum and number of the features of one group.
        totals, weights: the same for every other group.
    """
    mean, means = total / weight, totals / weights[:, None]
    return weight * weights / (weight + weights) * (mean - means).square().sum(1)


def flat_tree(means: Float[Tensor, "k c"], counts: Integer[Tensor, " k"]) -> Tree:
    """Return the tree of classes that are leaves: taught classes, which are not divided.

    Args:
        means: mean feature of each class, of length 1.
        counts: number of masks or tokens of each class.

    Examples:
        >>> flat_tree(F.normalize(torch.tensor([[1.0, 0], [0, 1.0], [0.9, 0.1]]), dim=1),
        ...           torch.tensor([5, 4, 3])).merges.tolist()
        [[0, 2], [3, 1]]
    """
    weights = counts.clamp_min(1).double()
    totals = means.double() * weights[:, None]
    classes = len(means)
    first = list(range(classes))  # first leaf of each node
    merges = []
    for pair in merge_order(totals.float(), weights.float()).tolist():
        merges.append(sorted(pair, key=first.__getitem__))
        first.append(min(first[node] for node in pair))
    cost = _costs(totals, merges) / float(weights.sum())
    joined = torch.tensor(merges, dtype=torch.long).view(-1, 2)
    return Tree(means.half().cpu(), counts.long().cpu(), joined, cost, classes)


def _split_all(
    features: Float[Tensor, "m c"], rows: list[Tensor], wanted: int
) -> tuple[dict[int, tuple[int, int]], list[int]]:
    """Split the node with the largest gain until there are ``wanted`` leaves.

    Args:
        rows: masks of each class; those of new nodes are appended.

    Returns:
        The halves of each node that was split, and these nodes in the order of the splits.
    """
    halves: dict[int, tuple[int, int]] = {}
    order: list[int] = []
    open_ = {node: _halve(features, masks) for node, masks in enumerate(rows)}
    for _ in range(wanted - len(rows)):
        node = max(open_, key=lambda n: open_[n][0])
        gain, second = open_.pop(node)
        if gain <= 0:
            break
        halves[node] = (len(rows), len(rows) + 1)
        order.append(node)
        for half in (~second, second):
            rows.append(rows[node][half])
            open_[len(rows) - 1] = _halve(features, rows[-1])
    return halves, order


def _halve(
    features: Float[Tensor, "m c"], rows: Integer[Tensor, " n"]
) -> tuple[float, Bool[Tensor, " n"]]:
    """Split masks by spherical 2-means.

    Returns:
        The gain of Eq. 9, or 0 if a half is too small; and a mask of the second half.
    """
    none = torch.zeros(len(rows), dtype=torch.bool, device=features.device)
    if len(rows) < 2 * MIN_MASKS:
        return 0.0, none
    members = features[rows]
    total = members.sum(0)
    direction = total / len(members) - members[(members @ total).argmin()]
    for _ in range(ITERATIONS):  # power iteration from the least typical mask
        score = members @ direction
        direction = F.normalize((score - score.mean()) @ members, dim=0)
    score = members @ direction
    second, last = score > score.mean(), none
    for _ in range(ITERATIONS):
        if bool((second == last).all()) or not 0 < int(second.sum()) < len(members):
            break
        other = members[second].sum(0)
        last, second = (
            second,
            members @ F.normalize(other, dim=0) > members @ F.normalize(total - other, dim=0),
        )
    if min(int(second.sum()), int((~second).sum())) < MIN_MASKS:
        return 0.0, none
    if bool(second[0]):  # the sign is arbitrary: the half of the first mask comes first
        second = ~second
    other = members[second].sum(0)
    return float(other.norm() + (total - other).norm() - total.norm()), second


def _below(node: int, halves: dict[int, tuple[int, int]]) -> list[int]:
    """Return the leaves below a node, from left to right."""
    if node not in halves:
        return [node]
    return [leaf for half in halves[node] for leaf in _below(half, halves)]


def _costs(totals: Float[Tensor, "l c"], merges: list[list[int]]) -> Float[Tensor, " l1"]:
    """Return the loss of Eq. 9 by each merge, from the sums of the features of the leaves."""
    sums, costs = list(totals), []
    for one, other in merges:
        sums.append(sums[one] + sums[other])
        costs.append(float(sums[one].norm() + sums[other].norm() - sums[-1].norm()))
    return torch.tensor(costs)
