"""Accuracy from a few answers: which pixels to ask about, and an estimate with its interval.

Pixels are sorted by class and, inside a class, by confidence, and cut into as many strips of equal
weight as there will be answers; one pixel of each strip is asked about, in random order. Strips
side by side are alike, so the estimate is surer than one of as many pixels drawn blindly, and how
alike their answers are says how sure. Audits that stop early count the strips that are answered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from primaps.utils.errors import InputError
from primaps.utils.seeding import generator

FLOOR = 0.5
"""Of the variance of blind draws: strips are never taken to halve it and more."""
PAIRED_SHARE = 0.3
"""Share of answers with a neighbor of their class below which answers count as drawn blindly."""
SPARE = 5
"""Pixels drawn from each strip: the next one is asked about where a person cannot tell."""


@dataclass(frozen=True)
class Estimate:
    """Accuracy with its interval.

    Attributes:
        accuracy: 0..1.
        low, high: where the accuracy of all pixels lies with 95 % confidence.
        answers: number of answers it rests on.
    """

    accuracy: float
    low: float
    high: float
    answers: int


def strips(
    classes: Integer[Tensor, " n"],
    confidence: Float[Tensor, " n"],
    weights: Float[Tensor, " n"],
    answers: int,
    seed: int = 0,
) -> Integer[Tensor, "a 5"]:
    """Candidates of each strip: the pixel to ask about, and spares.

    Args:
        classes: predicted class of a random sample of all pixels, thousands of them.
        confidence: of each; larger is surer.
        weights: pixels that each stands for.
        answers: number of strips.

    Raises:
        InputError: there are fewer pixels than answers, or fewer than two answers.
    """
    if not 2 <= answers <= len(classes):
        raise InputError(f"{answers} answers about {len(classes)} pixels: give 2 or more, not all")
    random = generator("audit", seed)
    order = confidence.argsort(stable=True)
    order = order[classes[order].argsort(stable=True)]
    end = weights.double()[order].cumsum(0)
    places = torch.rand(answers, SPARE, generator=random, dtype=torch.double)
    places = (places + torch.arange(answers)[:, None]) * end[-1] / answers
    return order[torch.searchsorted(end, places).clamp_max(len(order) - 1)]


def asking_order(answers: int, seed: int = 0) -> list[int]:
    """Random order of the strips, so that those answered so far stand for all.

    Examples:
        >>> sorted(asking_order(4))
        [0, 1, 2, 3]
    """
    return torch.randperm(answers, generator=generator("audit order", seed)).tolist()


def estimate(answers: Sequence[bool | None], classes: Sequence[int] | None = None) -> Estimate:
    """Accuracy from the answers of all strips, in the order of the strips.

    Args:
        answers: whether the class is right; None where there is no answer (yet).
        classes: of the strips; answers of one class tell how alike answers are. None: all one.

    Raises:
        InputError: there are fewer than two answers.

    Examples:
        >>> found = estimate([True] * 60 + [False] * 20)
        >>> round(found.accuracy, 2), round(found.low, 2), round(found.high, 2)
        (0.75, 0.68, 0.81)
    """
    kinds = [0] * len(answers) if classes is None else list(classes)
    known = [
        (kind, bool(answer)) for kind, answer in zip(kinds, answers, strict=True)
        if answer is not None
    ]  # fmt: skip
    count = len(known)
    if count < 2:
        raise InputError(f"an estimate takes two answers or more; there are {count}")
    mean = sum(answer for _, answer in known) / count
    blind = mean * (1 - mean) * count / (count - 1)
    # Inside strips: half the squared difference of neighbors of one class, on the safe side
    # because it holds what the two strips differ by as well.
    pairs = [
        one[1] != other[1]
        for one, other in zip(known[1:], known[:-1], strict=True)
        if one[0] == other[0]
    ]
    inside = sum(pairs) / (2 * len(pairs)) if len(pairs) >= PAIRED_SHARE * count else blind
    share = count / len(answers)  # strips without an answer: as if drawn blindly
    variance = (share * inside + (1 - share) * blind) / count
    # A floor, because few wrong answers say little about their own spread.
    variance = max(variance, FLOOR * blind / count)
    effective = mean * (1 - mean) / variance if variance > 0 else float(count)
    low, high = wilson(mean, effective, _t(count))
    return Estimate(mean, low, high, count)


def wilson(mean: float, count: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share.

    Examples:
        >>> [round(v, 3) for v in wilson(0.5, 100)]
        [0.404, 0.596]
    """
    center = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count)
    half *= math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    return max(0.0, center - half), min(1.0, center + half)


def _t(count: int) -> float:
    """97.5 % quantile of Student's t; differences of neighbors have two degrees in three."""
    from scipy.stats import t

    return float(t.ppf(0.975, max(1, 2 * count // 3)))
