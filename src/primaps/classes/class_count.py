"""Choose the number of classes by the agreement of two halves of the images, for several K.

No collection has one true K. For each K, the masks of two random halves of the images are clustered
separately, and both clusterings assign the masks of the whole collection. Their agreement beyond
chance is the evidence for K. A coarse, a middle and a fine K are proposed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from primaps.config import MAX_CLASSES
from primaps.utils.errors import InputError
from primaps.utils.parallel import one_thread
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.seeding import generator

REPEATS = 10
"""Number of splits of the images into halves."""
ITERATIONS = 15
RESTARTS = 3
SAMPLE = 20_000
"""Maximum number of masks. More masks change the curve by less than its error."""
RANGE = (2, 48)
POINTS = 12


@dataclass(frozen=True)
class Evidence:
    """Evidence for a number of classes.

    Attributes:
        classes: K.
        stability: agreement of two halves of the images beyond chance, 1 = identical; mean over
            repeats.
        error: standard error of this mean.
        strength: prediction strength (Tibshirani and Walther): fraction of the pairs of masks of a
            class that the other half puts into one class, for the worst class.
        gap: relative drop from the K-th to the next eigenvalue of the cosines of the masks.
    """

    classes: int
    stability: float
    error: float
    strength: float
    gap: float


@dataclass(frozen=True)
class Choice:
    """Three proposed numbers of classes; see :func:`choice_of`."""

    coarse: int
    middle: int
    fine: int


def candidates(low: int = RANGE[0], high: int = RANGE[1], points: int = POINTS) -> list[int]:
    """Return about geometrically spaced numbers of classes from ``low`` to ``high``.

    Raises:
        InputError: The range is not within 2 to 255.

    Examples:
        >>> candidates(2, 48)
        [2, 3, 4, 5, 6, 8, 11, 15, 20, 27, 36, 48]
    """
    if not 2 <= low <= high <= MAX_CLASSES:
        raise InputError(
            f"a range of classes must be LOW-HIGH between 2 and {MAX_CLASSES}, got {low}-{high}"
        )
    if high - low < points:
        return list(range(low, high + 1))
    found = {round(low * (high / low) ** (i / (points - 1))) for i in range(points)}
    unused = (k for k in range(low, high + 1) if k not in found)
    while len(found) < points:  # small K round to the same integer
        found.add(next(unused))
    return sorted(found)


def parse_range(text: str) -> list[int]:
    """Return the numbers of classes that ``auto`` or ``LOW-HIGH`` stands for.

    Raises:
        InputError: The text is neither.

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
    """Return the centers of the best of :data:`RESTARTS` restarts of spherical k-means."""
    best, found = -math.inf, features[:classes]
    for _ in range(RESTARTS):
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
    """Sample the initial centers by k-means++."""
    first = int(torch.randint(len(features), (1,), generator=random))
    chosen, near = [first], features @ features[first]
    for _ in range(classes - 1):
        chances = (1 - near).clamp_min(1e-9).double().cumsum(0).cpu()
        threshold = torch.rand(1, generator=random, dtype=torch.double) * chances[-1]
        chosen.append(min(int(torch.searchsorted(chances, threshold)), len(features) - 1))
        near = torch.maximum(near, features @ features[chosen[-1]])
    return features[chosen].clone()


def agreement(one: Integer[Tensor, " m"], other: Integer[Tensor, " m"], classes: int) -> float:
    """Return Cohen's kappa of two clusterings after the best one-to-one matching of classes.

    1 = identical, 0 = no better than chance.

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
    """Return the prediction strength of ``one``.

    For each class, this is the fraction of the pairs of its masks that have one class in
    ``other``. The minimum over classes with at least two masks is returned.

    Examples:
        >>> strength(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]), 2)
        0.0
    """
    pairs = torch.bincount(one * classes + other, minlength=classes**2).view(classes, classes)
    counts = pairs.double()
    size = counts.sum(1)
    together = (counts * (counts - 1)).sum(1) / (size * (size - 1)).clamp_min(1)
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
    """Compute the evidence for several numbers of classes from masks.

    The time is linear in the number of masks up to 20,000, and constant above.

    Args:
        features: feature of each mask, of length 1.
        images: number of the image of each mask.
        wanted: numbers of classes; None is :func:`candidates`, up to half of the masks of half of
            the images.

    Raises:
        InputError: Half of the images has fewer masks than a number of classes.
    """
    random = generator("choose", seed)
    if len(features) > SAMPLE:
        sampled = torch.randperm(len(features), generator=random)[:SAMPLE].sort().values
        features, images = features[sampled.to(features.device)], images[sampled.to(images.device)]
    splits = [_halves(images, random) for _ in range(repeats)]
    fewest = min(min(int(half.sum()), int((~half).sum())) for half in splits)
    if wanted is None:
        wanted = candidates(RANGE[0], min(RANGE[1], max(RANGE[0], fewest // 2)))
    if fewest < max(wanted):
        raise InputError(
            f"a random half of the images has only {fewest} masks, but {max(wanted)} classes need "
            "at least as many masks; add images, or choose a smaller range"
        )
    values = torch.linalg.eigvalsh((features.T @ features / len(features)).double()).flip(0)
    found = []
    for number, classes in enumerate(wanted):
        same, worst = [], []
        for repeat, half in enumerate(splits):
            restarts = generator("choose", seed, classes, repeat)
            one, other = (
                (features @ spherical_kmeans(features[rows], classes, restarts).T).argmax(1)
                for rows in (half, ~half)
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
    """Return which masks belong to a random half of the images."""
    count = int(images.max()) + 1
    order = torch.randperm(count, generator=random).to(images.device)
    return order[images] < count // 2


def choice_of(evidence: Sequence[Evidence]) -> Choice:
    """Return the best K of each third of the range, on a logarithmic scale.

    Stability falls with K on every collection. The best K is therefore the one farthest above a
    line that is fitted to the stability as a function of log K.

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
