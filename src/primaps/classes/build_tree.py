"""Grow the tree of a fitted model from its mask features: parts by splits, classes by merges."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from primaps.classes.linkage import LINKAGES, merge_order
from primaps.classes.tree import Tree
from primaps.utils.errors import InputError
from primaps.utils.parallel import one_thread
from primaps.utils.seeding import generator

LINKAGE = "ward"
"""See benchmarks/classes.py linkage."""
SAMPLE = 200_000
"""Masks that the tree is grown from; of larger collections a random sample."""
ITERATIONS = 10
"""Of the 2-means of a split."""
LEAST = 8
"""Masks of a part: fewer are chance."""


def leaf_count(classes: int) -> int:
    """Parts that a tree has if there are masks enough: 4 for each class, 64 to 256 in all.

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
    linkage: str = LINKAGE,
    seed: int = 0,
) -> Tree:
    """The tree anchored at the classes of a model.

    Below the classes the part whose split by spherical 2-means lowers Eq. 9 most is split next;
    above them the pair of classes that ``linkage`` finds cheapest merges next. Time is linear in
    the number of masks up to 200,000; of more a random sample is taken.

    Args:
        features: one of length 1 per mask.
        assigned: class of each mask, 0..K-1.
        prototypes: of the model; a class without a mask has its prototype as its only part.
        leaves: number of parts; fewer if there are too few masks.
        linkage: a name in :data:`primaps.classes.linkage.LINKAGES`.
        seed: of the sample.

    Raises:
        InputError: there is no mask, features and classes differ in number, or no such linkage.

    Examples:
        >>> features = F.normalize(torch.eye(4).repeat(10, 1) + 0.1, dim=1)
        >>> tree = grow(features, torch.arange(4).repeat(10) // 2, features[[0, 2]], leaves=4)
        >>> tree.names()[:4], tree.owner.tolist()
        (['0.1', '0.2', '1.1', '1.2'], [0, 0, 1, 1])
    """
    if not len(features) or len(features) != len(assigned):
        raise InputError(
            f"a tree grows from at least one mask; there are {len(features)} mask features and "
            f"{len(assigned)} classes of masks"
        )
    if linkage not in LINKAGES:
        raise InputError(f"linkage is {linkage!r}; it must be one of {', '.join(LINKAGES)}")
    if len(features) > SAMPLE:
        drawn = torch.randperm(len(features), generator=generator("tree", seed))[:SAMPLE]
        drawn = drawn.sort().values.to(features.device)
        features, assigned = features[drawn], assigned[drawn]
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
        # Half of nothing would have no direction: a class without a mask keeps its prototype.
        [features[rows[n]].sum(0) if len(rows[n]) else directions[n] for n in found]
    )
    counts = torch.tensor([len(rows[n]) for n in found])
    above = torch.stack([features[rows[k]].sum(0) for k in range(classes)])
    above = torch.where(above.norm(dim=1, keepdim=True) > 0, above, directions)
    weights = torch.tensor([max(1, len(rows[k])) for k in range(classes)]).to(features)
    first = len(found) + len(merges)
    for pair in merge_order(above.cpu(), weights.cpu(), LINKAGES[linkage])[0].tolist():
        merges.append([number[n] if n < classes else first + n - classes for n in pair])
    return Tree(
        parts=F.normalize(totals, dim=1).half().cpu(),
        masks=counts,
        merges=torch.tensor(merges, dtype=torch.long).view(-1, 2),
        cost=_costs(totals.double().cpu(), merges) / len(features),
        classes=classes,
    )


def _split_all(
    features: Float[Tensor, "m c"], rows: list[Tensor], wanted: int
) -> tuple[dict[int, tuple[int, int]], list[int]]:
    """Split the node with the largest gain until there are ``wanted`` parts.

    Args:
        rows: masks of each class; those of the nodes that come about are appended.

    Returns:
        The halves of each node that was split, and these nodes in the order of their splits.
    """
    halves: dict[int, tuple[int, int]] = {}
    order: list[int] = []
    open_ = {node: _halve(features, own) for node, own in enumerate(rows)}
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
    """Spherical 2-means: what Eq. 9 gains, 0 if a half would be too small, and the second half."""
    none = torch.zeros(len(rows), dtype=torch.bool, device=features.device)
    if len(rows) < 2 * LEAST:
        return 0.0, none
    own = features[rows]
    total = own.sum(0)
    direction = total / len(own) - own[(own @ total).argmin()]
    for _ in range(ITERATIONS):  # power iteration from the mask that is least typical
        score = own @ direction
        direction = F.normalize((score - score.mean()) @ own, dim=0)
    score = own @ direction
    second, last = score > score.mean(), none
    for _ in range(ITERATIONS):
        if bool((second == last).all()) or not 0 < int(second.sum()) < len(own):
            break
        other = own[second].sum(0)
        last, second = (
            second,
            own @ F.normalize(other, dim=0) > own @ F.normalize(total - other, dim=0),
        )
    if min(int(second.sum()), int((~second).sum())) < LEAST:
        return 0.0, none
    if bool(second[0]):  # the half of the first mask comes first, whatever the sign was
        second = ~second
    other = own[second].sum(0)
    return float(other.norm() + (total - other).norm() - total.norm()), second


def _below(node: int, halves: dict[int, tuple[int, int]]) -> list[int]:
    """Leaves below a node, from left to right."""
    if node not in halves:
        return [node]
    return [leaf for half in halves[node] for leaf in _below(half, halves)]


def _costs(totals: Float[Tensor, "l c"], merges: list[list[int]]) -> Float[Tensor, " l1"]:
    """What Eq. 9 loses by each merge, from the sums of the parts."""
    sums, costs = list(totals), []
    for one, other in merges:
        sums.append(sums[one] + sums[other])
        costs.append(float(sums[one].norm() + sums[other].norm() - sums[-1].norm()))
    return torch.tensor(costs)
