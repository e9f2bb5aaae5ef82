"""Samples of cached features for the training of projections: batches, points, neighbors.

Cached features of an image are (2, C, h, w): [0] of the image and [1] of its horizontal flip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Interval
from jaxtyping import Float, Int
from torch import Tensor

from primaps.features.training_data import ImageArrays, batch_indices
from primaps.utils.errors import InputError

Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Interval(ge=0, lt=1)]
"""Types of the settings of STEGO and HP."""


def batches(
    count: int, batch_size: int, steps: int, purpose: str, seed: int
) -> Iterator[Int[Tensor, " b"]]:
    """Yield the indices of the images of each step, by :func:`batch_indices`."""
    for step in range(1, steps + 1):
        yield batch_indices(step, count, batch_size, purpose, seed)


def sample_features(
    features: ImageArrays, index: Int[Tensor, " b"], generator: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """Return float32 features of images, each of the image or of its flip at random."""
    which = torch.randint(2, (len(index),), generator=generator)
    return features.take(index, which).float()


def random_points(count: int, points: int, generator: torch.Generator) -> Float[Tensor, "b p 2"]:
    """Sample uniform points (x, y) in [-1, 1] for each of ``count`` images."""
    return 2 * torch.rand(count, points, 2, generator=generator) - 1


def interpolate(
    maps: Float[Tensor, "b c h w"], points: Float[Tensor, "b p 2"]
) -> Float[Tensor, "b c p"]:
    """Interpolate features at points; -1 and 1 are the centers of the outer tokens.

    Examples:
        >>> interpolate(torch.tensor([[[[0.0, 4.0]]]]), torch.tensor([[[-1.0, 0.0], [-0.5, 0.0]]]))
        tensor([[[0., 1.]]])
    """
    grid = points[:, None].to(maps.device)
    return F.grid_sample(maps, grid, align_corners=True, padding_mode="border")[:, :, 0]


def descriptors(features: ImageArrays, batch_size: int = 64) -> Float[Tensor, "n c"]:
    """Average the features of each image over its tokens, and normalize them."""
    means = []
    for index in torch.arange(len(features)).split(batch_size):
        maps = features.take(index, torch.zeros_like(index)).float()
        means.append(F.normalize(maps.mean((2, 3)), dim=1))
    return torch.cat(means)


def nearest_images(images: Float[Tensor, "n c"], count: int) -> Int[Tensor, "n k"]:
    """Return the indices of the ``count`` most similar other images, or of all if fewer exist.

    Examples:
        >>> nearest_images(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), 1).tolist()
        [[1], [0], [1]]
    """
    found = []
    for start in range(0, len(images), 1024):
        cosines = images[start : start + 1024] @ images.T
        rows = torch.arange(len(cosines), device=images.device)
        cosines[rows, start + rows] = -torch.inf  # exclude the image itself
        found.append(cosines.topk(min(count, len(images) - 1)).indices)
    return torch.cat(found)


def partners(count: int, generator: torch.Generator) -> Int[Tensor, " b"]:
    """Sample a partner for each of ``count`` images of a batch, never the image itself."""
    order = torch.randperm(count, generator=generator)
    found = torch.empty(count, dtype=torch.int64)
    found[order] = order.roll(1)  # one cycle, so no image is its own partner
    return found


def finite_loss(loss: Float[Tensor, ""], step: int) -> float:
    """Return the loss as a number, and raise an error if it is NaN or infinity."""
    value = loss.item()
    if not math.isfinite(value):
        raise InputError(f"the loss of step {step} is {value}; features contain NaN or infinity")
    return value
