"""The recipe "orthogonal": k-means with orthonormal prototypes, on one feature per mask.

In the EM of the paper a mask votes with all of its pixels, and prototypes can become similar:
several share one large class, and small classes get none. Here every mask counts once, and the
prototypes of Eq. 9 are constrained to be orthonormal. Both steps have a closed form, and the result
is a consensus of several k-means restarts. The fit uses no labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from primaps.config import ORTHOGONAL_SCALE
from primaps.em.em import class_entropy
from primaps.em.kmeans import Prototypes
from primaps.em.training import HistoryLine, Recorder
from primaps.utils.distributed import total
from primaps.utils.errors import InputError

RESTARTS, AGREEING = 15, 5
"""Number of k-means restarts, and how many of them the consensus averages: those that agree most.
Restarts end in a few partitions. Which one prevails is mostly random with five restarts, and stable
with fifteen."""
ITERATIONS = 5
"""Iterations before and after the consensus. More iterations lower the loss and shrink the small
classes: the larger a class, the freer it is to choose its direction."""
CONSENSUS = f"{AGREEING} of {RESTARTS} starts on drawn positions, scale {ORTHOGONAL_SCALE:g}"
"""Part of the fingerprint of a fit; it changes with these constants."""


def polar(matrix: Float[Tensor, "k c"]) -> Float[Tensor, "k c"]:
    """Return the nearest matrix with orthonormal rows (orthogonal Procrustes problem).

    Examples:
        >>> polar(torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.5]]))
        tensor([[1., 0., 0.],
                [0., 0., 1.]])
    """
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def orthogonal_kmeans(
    features: Float[Tensor, "m c"], init: Float[Tensor, "k c"], iterations: int = ITERATIONS
) -> Float[Tensor, "k c"]:
    """Minimize Eq. 9 over orthonormal prototypes: assign features, then take the polar factor.

    Neither step increases the loss, and the loop ends when assignments do not change. The initial
    prototypes need not be orthogonal. A class without features keeps the component of its direction
    that is orthogonal to the other classes.

    Args:
        features: features of length 1 of this process.
        init: initial prototypes of length 1; K is at most C.
        iterations: maximum number of iterations.
    """
    prototypes, last = init.to(features), None
    for _ in range(iterations):
        # Assignment: the prototype with the largest cosine.
        assigned = (features @ prototypes.T).argmax(1)
        changed = torch.tensor([last is None or bool((assigned != last).any())])
        if not total(changed.to(features.device).int()):
            break
        last = assigned
        # Update: the orthonormal prototypes with the largest sum of cosines to their features.
        sums = torch.zeros_like(prototypes).index_add_(0, assigned, features)
        counts = total(torch.bincount(assigned, minlength=len(prototypes)))
        sums = total(sums).double()
        weak = 1e-3 * sums.norm(dim=1).max() * prototypes
        prototypes = polar(torch.where(counts[:, None] == 0, weak, sums)).to(features)
    return prototypes


def consensus(
    candidates: Sequence[Float[Tensor, "k c"]], count: int = AGREEING
) -> Float[Tensor, "k c"]:
    """Average those sets of prototypes that agree most, matched one to one.

    For each candidate the ``count`` most similar candidates are found; the group with the largest
    similarity is averaged.

    Args:
        candidates: sets of orthonormal prototypes.
        count: number of sets that are averaged.
    """
    from scipy.optimize import linear_sum_assignment

    def matched(reference: Tensor, other: Tensor) -> Tensor:
        cosines = (reference @ other.T).cpu().numpy()
        return other[torch.as_tensor(linear_sum_assignment(cosines, maximize=True)[1])]

    def nearest(reference: Tensor) -> list[tuple[float, Tensor]]:
        all_matched = [matched(reference, other) for other in candidates]
        scored = [(float((reference * other).sum()), other) for other in all_matched]
        return sorted(scored, key=lambda pair: -pair[0])[:count]

    groups = map(nearest, candidates)
    densest = max(groups, key=lambda group: sum(similarity for similarity, _ in group))
    return polar(torch.stack([other.double() for _, other in densest]).sum(0))


def check_orthogonal(classes: int, channels: int) -> None:
    """Raise InputError if there are more classes than channels, which cannot be orthogonal."""
    if classes > channels:
        raise InputError(
            f"{classes} prototypes of {channels} channels cannot be orthogonal: "
            "use fewer classes or --recipe paper"
        )


def restart_seeds(seed: int) -> list[int]:
    """Return the seeds of the k-means restarts of a fit; no two fits share one.

    Examples:
        >>> restart_seeds(0)[:2], restart_seeds(1)[:2]
        ([0, 1], [15, 16])
    """
    return [RESTARTS * seed + number for number in range(RESTARTS)]


def fit_orthogonal(
    features: Float[Tensor, "m c"], restarts: Sequence[Prototypes], recorder: Recorder
) -> Prototypes:
    """Refine each k-means restart on masks, average those that agree, and refine the average.

    Args:
        features: one feature of length 1 per mask of this process.
        restarts: K prototypes each.

    Returns:
        K orthonormal prototypes with scale 6: logits of features of length 1 are cosines times 6.

    Raises:
        InputError: there are more classes than channels.
    """
    check_orthogonal(len(restarts[0].direction), features.shape[1])
    init = [F.normalize(restart.direction.detach(), dim=1) for restart in restarts]
    refined = [orthogonal_kmeans(features, each) for each in init]
    directions = orthogonal_kmeans(features, consensus(refined).to(features))
    cosines, assigned = (features @ directions.T).max(1)
    metrics = {
        "count": torch.tensor([len(features)]),
        "loss": -cosines.sum(),
        "classes": torch.bincount(assigned, minlength=len(directions)),
    }
    recorder.record("orthogonal", 1, 1, metrics, _summary)
    prototypes = Prototypes(directions)
    prototypes.scale.data.fill_(ORTHOGONAL_SCALE)
    return prototypes


def _summary(sums: Mapping[str, Tensor], steps: int) -> HistoryLine:
    share = sums["classes"] / sums["count"]
    return {
        "loss": float(sums["loss"] / sums["count"]),
        "entropy": class_entropy(share),
        "empty": (share == 0).nonzero()[:, 0].tolist(),
    }
