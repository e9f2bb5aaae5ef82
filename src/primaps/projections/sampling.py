"""What training a projection draws from cached features: batches, points, nearest images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from primaps.features.training_data import ImageArrays, batch_indices
from primaps.utils.errors import InputError

# Cached features are rows (2, C, h, w): [0] of an image itself and [1] of its flipped image.


def batches(
    count: int, batch_size: int, steps: int, purpose: str, seed: int
) -> Iterator[Int[Tensor, " b"]]:
    """Yield the image indices of each step (``batch_indices`` of ``features/training_data.py``)."""
    for step in range(1, steps + 1):
        yield batch_indices(step, count, batch_size, purpose, seed)


def draw(
    features: ImageArrays, index: Int[Tensor, " b"], generator: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """Features of some images in single precision, each image flipped or not by chance."""
    which = torch.randint(2, (len(index),), generator=generator)
    return features.take(index, which).float()


def random_points(count: int, points: int, generator: torch.Generator) -> Float[Tensor, "b p 2"]:
    """Points (x, y) in [-1, 1], uniform, for each of ``count`` images."""
    return 2 * torch.rand(count, points, 2, generator=generator) - 1


def sample(
    maps: Float[Tensor, "b c h w"], points: Float[Tensor, "b p 2"]
) -> Float[Tensor, "b c p"]:
    """Bilinear values at points (x, y) in [-1, 1], which spans the centers of the outer positions.

    Examples:
        >>> sample(torch.tensor([[[[0.0, 4.0]]]]), torch.tensor([[[-1.0, 0.0], [-0.5, 0.0]]]))
        tensor([[[0., 1.]]])
    """
    grid = points[:, None].to(maps.device)
    return F.grid_sample(maps, grid, align_corners=True, padding_mode="border")[:, :, 0]


def descriptors(features: ImageArrays, batch_size: int = 64) -> Float[Tensor, "n c"]:
    """One direction per image: its features averaged over positions, of length 1."""
    means = []
    for index in torch.arange(len(features)).split(batch_size):
        maps = features.take(index, torch.zeros_like(index)).float()
        means.append(F.normalize(maps.mean((2, 3)), dim=1))
    return torch.cat(means)


def nearest_images(images: Float[Tensor, "n c"], count: int) -> Int[Tensor, "n k"]:
    """Indices of the ``count`` most similar other images (fewer if there are fewer).

    Examples:
        >>> nearest_images(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), 1).tolist()
        [[1], [0], [1]]
    """
    found = []
    for start in range(0, len(images), 1024):
        cosines = images[start : start + 1024] @ images.T
        rows = torch.arange(len(cosines), device=images.device)
        cosines[rows, start + rows] = -torch.inf  # an image is no neighbor of its own
        found.append(cosines.topk(min(count, len(images) - 1)).indices)
    return torch.cat(found)


def partners(count: int, generator: torch.Generator) -> Int[Tensor, " b"]:
    """A random partner for each of ``count`` images of a batch, never the image itself."""
    order = torch.randperm(count, generator=generator)
    found = torch.empty(count, dtype=torch.int64)
    found[order] = order.roll(1)  # one long cycle
    return found


def check(
    settings: object, counts: Sequence[str], positive: Sequence[str], shares: Sequence[str]
) -> None:
    """Refuse settings out of their range: at least 1, above 0, in [0, 1)."""
    for names, fits, words in (
        (counts, lambda v: v >= 1, "at least 1"),
        (positive, lambda v: v > 0, "positive"),
        (shares, lambda v: 0 <= v < 1, "in [0, 1)"),
    ):
        for name in names:
            if not fits(value := getattr(settings, name)):
                raise InputError(f"{name} is {value}; it must be {words}")


def finite(loss: Float[Tensor, ""], step: int) -> float:
    """The loss as a number; an error if it is none, because then nothing is learned any more."""
    value = loss.item()
    if not math.isfinite(value):
        raise InputError(f"the loss of step {step} is {value}: features contain NaN or infinity")
    return value
