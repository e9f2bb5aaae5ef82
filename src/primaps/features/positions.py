"""Single positions of the training images, drawn once: what k-means starts look at.

A step that takes a few positions of each of many feature maps reads all of these maps from memory,
since a map lies channel by channel. Here the channels of a position lie together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float16, Integer
from torch import Tensor

from primaps.features.views import Views
from primaps.utils.parallel import lanes, overlapped
from primaps.utils.seeding import generator

KEPT = 1 << 18
"""Positions of all images together: 200 MB with 384 channels."""


@dataclass(frozen=True)
class Positions:
    """Features of positions of the images that this process has.

    Attributes:
        directions: of length 1, P of each image.
        place: which of them each image of the collection is, -1 if another process has it.
    """

    directions: Float16[Tensor, "n p c"]
    place: Integer[Tensor, " all"]

    def __len__(self) -> int:
        """Images of all processes."""
        return len(self.place)

    @property
    def device(self) -> torch.device:
        """Where features are."""
        return self.directions.device

    def here(
        self, index: Integer[Tensor, " b"]
    ) -> tuple[Integer[Tensor, " h"], Bool[Tensor, " b"]]:
        """As :meth:`primaps.features.views.Views.here`."""
        rows = self.place[index]
        return rows[rows >= 0], rows >= 0

    def features(
        self, rows: Integer[Tensor, " b"], cells: Integer[Tensor, " s"]
    ) -> Float[Tensor, "1 c 1 bs"]:
        """These positions of these images, as one map of one row."""
        where = rows[:, None] * self.directions.shape[1] + cells
        found = self.directions.flatten(0, 1).index_select(0, where.flatten().to(self.device))
        return found.float().T[None, :, None]


def draw_positions(views: Views, least: int, seed: int) -> Positions:
    """Draw positions of images and of their flipped images, without repetition: :data:`KEPT` of all
    images together, as many of each.

    Args:
        least: of each image, however many images there are.
    """
    height, width = views.clean.shape[-2:]
    each = min(max(least, KEPT // len(views)), 2 * height * width)
    place = torch.arange(len(views)) if views.place is None else views.place.clone()
    numbers = (place >= 0).nonzero()[:, 0]
    place[numbers] = torch.arange(len(numbers))

    def maps() -> Iterator[list[tuple[int, Tensor]]]:
        for some, both in zip(numbers.split(64), views.chunks(64), strict=True):
            codes = both
            if views.projection:
                codes = views.project(both.flatten(0, 1)).unflatten(0, (-1, 2))
            yield from ([pair] for pair in zip(some.tolist(), codes, strict=True))

    def draw(one: list[tuple[int, Tensor]]) -> Float16[Tensor, "p c"]:
        ((number, both),) = one
        random = generator("positions", seed, number)
        cells = torch.randperm(2 * height * width, generator=random)[:each]
        found = both.transpose(0, 1).flatten(1).index_select(1, cells.to(both.device)).T
        return F.normalize(found.to(views.device).float(), dim=1).half()

    with lanes(views.device) as threads:
        drawn = list(overlapped(maps(), draw, threads))
    none = torch.empty(0, each, 0, dtype=torch.float16)
    return Positions(torch.stack(drawn) if drawn else none, place)
