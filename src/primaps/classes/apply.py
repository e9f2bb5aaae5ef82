"""From a model's class map to the classes that a person asked for, by a table."""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from primaps.classes.legend import HIDDEN, Legend
from primaps.classes.tree import Tree, part_map


def needs_parts(tree: Tree, legend: Legend) -> bool:
    """Whether a class of the model is divided, so that parts of pixels have to be found."""
    table = legend.table()
    return any(len(table[tree.owner == k].unique()) > 1 for k in range(tree.classes))


def final_map(
    tree: Tree,
    legend: Legend,
    classes: Integer[Tensor, "H W"],
    features: Float[Tensor, "c h w"],
) -> Integer[Tensor, "H W"]:
    """Label map after a cut or edits: values of ``legend``, 255 for hidden classes.

    Args:
        classes: of the model, refined, at the size wanted.
        features: what the prototypes are compared with, at any size.

    Examples:
        >>> from primaps.classes.edits import legend
        >>> tree = Tree(torch.eye(3), torch.tensor([5, 2, 4]), torch.tensor([[0, 1], [3, 2]]),
        ...             torch.tensor([0.1, 0.2]), classes=2)
        >>> given = torch.tensor([[0, 1]]), torch.ones(3, 1, 1)
        >>> final_map(tree, legend(tree, [{"hide": "1"}]), *given).tolist()
        [[0, 255]]
    """
    if not needs_parts(tree, legend):
        return legend_values(tree, legend, classes)
    return legend.table().to(features.device)[part_map(tree, classes, features).long()]


def legend_values(
    tree: Tree, legend: Legend, classes: Integer[Tensor, "*shape"]
) -> Integer[Tensor, "*shape"]:
    """:func:`final_map` where no class is divided."""
    first = torch.tensor([int((tree.owner == k).nonzero()[0]) for k in range(tree.classes)])
    return legend.table()[first].to(classes.device)[classes.long()]


def hidden_last(
    labels: Integer[Tensor, "*shape"], legend: Legend | None
) -> Integer[Tensor, "*shape"]:
    """Hidden pixels as a class of their own behind the shown ones: to count or to color them.

    Examples:
        >>> from primaps.classes.legend import Class
        >>> sky, car = Class("0", "sky", (0, 0, 0), (0,)), Class("1", "car", (0, 0, 0), (1,), True)
        >>> hidden_last(torch.tensor([0, 255]), Legend((sky, car), 2)).tolist()
        [0, 1]
    """
    if legend is None or not legend.hides:
        return labels
    return labels.where(labels != HIDDEN, len(legend.shown))
