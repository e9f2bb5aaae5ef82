"""Summary of the classes of a fitted model: their tree, stability and size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from primaps.classes.class_count import Evidence
from primaps.classes.stability import ClassStability, class_stability
from primaps.classes.tree import SAMPLE, Tree, grow
from primaps.em.kmeans import mask_classes
from primaps.features.training_data import MaskTable, gather_table


@dataclass(frozen=True)
class ClassSummary:
    """Classes of a fitted model.

    Attributes:
        tree: tree of the classes.
        stability: stability and statistics of each class.
        shares: fraction of the area of all masks, for each leaf of the tree.
        curve: evidence for several numbers of classes, if the fit chose the number.
    """

    tree: Tree
    stability: tuple[ClassStability, ...]
    shares: tuple[float, ...]
    curve: tuple[Evidence, ...] = ()


def summarize_classes(
    masks: MaskTable, direction: Float[Tensor, "k c"], scale: Float[Tensor, " k"], seed: int = 0
) -> ClassSummary | None:
    """Summarize the classes of a model from the masks of its collection.

    Args:
        masks: masks of this process. The result is the same in all processes.
        direction, scale: parameters of the prototypes.
        seed: random seed.

    Returns:
        None if there are fewer than two masks per class.
    """
    masks = gather_table(masks, SAMPLE, seed)
    classes = len(direction)
    if len(masks) < 2 * classes:
        return None
    direction = direction.detach()
    assigned = mask_classes(masks.features, direction, scale.detach())
    tree = grow(masks.features, assigned, direction, seed=seed)
    stability = class_stability(
        masks.features, masks.areas, masks.images, assigned, classes, seed=seed
    )
    owner = tree.owner.to(assigned.device)
    cosines = masks.features @ tree.directions.to(masks.features).T
    leaf = cosines.masked_fill(owner != assigned[:, None], -2).argmax(1)
    areas = masks.areas.double()
    shares = torch.zeros(len(tree), dtype=torch.double, device=areas.device)
    shares = shares.index_add_(0, leaf, areas) / areas.sum()
    return ClassSummary(tree, tuple(stability), tuple(shares.tolist()))
