"""How far classes and predictions can be trusted, told without a label.

Per class: whether other images would have given it too (bootstrap over images), how much and where
there is of it, and which class is nearest. Per pixel and image: how sure the model is, and whether
it says the same of the flipped image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from primaps.classes.choose import SAMPLE, spherical_kmeans
from primaps.utils.errors import InputError
from primaps.utils.parallel import lanes, one_thread, overlapped
from primaps.utils.seeding import generator

REPEATS = 20


@dataclass(frozen=True)
class ClassTrust:
    """What is known about a class.

    Attributes:
        stability: bootstrap Jaccard, 0..1: the mean over resampled collections of the overlap of
            the class with the class nearest to it. Above 0.75 it is reproduced, below 0.5 it is
            not (Hennig's rule of thumb).
        share: of the area of all masks, 0..1.
        images: number of images with a mask of the class.
        nearest: the class whose masks are most alike, by their mean; -1 if it is alone.
        cosine: of the two means.
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
    """Bootstrap Jaccard of each class over images; NaN for a class without a mask.

    Images are drawn with replacement, their masks clustered anew into as many classes, and each
    class is compared with the new one that overlaps it most, on the masks that were drawn.

    Args:
        features: one of length 1 per mask.
        images: which image each mask is of.
        assigned: class of each mask, 0..classes-1.

    Raises:
        InputError: there are fewer masks than classes.
    """
    if len(features) < 2 * classes:
        raise InputError(f"{len(features)} masks are too few to resample {classes} classes")
    count = int(images.max()) + 1

    def overlaps(repeat: list[int]) -> Float[Tensor, " k"]:
        random = generator("trust", seed, *repeat)
        times = torch.bincount(torch.randint(count, (count,), generator=random), minlength=count)
        weight = times.to(images.device)[images]
        rows = torch.arange(len(images), device=images.device).repeat_interleave(weight)
        if len(rows) > SAMPLE:
            drawn = torch.randperm(len(rows), generator=random)[:SAMPLE]
            rows = rows[drawn.to(rows.device)]
        own = features[rows]
        if len(own) < classes:
            return torch.full((classes,), torch.nan)
        with threads.turn, one_thread():
            new = (own @ spherical_kmeans(own, classes, random).T).argmax(1)
        return jaccard(assigned[rows], new, classes)

    with lanes(features.device) as threads:
        found = list(overlapped(([repeat] for repeat in range(repeats)), overlaps, threads))
    return torch.stack(found).double().nanmean(0).float()


def jaccard(
    one: Integer[Tensor, " m"], other: Integer[Tensor, " m"], classes: int
) -> Float[Tensor, " k"]:
    """Per class of ``one`` its largest overlap over union with a class of ``other``; NaN if empty.

    Examples:
        >>> jaccard(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 1, 0]), 3).tolist()[:2]
        [0.6666666865348816, 0.5]
    """
    pairs = torch.bincount(one * classes + other, minlength=classes**2).view(classes, classes)
    union = pairs.sum(1, keepdim=True) + pairs.sum(0) - pairs
    best = (pairs / union.clamp_min(1)).amax(1)
    return torch.where(pairs.sum(1) > 0, best, torch.nan).cpu()


def class_trust(
    features: Float[Tensor, "m c"],
    areas: Float[Tensor, " m"],
    images: Integer[Tensor, " m"],
    assigned: Integer[Tensor, " m"],
    classes: int,
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> list[ClassTrust]:
    """What can be told of each class from the masks of the collection.

    Args:
        features: one of length 1 per mask.
        areas: pixels of each mask.
        images: which image each mask is of.
        assigned: class of each mask, 0..classes-1; of the model, or after a cut or edits.

    Raises:
        InputError: there are too few masks.
    """
    stable = stability(features, images, assigned, classes, repeats=repeats, seed=seed)
    sums = features.new_zeros(classes, features.shape[1]).index_add_(0, assigned, features)
    there = sums.norm(dim=1) > 0
    means = F.normalize(sums, dim=1)
    cosines = (means @ means.T).fill_diagonal_(-2)
    cosines[:, ~there] = -2
    share = areas.new_zeros(classes).index_add_(0, assigned, areas) / areas.sum()
    found = []
    for k in range(classes):
        value, nearest = cosines[k].max(0)
        alone = not bool(there[k]) or float(value) < -1.5
        found.append(
            ClassTrust(
                stability=float(stable[k]),
                share=float(share[k]),
                images=len(images[assigned == k].unique()),
                nearest=-1 if alone else int(nearest),
                cosine=0.0 if alone else float(value),
            )
        )
    return found
