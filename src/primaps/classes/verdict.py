"""Verdict on a fit, without labels: whether its classes separate the collection at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from primaps.classes.stability import ClassStability

COLLAPSED, DOMINATED = 1.25, 1.6
"""Effective number of classes below which a fit failed, or is doubtful: one class with 95 %, or
87 %, of the area beside another one."""
UNSTABLE = 0.3
"""Mean stability, weighted by area, below which a fit is doubtful. Hennig's rule of thumb is 0.5,
which good classes of 27 on 100 images do not reach."""
ADVICE = (
    "try a larger --size, another --backbone or another number of classes, or teach the model with "
    "a few labels"
)


@dataclass(frozen=True)
class Verdict:
    """Verdict on a fit.

    Attributes:
        level: ``good``, ``doubtful`` or ``failed``.
        reasons: sentences without a final period; empty for ``good``.
    """

    level: Literal["good", "doubtful", "failed"]
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.reasons:
            return self.level
        return f"{self.level}: {'; '.join(self.reasons)}; {ADVICE}"


def effective_classes(shares: Sequence[float]) -> float:
    """Return the exponential of the entropy of class shares: K for K equal classes, 1 for one.

    Examples:
        >>> effective_classes([0.25, 0.25, 0.25, 0.25]), effective_classes([1.0, 0.0])
        (4.0, 1.0)
    """
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


def judge(classes: Sequence[ClassStability], masks_needed: int = 0) -> Verdict:
    """Judge a fit by the sizes and the stability of its classes.

    A fit failed if its effective number of classes (:func:`effective_classes`) is below 1.25. It
    is doubtful if that is below 1.6, if classes are empty, or if the mean stability of the
    classes, weighted by their area, is below 0.3.

    Args:
        classes: statistics of the classes; empty if there were too few masks to compute them.
        masks_needed: number of masks that the statistics need, for the reason.

    Examples:
        >>> def one(share, stability): return ClassStability(stability, share, 9, 0, 0.5)
        >>> judge([one(0.5, 0.9), one(0.5, 0.8)]).level
        'good'
        >>> judge([one(0.99, 0.7), one(0.01, 0.2)]).reasons[0]
        '99 % of the area fell into one class: these features do not separate this collection'
    """
    if not classes:
        reason = f"there are fewer than {masks_needed} masks, too few to judge the classes"
        return Verdict("doubtful", (reason,))
    if len(classes) == 1:
        return Verdict("good")
    shares = [one.share for one in classes]
    count = effective_classes(shares)
    largest = f"{100 * max(shares):.0f} % of the area fell into one class"
    if count < COLLAPSED:
        return Verdict("failed", (f"{largest}: these features do not separate this collection",))
    reasons = [largest] if count < DOMINATED else []
    if empty := sum(share == 0 for share in shares):
        reasons.append(f"{empty} of {len(shares)} classes are empty")
    known = [one for one in classes if not math.isnan(one.stability)]
    area = sum(one.share for one in known)
    mean = sum(one.share * one.stability for one in known) / area if area else 0.0
    if mean < UNSTABLE:
        reasons.append(
            f"the classes change when other images of the collection are chosen (stability "
            f"{mean:.2f} of 1)"
        )
    return Verdict("doubtful" if reasons else "good", tuple(reasons))
