"""The recipe "orthogonal": k-means with orthonormal prototypes, on one feature per mask.

In the paper's EM a mask votes with all of its pixels, and prototypes may come as close to each
other as they like, so that several share one large class while small ones go without. Here every
mask counts once, and the prototypes of Eq. 9 are kept at right angles to each other. Both steps
have a closed form, so this takes seconds, and a consensus of several starts takes the place of
luck. Labels decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from primaps.config import ORTHOGONAL_SCALE
from primaps.em.em import class_entropy
from primaps.em.prototypes import Prototypes
from primaps.em.recorder import HistoryLine, Recorder
from primaps.utils.distributed import total
from primaps.utils.errors import InputError

RESTARTS, AGREEING = 15, 5
"""Starts, and how many of them the consensus is taken of: those that agree most. Starts end in a
few partitions; which of them prevails among five is luck, among fifteen hardly."""
ITERATIONS = 5
"""Before and after the consensus. The loss goes on falling, but what falls is the share of the
small classes: the larger a class, the freer it is to choose its direction."""
CONSENSUS = f"{AGREEING} of {RESTARTS} starts on drawn positions, scale {ORTHOGONAL_SCALE:g}"
"""For digests, which tell apart what depends on it."""


def polar(matrix: Float[Tensor, "k c"]) -> Float[Tensor, "k c"]:
    """The matrix with orthonormal rows that is nearest to a given one (orthogonal Procrustes).

    Examples:
        >>> polar(torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.5]]))
        tensor([[1., 0., 0.],
                [0., 0., 1.]])
    """
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def orthogonal_kmeans(
    features: Float[Tensor, "m c"], start: Float[Tensor, "k c"], most: int = ITERATIONS
) -> Float[Tensor, "k c"]:
    """Minimize Eq. 9 over orthonormal prototypes: assign, then the polar factor of the sums.

    Neither step raises the loss; it stops when assignments do not change. The start may be oblique,
    its assignments count. A class without a feature keeps what is orthogonal to the others of its
    direction.

    Args:
        features: of length 1; under several processes those of this one.
        start: of length 1; K at most C.
        most: iterations.
    """
    prototypes, last = start.to(features), None
    for _ in range(most):
        assigned = (features @ prototypes.T).argmax(1)
        changed = torch.tensor([last is None or bool((assigned != last).any())])
        if not total(changed.to(features.device).int()):
            break
        last = assigned
        sums = torch.zeros_like(prototypes).index_add_(0, assigned, features)
        counts = total(torch.bincount(assigned, minlength=len(prototypes)))
        sums = total(sums).double()
        weak = 1e-3 * sums.norm(dim=1).max() * prototypes
        prototypes = polar(torch.where(counts[:, None] == 0, weak, sums)).to(features)
    return prototypes


def consensus(
    candidates: Sequence[Float[Tensor, "k c"]], most: int = AGREEING
) -> Float[Tensor, "k c"]:
    """Average of those sets of prototypes that agree most, matched one to one.

    Args:
        candidates: orthonormal prototypes.
        most: how many are averaged: the one whose nearest are the nearest, and these.
    """
    from scipy.optimize import linear_sum_assignment

    def matched(to: Tensor, other: Tensor) -> Tensor:
        cosines = (to @ other.T).cpu().numpy()
        return other[torch.as_tensor(linear_sum_assignment(cosines, maximize=True)[1])]

    def nearest(one: Tensor) -> list[tuple[float, Tensor]]:
        all_of_them = [matched(one, other) for other in candidates]
        told = [(float((one * other).sum()), other) for other in all_of_them]
        return sorted(told, key=lambda each: -each[0])[:most]

    densest = max(map(nearest, candidates), key=lambda each: sum(cosine for cosine, _ in each))
    return polar(torch.stack([other.double() for _, other in densest]).sum(0))


def _summary(sums: Mapping[str, Tensor], steps: int) -> HistoryLine:
    share = sums["classes"] / sums["count"]
    return {
        "loss": float(sums["loss"] / sums["count"]),
        "entropy": class_entropy(share),
        "empty": (share == 0).nonzero()[:, 0].tolist(),
    }


def check_orthogonal(classes: int, channels: int) -> None:
    """Raise InputError if there are more classes than channels: they cannot be orthogonal."""
    if classes > channels:
        raise InputError(
            f"{classes} prototypes of {channels} channels cannot be orthogonal: "
            "use fewer classes or --recipe paper"
        )


def start_seeds(seed: int) -> list[int]:
    """Seeds of the starts of a fit, none of them that of another fit.

    Examples:
        >>> start_seeds(0)[:2], start_seeds(1)[:2]
        ([0, 1], [15, 16])
    """
    return [RESTARTS * seed + number for number in range(RESTARTS)]


def fit_orthogonal(
    features: Float[Tensor, "m c"], starts: Sequence[Prototypes], recorder: Recorder
) -> Prototypes:
    """K orthonormal prototypes: k-means starts, each refined on masks, and their consensus.

    Args:
        features: one of length 1 per mask, see :func:`primaps.features.mask_table.mask_table`.
        starts: K prototypes each.

    Returns:
        Prototypes with scale 6, for features of length 1: logits are cosines times 6.

    Raises:
        InputError: there are more classes than channels, so they cannot be orthogonal.
    """
    check_orthogonal(len(starts[0].direction), features.shape[1])
    begun = [F.normalize(start.direction.detach(), dim=1) for start in starts]
    refined = [orthogonal_kmeans(features, each) for each in begun]
    directions = orthogonal_kmeans(features, consensus(refined).to(features))
    cosines, assigned = (features @ directions.T).max(1)
    figures = {
        "count": torch.tensor([len(features)]),
        "loss": -cosines.sum(),
        "classes": torch.bincount(assigned, minlength=len(directions)),
    }
    recorder.record("orthogonal", 1, 1, figures, _summary)
    prototypes = Prototypes(directions)
    prototypes.scale.data.fill_(ORTHOGONAL_SCALE)
    return prototypes
