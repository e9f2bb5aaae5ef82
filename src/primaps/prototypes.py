"""Class prototypes and the equations that fit them: PCA start, Eq. 9, Eq. 10, Eq. 11."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn


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


def principal_directions(features: Float[Tensor, "n c h w"], k: int) -> Float[Tensor, "k c"]:
    """The first ``k`` principal components of the centred features: where the prototypes start.

    Signs are fixed: the entry of largest magnitude is positive. Beyond the number of components
    the components follow again with the opposite sign.

    Raises:
        ValueError: ``k`` exceeds twice the rank that the features can have, or NaN.
    """
    n, c, h, w = features.shape
    rank = min(n * h * w - 1, c)
    if k > 2 * rank:
        raise ValueError(
            f"{k} classes cannot be started from {n * h * w} features of {c} channels: "
            "use fewer classes, more images or a larger size"
        )
    total, moment = torch.zeros(c).double(), torch.zeros(c, c).double()
    for chunk in features.split(64):  # in double precision, but never all at once
        rows = chunk.permute(0, 2, 3, 1).reshape(-1, c).double()
        total, moment = total.to(rows) + rows.sum(0), moment.to(rows) + rows.T @ rows
    if not torch.isfinite(moment).all():
        raise ValueError("features contain NaN or infinity")
    mean = total / (n * h * w)
    _, vectors = torch.linalg.eigh(moment / (n * h * w) - mean[:, None] * mean)
    directions = vectors.flip(1).T[: min(k, rank)]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * largest.sign()
    return torch.cat([directions, -directions])[:k].float()


def kmeans_loss(cosines: Float[Tensor, "b k h w"]) -> Float[Tensor, ""]:
    """Eq. 9: minus the mean over positions of the largest cosine to a prototype."""
    return -cosines.amax(1).mean()


def class_confidence(logits: Float[Tensor, "b k h w"]) -> Float[Tensor, " k"]:
    """chi of Eq. 10: mean softmax probability of each class over batch and positions."""
    return logits.softmax(1).mean((0, 2, 3))


def focal_loss(
    logits: Float[Tensor, "b k h w"],
    pseudo_labels: Integer[Tensor, "b h w"],
    confidence: Float[Tensor, " k"],
    ignore_index: int = -1,
) -> Float[Tensor, ""]:
    """Eq. 10: cross-entropy with the class weights ``(1 - chi_k)^2``.

    Ignored pixels contribute nothing but are counted in the mean, as in the authors' program.
    """
    losses = F.cross_entropy(
        logits, pseudo_labels, (1 - confidence) ** 2, ignore_index=ignore_index, reduction="none"
    )
    return losses.mean()


def vote(
    prediction: Integer[Tensor, "b h w"], masks: Integer[Tensor, "b h w"], classes: int
) -> Integer[Tensor, "b h w"]:
    """Pseudo labels: inside each mask, the class that is predicted most often.

    Args:
        prediction: classes 0..K-1 of the momentum prototypes.
        masks: 0 = ignore, 1..Z.
        classes: K.

    Returns:
        The winning class per pixel, -1 where the mask is 0. Ties go to the smaller class.

    Examples:
        >>> vote(torch.tensor([[[1, 1, 0, 2]]]), torch.tensor([[[1, 1, 1, 0]]]), classes=3)
        tensor([[[ 1,  1,  1, -1]]], dtype=torch.int16)
    """
    b = len(masks)
    z = int(masks.max()) + 1
    mask = masks.long() + torch.arange(b, device=masks.device).view(-1, 1, 1) * z
    counts = torch.bincount((mask * classes + prediction).flatten(), minlength=b * z * classes)
    winner = counts.view(b * z, classes).argmax(1).to(torch.int16)
    winner.view(b, z)[:, 0] = -1
    return winner[mask]


@torch.no_grad()
def momentum_update(momentum: nn.Module, student: nn.Module, decay: float) -> None:
    """Eq. 11: ``momentum = decay * momentum + (1 - decay) * student``, in place."""
    for slow, fast in zip(momentum.parameters(), student.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)
