"""How many classes: what halves of the images agree on, for several K.

There is no one true K. For each K the masks of two random halves of the images are clustered apart,
and both results say which masks of the whole collection belong together. How far they agree, less
what chance would agree on, is the evidence; a coarse, a middle and a fine K are proposed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from primaps.utils.errors import InputError
from primaps.utils.parallel import one_thread
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.seeding import generator

REPEATS = 10
ITERATIONS = 15
STARTS = 3
SAMPLE = 20_000
"""Masks that are clustered: more change the curve by less than its error."""
RANGE = (2, 48)
POINTS = 12


@dataclass(frozen=True)
class Evidence:
    """What is known about a K.

    Attributes:
        classes: K.
        stability: agreement of two halves of the images beyond chance, 1 = complete; the mean over
            repeats.
        error: standard error of this mean.
        strength: prediction strength (Tibshirani and Walther): of the worst class, the share of
            pairs of masks that the other half leaves together.
        gap: relative drop of the K-th eigenvalue of the masks' cosines to the next: a hint.
    """

    classes: int
    stability: float
    error: float
    strength: float
    gap: float


@dataclass(frozen=True)
class Choice:
    """Three K to begin with; see :func:`choice_of`."""

    coarse: int
    middle: int
    fine: int


def candidates(low: int = RANGE[0], high: int = RANGE[1], points: int = POINTS) -> list[int]:
    """K at about even ratios.

    Raises:
        InputError: the range is none.

    Examples:
        >>> candidates(2, 48)
        [2, 3, 4, 5, 6, 8, 11, 15, 20, 27, 36, 48]
    """
    if not 2 <= low <= high <= 256:
        raise InputError(f"a range of classes is LOW-HIGH within 2-256, not {low}-{high}")
    if high - low < points:
        return list(range(low, high + 1))
    found = {round(low * (high / low) ** (i / (points - 1))) for i in range(points)}
    spare = (k for k in range(low, high + 1) if k not in found)
    while len(found) < points:  # small K collapse
        found.add(next(spare))
    return sorted(found)


def parse_range(text: str) -> list[int]:
    """K to look at, of ``auto`` or ``LOW-HIGH``.

    Raises:
        InputError: it is neither.

    Examples:
        >>> parse_range("5-8")
        [5, 6, 7, 8]
    """
    if text == "auto":
        return candidates()
    low, _, high = text.partition("-")
    if not (low.isdecimal() and high.isdecimal()):
        raise InputError(f"classes is {text!r}; it must be a number, a range LOW-HIGH or auto")
    return candidates(int(low), int(high))


def spherical_kmeans(
    features: Float[Tensor, "m c"], classes: int, random: torch.Generator
) -> Float[Tensor, "k c"]:
    """Best of a few starts (k-means++) of k-means on features of length 1, each counted once."""
    best, found = -math.inf, features[:classes]
    for _ in range(STARTS):
        centers, last = _plus_plus(features, classes, random), None
        for _ in range(ITERATIONS):
            cosines, assigned = (features @ centers.T).max(1)
            if last is not None and torch.equal(assigned, last):
                break
            last = assigned
            sums = torch.zeros_like(centers).index_add_(0, assigned, features)
            lost = sums.norm(dim=1) == 0
            centers = torch.where(lost[:, None], centers, F.normalize(sums, dim=1))
        if float(cosines.sum()) > best:
            best, found = float(cosines.sum()), centers
    return found


def _plus_plus(features: Tensor, classes: int, random: torch.Generator) -> Tensor:
    """Starts far from each other: each drawn by its distance to those before."""
    first = int(torch.randint(len(features), (1,), generator=random))
    chosen, near = [first], features @ features[first]
    for _ in range(classes - 1):
        chances = (1 - near).clamp_min(1e-9).double().cumsum(0).cpu()
        draw = torch.rand(1, generator=random, dtype=torch.double) * chances[-1]
        chosen.append(min(int(torch.searchsorted(chances, draw)), len(features) - 1))
        near = torch.maximum(near, features @ features[chosen[-1]])
    return features[chosen].clone()


def agreement(one: Integer[Tensor, " m"], other: Integer[Tensor, " m"], classes: int) -> float:
    """Share of masks with matched classes in two clusterings, less chance: Cohen's kappa after
    the best one-to-one matching of classes. 1 = the same, 0 = no better than chance.

    Examples:
        >>> agreement(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0]), 2)
        1.0
    """
    from scipy.optimize import linear_sum_assignment

    pairs = torch.bincount(one * classes + other, minlength=classes**2).view(classes, classes)
    rows, columns = linear_sum_assignment(pairs.cpu().numpy(), maximize=True)
    share = pairs.double() / len(one)
    same = float(share[rows, columns].sum())
    chance = float((share.sum(1)[rows] * share.sum(0)[columns]).sum())
    return (same - chance) / max(1 - chance, 1e-9)


def strength(one: Integer[Tensor, " m"], other: Integer[Tensor, " m"], classes: int) -> float:
    """Prediction strength: of the worst class of ``one``, the share of pairs of its masks that
    are together in ``other``. Classes with fewer than two masks do not count.

    Examples:
        >>> strength(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]), 2)
        0.0
    """
    pairs = torch.bincount(one * classes + other, minlength=classes**2).view(classes, classes)
    own = pairs.double()
    size = own.sum(1)
    together = (own * (own - 1)).sum(1) / (size * (size - 1)).clamp_min(1)
    return float(together[size > 1].min()) if bool((size > 1).any()) else 0.0


@one_thread()
def curve(
    features: Float[Tensor, "m c"],
    images: Integer[Tensor, " m"],
    wanted: Sequence[int] | None = None,
    *,
    repeats: int = REPEATS,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> list[Evidence]:
    """Evidence for each K from masks alone. Time is linear in masks up to 20,000, then constant.

    Args:
        features: one of length 1 per mask.
        images: which image each mask is of.
        wanted: the K; None is :func:`candidates` up to half of the masks that half of the images
            have, so that a few images have a choice as well.

    Raises:
        InputError: a half of the images has fewer masks than a K.
    """
    random = generator("choose", seed)
    if len(features) > SAMPLE:
        drawn = torch.randperm(len(features), generator=random)[:SAMPLE].sort().values
        features, images = features[drawn.to(features.device)], images[drawn.to(images.device)]
    splits = [_halves(images, random) for _ in range(repeats)]
    least = min(min(int(half.sum()), int((~half).sum())) for half in splits)
    if wanted is None:
        wanted = candidates(RANGE[0], min(RANGE[1], max(RANGE[0], least // 2)))
    if least < max(wanted):
        raise InputError(
            f"half of the images has {least} masks, too few for {max(wanted)} classes: give "
            "more images or a smaller range"
        )
    values = torch.linalg.eigvalsh((features.T @ features / len(features)).double()).flip(0)
    found = []
    for number, classes in enumerate(wanted):
        same, worst = [], []
        for repeat, half in enumerate(splits):
            own = generator("choose", seed, classes, repeat)
            one, other = (
                (features @ spherical_kmeans(features[part], classes, own).T).argmax(1)
                for part in (half, ~half)
            )
            same.append(agreement(one, other, classes))
            worst.append(min(strength(one, other, classes), strength(other, one, classes)))
        agreed = torch.tensor(same)
        gap = 0.0
        if classes < len(values):
            gap = float((values[classes - 1] - values[classes]) / values[classes - 1])
        found.append(
            Evidence(
                classes,
                float(agreed.mean()),
                float(agreed.std() / math.sqrt(repeats)) if repeats > 1 else math.nan,
                sum(worst) / repeats,
                gap,
            )
        )
        progress("classes", number + 1, len(wanted), {"stability": found[-1].stability})
    return found


def _halves(images: Integer[Tensor, " m"], random: torch.Generator) -> Bool[Tensor, " m"]:
    """Masks of a random half of the images."""
    count = int(images.max()) + 1
    order = torch.randperm(count, generator=random).to(images.device)
    return order[images] < count // 2


def choice_of(evidence: Sequence[Evidence]) -> Choice:
    """From each third of the range (on a logarithmic scale) the K that stands out most.

    Stability falls with K whatever the images are, so what counts is how far it lies above a line
    in log K through all of the curve.

    Examples:
        >>> choice_of([Evidence(k, s, 0.0, s, 0.0) for k, s in
        ...          ((2, 0.9), (3, 0.8), (6, 0.5), (9, 0.7), (20, 0.4), (27, 0.6))])
        Choice(coarse=2, middle=9, fine=27)
    """
    places = torch.tensor([math.log(one.classes) for one in evidence], dtype=torch.double)
    values = torch.tensor([one.stability for one in evidence], dtype=torch.double)
    line = torch.stack([places, torch.ones_like(places)], dim=1)
    above = values - line @ torch.linalg.lstsq(line, values[:, None]).solution[:, 0]
    width = float(places[-1] - places[0]) or 1.0
    thirds = (3 * (places - places[0]) / width).long().clamp_max(2)
    best = []
    for third in range(3):
        among = torch.where(thirds == third, above, -math.inf)
        if not bool(among.isfinite().any()):  # a short range has an empty third
            among = above
        best.append(evidence[int(among.argmax())].classes)
    return Choice(*best)
