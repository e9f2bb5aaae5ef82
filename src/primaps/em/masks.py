"""The masks of a collection as a table: of each a direction, an area and its image.

The recipe "orthogonal" is fitted to it; trees, stability and trust of classes are told from it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from primaps.features.store import Rows
from primaps.features.views import Views
from primaps.support.distributed import gather, processes, rank
from primaps.support.seeding import generator


@dataclass(frozen=True)
class MaskTable:
    """All masks of a collection.

    Attributes:
        features: direction of the sum of features over the pixels of each mask, of length 1.
        areas: pixels of each mask.
        images: number of the image that each mask is of.
        numbers: which mask of its image it is, 1..Z.
    """

    features: Float[Tensor, "m c"]
    areas: Float[Tensor, " m"]
    images: Integer[Tensor, " m"]
    numbers: Integer[Tensor, " m"]

    def __len__(self) -> int:
        return len(self.features)


def mask_table(views: Views, masks: Rows) -> MaskTable:
    """Collect the masks of the images of this process.

    Features are averaged over image and mirror image. Positions count by the share of their pixels
    that lies in the mask.

    Args:
        masks: proposals (H, W) of each image at image size, 0 = ignore.
    """
    features, areas, images, numbers = [], [], [], []
    for row in range(len(views.clean)):
        own = views.mirrored_mean(row)
        mask = masks.take(torch.tensor([row]))[0].to(own.device)
        present = torch.bincount(mask.flatten().long()).nonzero()[:, 0]
        present = present[present > 0]
        inside = (mask == present.view(-1, 1, 1)).float()
        share = F.adaptive_avg_pool2d(inside, (own.shape[1], own.shape[2]))
        features.append(F.normalize(share.flatten(1) @ own.flatten(1).T, dim=1))
        areas.append(inside.sum((1, 2)))
        images.append(torch.full_like(present, row))
        numbers.append(present)
    return MaskTable(
        torch.cat(features),
        torch.cat(areas),
        torch.cat(images),
        torch.cat(numbers),
    )


def mask_classes(
    features: Float[Tensor, "m c"], direction: Float[Tensor, "k c"], scale: Float[Tensor, " k"]
) -> Integer[Tensor, " m"]:
    """The class that a model gives each mask: the largest scaled cosine.

    Examples:
        >>> mask_classes(torch.tensor([[0.6, 0.8]]), torch.eye(2), torch.tensor([2.0, 1.0]))
        tensor([0])
    """
    weight = scale[:, None] * F.normalize(direction, dim=1)
    return (features @ weight.to(features).T).argmax(1)


def gathered(table: MaskTable, most: int, seed: int = 0) -> MaskTable:
    """Masks of all processes, the same in each; at most ``most``, each drawn at random.

    Images keep their masks together, but get new numbers.
    """
    share = -(-most // processes())
    if len(table) > share:
        random = generator("masks", seed, rank())
        drawn = torch.randperm(len(table), generator=random)[:share].sort().values
        drawn = drawn.to(table.features.device)
        table = MaskTable(*(getattr(table, field.name)[drawn] for field in fields(table)))
    if processes() == 1:
        return table
    parts = gather([getattr(table, field.name).cpu() for field in fields(table)])
    first = 0
    for part in parts:
        part[2] = part[2] + first
        first = int(part[2].max()) + 1 if len(part[2]) else first
    device = table.features.device
    return MaskTable(*(torch.cat(column).to(device) for column in zip(*parts, strict=True)))
