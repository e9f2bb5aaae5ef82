"""Where the feature maps of a training batch come from: cached, or computed anew in every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor

from primaps.backbones.backbone import mean_of_both
from primaps.features.feature_cache import Rows
from primaps.utils.seeding import generator

AugmentAnew = Callable[[Tensor, Tensor, int], Tensor]
"""Rows of images, which of them to flip, and the step, to features of augmented images."""
Coding = Callable[[Tensor], Tensor]
"""Features of a batch to codes that prototypes are fitted to."""


@dataclass(frozen=True)
class Batch:
    """What one step of EM sees.

    Attributes:
        clean: features of the images, for the momentum prototypes.
        seen: features of the augmented images, for the student.
        flip: which images are flipped, in both.
        rows: where the images are among those of this process.
    """

    clean: Float[Tensor, "b c h w"]
    seen: Float[Tensor, "b c h w"]
    flip: Bool[Tensor, " b"]
    rows: Integer[Tensor, " b"]


@dataclass(frozen=True)
class Views:
    """Feature maps of the training images that this process has.

    Attributes:
        clean: (2, C, h, w) of each image; [0] of itself and [1] of its flipped image.
        place: row of each image of the collection, or of a sample of it, -1 if another process
            has it; None if they are all here.
        augmented: features (C, h, w) of each image, photometrically augmented, one entry per view.
        flipped: which of the augmented images were flipped.
        fresh: computes augmented features in every step; instead of ``augmented``.
        projection: features to the codes that prototypes are fitted to; None fits them to features.
        device: where batches go.
    """

    clean: Rows
    place: Integer[Tensor, " n"] | None = None
    augmented: tuple[Rows, ...] = ()
    flipped: Bool[Tensor, "v m"] | None = None
    fresh: AugmentAnew | None = None
    projection: Coding | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        """Images of all processes."""
        return len(self.clean) if self.place is None else len(self.place)

    def chunks(self, size: int = 64) -> Iterator[Shaped[Tensor, "_ 2 c h w"]]:
        """Stored features of the images of this process, in order, ``size`` at a time."""
        place = torch.arange(len(self.clean)) if self.place is None else self.place
        for rows in place[place >= 0].split(size):
            yield self.clean.take(rows)

    def here(
        self, index: Integer[Tensor, " b"]
    ) -> tuple[Integer[Tensor, " h"], Bool[Tensor, " b"]]:
        """Rows of those images of a batch that this process has, and which these are."""
        rows = index if self.place is None else self.place[index]
        return rows[rows >= 0], rows >= 0

    def features(
        self, rows: Integer[Tensor, " b"], flip: Bool[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Clean features of images or, where ``flip``, of their flipped images."""
        return self.project(self.clean.take(rows, flip.long()))

    def project(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Stored features to what prototypes are fitted to."""
        features = features.to(self.device).float()
        return self.projection(features) if self.projection else features

    def flip_average(self, row: int) -> Float[Tensor, "c h w"]:
        """Features of an image of this process, averaged with those of its flipped image."""
        both = self.project(self.clean.take(torch.tensor([row]))[0])
        return mean_of_both(both[None])[0]

    def batch(self, index: Integer[Tensor, " b"], step: int, seed: int) -> Batch:
        """Features of a batch. Everything random follows from ``step`` and ``seed``."""
        random = generator("views", seed, step)
        rows, here = self.here(index)
        if self.augmented:
            assert self.flipped is not None
            view = torch.randint(len(self.augmented), (len(index),), generator=random)[here]
            flip = self.flipped[view, rows]
            clean = self.features(rows, flip)
            seen = torch.empty_like(clean)
            for number in view.unique().tolist():
                at = (view == number).nonzero()[:, 0]
                seen[at.to(self.device)] = self.project(self.augmented[number].take(rows[at]))
            return Batch(clean, seen, flip, rows)
        flip = (torch.rand(len(index), generator=random) < 0.5)[here]
        clean = self.features(rows, flip)
        seen = self.project(self.fresh(rows, flip, step)) if self.fresh else clean
        return Batch(clean, seen, flip, rows)


def batch_indices(
    step: int, count: int, batch_size: int, purpose: str, seed: int
) -> Integer[Tensor, " b"]:
    """Images of the batch of a step (from 1); each epoch is a permutation, its rest dropped.

    Examples:
        >>> batch_indices(1, 5, 2, "EM", 0).tolist() == batch_indices(1, 5, 2, "EM", 0).tolist()
        True
        >>> len(batch_indices(7, 5, 32, "EM", 0))
        5
    """
    batch_size = min(batch_size, count)
    epoch, place = divmod(step - 1, count // batch_size)
    order = torch.randperm(count, generator=generator(purpose, seed, epoch))
    return order[place * batch_size : (place + 1) * batch_size]
