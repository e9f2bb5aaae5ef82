"""Stability and statistics of classes, computed from masks without labels.

The stability of a class measures whether similar images give the same class: images are
resampled, their masks are clustered again, and the class is compared with the most similar new
cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from primaps.classes.class_count import SAMPLE, spherical_kmeans
from primaps.utils.errors import InputError
from primaps.utils.parallel import lanes, one_thread, overlapped
from primaps.utils.seeding import generator

REPEATS = 20
"""Number of resampled collections."""


@dataclass(frozen=True)
class ClassStability:
    """Stability and statistics of a class.

    Attributes:
        stability: bootstrap Jaccard, 0..1: mean over resampled collections of the intersection
            over union of the class with the most similar new cluster. Above 0.75 the class is
            reproduced, below 0.5 it is not (Hennig's rule of thumb).
        share: fraction of the area of all masks, 0..1.
        images: number of images with a mask of the class.
        nearest: the class with the most similar mean feature; -1 without another class.
        cosine: cosine similarity of the two means.
    """

    stability: float
    share: float
    images: int
    nearest: int
    cosine: float


def stability(
    features: Float[Tensor, "m c"],
    images: Integer[Tensor, " m"],
    assigned: Integer[Tensor, " m"],
    classes: int,
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Float[Tensor, " k"]:
    """Compute the bootstrap Jaccard of each class over images; NaN for a class without a mask.

    Images are sampled with replacement, and their masks are clustered into the same number of
    clusters. Each class is compared with the cluster of the largest intersection over union, on
    the sampled masks.

    Args:
        features: feature of each mask, of length 1.
        images: number of the image of each mask.
        assigned: class of each mask, 0..classes-1.

    Raises:
        InputError: There are fewer than two masks per class.
    """
    if len(features) < 2 * classes:
        raise InputError(
            f"the stability of {classes} classes needs at least {2 * classes} masks, got "
            f"{len(features)}"
        )
    count = int(images.max()) + 1

    def overlaps(repeat: list[int]) -> Float[Tensor, " k"]:
        random = generator("trust", seed, *repeat)
        times = torch.bincount(torch.randint(count, (count,), generator=random), minlength=count)
        weight = times.to(images.device)[images]
        rows = torch.arange(len(images), device=images.device).repeat_interleave(weight)
        if len(rows) > SAMPLE:
            sampled = torch.randperm(len(rows), generator=random)[:SAMPLE]
            rows = rows[sampled.to(rows.device)]
        resampled = features[rows]
        if len(resampled) < classes:
            return torch.full((classes,), torch.nan)
        with threads.turn, one_thread():
            new = (resampled @ spherical_kmeans(resampled, classes, random).T).argmax(1)
        return jaccard(assigned[rows], new, classes)

    with lanes(features.device) as threads:
        found = list(overlapped(([repeat] for repeat in range(repeats)), overlaps, threads))
    return torch.stack(found).double().nanmean(0).float()


def jaccard(
    one: Integer[Tensor, " m"], other: Integer[Tensor, " m"], classes: int
) -> Float[Tensor, " k"]:
    """Return the largest intersection over union of each class of ``one`` with any of ``other``.

    The value of a class without a mask is NaN.

    Examples:
        >>> jaccard(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 1, 0]), 3).tolist()[:2]
        [0.6666666865348816, 0.5]
    """
    pairs = torch.bincount(one * classes + other, minlength=classes**2).view(classes, classes)
    union = pairs.sum(1, keepdim=True) + pairs.sum(0) - pairs
    best = (pairs / union.clamp_min(1)).amax(1)
    return torch.where(pairs.sum(1) > 0, best, torch.nan).cpu()


def class_stability(
    features: Float[Tensor, "m c"],
    areas: Float[Tensor, " m"],
    images: Integer[Tensor, " m"],
    assigned: Integer[Tensor, " m"],
    classes: int,
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> list[ClassStability]:
    """Compute the stability and statistics of each class from the masks of the collection.

    Args:
        features: feature of each mask, of length 1.
        areas: number of pixels of each mask.
        images: number of the image of each mask.
        assigned: class of each mask, 0..classes-1, of the model or after a cut or edits.

    Raises:
        InputError: There are fewer than two masks per class.
    """
    stable = stability(features, images, assigned, classes, repeats=repeats, seed=seed)
    sums = features.new_zeros(classes, features.shape[1]).index_add_(0, assigned, features)
    present = sums.norm(dim=1) > 0
    means = F.normalize(sums, dim=1)
    cosines = (means @ means.T).fill_diagonal_(-2)
    cosines[:, ~present] = -2
    share = areas.new_zeros(classes).index_add_(0, assigned, areas) / areas.sum()
    found = []
    for k in range(classes):
        value, nearest = cosines[k].max(0)
        alone = not bool(present[k]) or float(value) < -1.5
        found.append(
            ClassStability(
                stability=float(stable[k]),
                share=float(share[k]),
                images=len(images[assigned == k].unique()),
                nearest=-1 if alone else int(nearest),
                cosine=0.0 if alone else float(value),
            )
        )
    return found
