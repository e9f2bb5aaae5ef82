"""Which two classes merge next: costs of a merge from sums over masks, and the greedy order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Integer
from torch import Tensor

Linkage = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Sum (c,) and weight () of one group, sums (g, c) and weights (g,) of others, to costs (g,)."""


def sphere(
    total: Float[Tensor, " c"],
    weight: Float[Tensor, ""],
    totals: Float[Tensor, "g c"],
    weights: Float[Tensor, " g"],
) -> Float[Tensor, " g"]:
    """What Eq. 9 loses: lengths of the two sums less the length of their sum."""
    return total.norm() + totals.norm(dim=1) - (total + totals).norm(dim=1)


def ward(
    total: Float[Tensor, " c"],
    weight: Float[Tensor, ""],
    totals: Float[Tensor, "g c"],
    weights: Float[Tensor, " g"],
) -> Float[Tensor, " g"]:
    """Rise of the sum of squared distances to the mean."""
    mean, means = total / weight, totals / weights[:, None]
    return weight * weights / (weight + weights) * (mean - means).square().sum(1)


def average(
    total: Float[Tensor, " c"],
    weight: Float[Tensor, ""],
    totals: Float[Tensor, "g c"],
    weights: Float[Tensor, " g"],
) -> Float[Tensor, " g"]:
    """1 - the mean cosine between a mask of the one and a mask of the other."""
    return 1 - (totals @ total) / (weight * weights)


def center(
    total: Float[Tensor, " c"],
    weight: Float[Tensor, ""],
    totals: Float[Tensor, "g c"],
    weights: Float[Tensor, " g"],
) -> Float[Tensor, " g"]:
    """1 - the cosine of the two sums: size does not count."""
    return 1 - (totals @ total) / (total.norm() * totals.norm(dim=1))


LINKAGES: dict[str, Linkage] = {
    "sphere": sphere,
    "ward": ward,
    "average": average,
    "center": center,
}


def merge_order(
    totals: Float[Tensor, "k c"], weights: Float[Tensor, " k"], linkage: Linkage
) -> tuple[Integer[Tensor, "k1 2"], Float[Tensor, " k1"]]:
    """Merge the cheapest pair of groups until one is left.

    Args:
        totals: sum of the features of each group.
        weights: how many they are; all positive.

    Returns:
        The groups joined by each merge, group k+i being the result of merge i; and its cost.

    Examples:
        >>> totals = torch.tensor([[4.0, 0.0], [0.0, 4.0], [2.9, 0.7]])
        >>> merge_order(totals, torch.tensor([4.0, 4.0, 3.0]), average)[0].tolist()
        [[0, 2], [3, 1]]
    """
    count = len(totals)
    totals, weights = totals.double().clone(), weights.double().clone()
    cost = torch.full((count, count), torch.inf, dtype=torch.double)
    number = list(range(count))  # of the group in each row
    for row in range(count - 1):
        cost[row, row + 1 :] = linkage(
            totals[row], weights[row], totals[row + 1 :], weights[row + 1 :]
        )
    cost = torch.minimum(cost, cost.T)
    merges, costs = [], []
    for step in range(count - 1):
        row, column = divmod(int(cost.argmin()), count)  # the smaller row first
        merges.append([number[row], number[column]])
        costs.append(float(cost[row, column]))
        totals[row] += totals[column]
        weights[row] += weights[column]
        number[row] = count + step
        alive = cost[row].isfinite()
        alive[column] = False
        cost[column, :] = cost[:, column] = torch.inf
        fresh = linkage(totals[row], weights[row], totals, weights)
        cost[row, :] = cost[:, row] = torch.where(alive, fresh, torch.inf)
    return torch.tensor(merges).view(-1, 2), torch.tensor(costs)
