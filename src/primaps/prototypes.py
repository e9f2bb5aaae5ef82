"""Class prototypes and the equations that fit them: PCA start, Eq. 9, Eq. 10, Eq. 11."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

MASKS = 256
"""Numbers that a mask can have: 0 = ignore, 1..255."""


class Prototypes(nn.Module):
    """K class directions in feature space with a scale each: a 1x1 convolution without bias.

    The logit of class k at a position is ``scale_k * <direction_k / |direction_k|, f>`` with the
    feature f as it is. With scale 1 its argmax is the class of the largest cosine.

    Attributes:
        direction: (K, C), normalised when used.
        scale: (K,).
    """

    def __init__(self, direction: Float[Tensor, "k c"]) -> None:
        super().__init__()
        self.direction = nn.Parameter(direction.detach().clone())
        self.scale = nn.Parameter(torch.ones(len(direction), device=direction.device))

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        weight = self.scale[:, None] * F.normalize(self.direction, dim=1)
        return (weight @ features.flatten(2)).unflatten(2, features.shape[-2:])


def moments(
    chunks: Iterable[Float[Tensor, "_ c h w"]],
) -> tuple[int, Float[Tensor, " c"], Float[Tensor, "c c"]]:
    """Number of features, their sum, and the sum of their outer products, in double precision.

    Sums of several collections add up to those of all.

    Examples:
        >>> count, total, second = moments([torch.ones(1, 2, 3, 3)])
        >>> count, total.tolist(), second.tolist()
        (9, [9.0, 9.0], [[9.0, 9.0], [9.0, 9.0]])
    """
    count, total, second = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for chunk in chunks:
        rows = chunk.permute(0, 2, 3, 1).reshape(-1, chunk.shape[1]).double()
        count += len(rows)
        total, second = total.to(rows) + rows.sum(0), second.to(rows) + rows.T @ rows
    return count, total, second


def principal_directions(
    count: int, total: Float[Tensor, " c"], second: Float[Tensor, "c c"], k: int
) -> Float[Tensor, "k c"]:
    """The first ``k`` principal components of the centred features: where the prototypes start.

    Signs are fixed: the entry of largest magnitude is positive. Beyond the number of components
    the components follow again with the opposite sign.

    Args:
        count, total, second: :func:`moments` of the features.

    Raises:
        ValueError: ``k`` exceeds twice the rank that the features can have, or NaN.
    """
    rank = min(count - 1, len(total))
    if k > 2 * rank:
        raise ValueError(
            f"{k} classes cannot be started from {count} features of {len(total)} channels: "
            "use fewer classes, more images or a larger size"
        )
    if not torch.isfinite(second).all():
        raise ValueError("features contain NaN or infinity")
    mean = total / count
    _, vectors = torch.linalg.eigh(second / count - mean[:, None] * mean)
    directions = vectors.flip(1).T[: min(k, rank)]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * largest.sign()
    return torch.cat([directions, -directions])[:k].float()


def kmeans_loss(cosines: Float[Tensor, "b k h w"]) -> Float[Tensor, ""]:
    """Eq. 9: minus the mean over positions of the largest cosine to a prototype."""
    return -cosines.amax(1).mean()


def focal_weights(confidence: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Class weights ``(1 - chi_k)^2`` of the focal loss (Eq. 10).

    Args:
        confidence: chi, the mean softmax probability of each class over batch and positions.
    """
    return (1 - confidence) ** 2


def vote(
    prediction: Integer[Tensor, "b h w"],
    masks: Integer[Tensor, "b h w"],
    classes: int,
) -> tuple[Integer[Tensor, "b h w"], Integer[Tensor, "b 256 k"]]:
    """Pseudo labels: inside each mask, the class that is predicted most often.

    Args:
        prediction: classes 0..K-1 of the momentum prototypes.
        masks: 0 = ignore, 1..255.
        classes: K.

    Returns:
        The winning class per pixel, -1 where the mask is 0 (ties go to the smaller class); and the
        number of pixels by mask and predicted class.

    Examples:
        >>> pseudo, counts = vote(torch.tensor([[[1, 1, 0]]]), torch.tensor([[[1, 1, 0]]]), 2)
        >>> pseudo, counts[0, :2].tolist()
        (tensor([[[ 1,  1, -1]]], dtype=torch.int16), [[1, 0], [0, 2]])
    """
    b, m = len(masks), MASKS
    mask = masks.long() + torch.arange(b, device=masks.device).view(-1, 1, 1) * m
    counts = torch.zeros(b * m * classes, dtype=torch.int64, device=masks.device)
    pair = (mask * classes + prediction).flatten()
    counts = counts.scatter_add_(0, pair, torch.ones_like(pair)).view(b, m, classes)
    winner = counts.argmax(2).to(torch.int16)
    winner[:, 0] = -1
    return winner.flatten()[mask], counts


@torch.no_grad()
def momentum_update(momentum: nn.Module, student: nn.Module, decay: float) -> None:
    """Eq. 11: ``momentum = decay * momentum + (1 - decay) * student``, in place."""
    for slow, fast in zip(momentum.parameters(), student.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)
