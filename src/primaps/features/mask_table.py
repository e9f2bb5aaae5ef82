"""The masks of a collection as a table: of each a direction, an area and its image.

The recipe "orthogonal" is fitted to it; trees, stability and trust of classes are told from it. It
is a hundredth of the features that it is made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import chain

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from primaps.features.feature_cache import Rows
from primaps.features.views import Views
from primaps.utils.distributed import gather, processes, rank
from primaps.utils.parallel import lanes, overlapped
from primaps.utils.seeding import generator


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

    def to(self, device: torch.device) -> MaskTable:
        """The same on another device."""
        return MaskTable(*(getattr(self, field.name).to(device) for field in fields(self)))


BESIDE = 2
"""Columns of a row of a mask beside its feature: its area and its number."""


def mask_rows(
    features: Float[Tensor, "c h w"], masks: Integer[Tensor, "H W"]
) -> Float[Tensor, "z c+2"]:
    """The masks of an image: of each the direction of the sum of its features, its area in pixels,
    and its number.

    Positions count by the share of their pixels that lies in the mask.

    Args:
        features: of the image, averaged with those of its flipped image.
        masks: its proposals at image size, 0 = ignore.

    Examples:
        >>> masks = torch.tensor([[0, 3], [0, 3]])
        >>> mask_rows(torch.tensor([[[2.0, 4.0]], [[0.0, 3.0]]]), masks).tolist()
        [[0.800000011920929, 0.6000000238418579, 2.0, 3.0]]
    """
    present = torch.bincount(masks.flatten().long()).nonzero()[:, 0]
    present = present[present > 0]
    inside = (masks == present.view(-1, 1, 1)).float()
    share = F.adaptive_avg_pool2d(inside, (features.shape[1], features.shape[2]))
    directions = F.normalize(share.flatten(1) @ features.flatten(1).T, dim=1)
    return torch.cat([directions, inside.sum((1, 2))[:, None], present[:, None]], 1)


def table_of(rows: Iterable[Float[Tensor, "_ columns"]], counts: Sequence[int]) -> MaskTable:
    """The table of :func:`mask_rows` of the images of this process, one after the other.

    Args:
        counts: masks of each image: of a million images there is room for one table and no more.
    """
    rows = iter(rows)
    first = next(rows)
    table = first.new_empty(sum(counts), first.shape[1])
    for part, one in zip(table.split(list(counts)), chain([first], rows), strict=True):
        part.copy_(one)
    images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(table.device)
    return MaskTable(table[:, :-BESIDE], table[:, -2].clone(), images, table[:, -1].long())


def mask_table(views: Views, masks: Rows) -> MaskTable:
    """Collect the masks of the images of this process.

    Args:
        masks: proposals (H, W) of each image at image size, 0 = ignore.
    """

    def rows(image: list[int]) -> Tensor:
        with threads.turn:
            own = views.flip_average(image[0])
            return mask_rows(own, masks.take(torch.tensor(image))[0].to(own.device))

    # On the threads that masks alone are kept from, since the last bits depend on their number.
    with lanes(views.device) as threads:
        found = list(overlapped(([image] for image in range(len(views.clean))), rows, threads))
    return table_of(found, [len(one) for one in found])


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
