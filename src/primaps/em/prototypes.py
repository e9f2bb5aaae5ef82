"""Class prototypes: the 1x1 convolution that everything here fits."""

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
        direction: (K, C), normalized when used.
        scale: (K,).
    """

    def __init__(self, direction: Float[Tensor, "k c"]) -> None:
        super().__init__()
        self.direction = nn.Parameter(direction.detach().clone())
        self.scale = nn.Parameter(torch.ones(len(direction), device=direction.device))

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        weight = self.scale[:, None] * F.normalize(self.direction, dim=1)
        return (weight @ features.flatten(2)).unflatten(2, features.shape[-2:])


def mask_classes(
    features: Float[Tensor, "m c"], direction: Float[Tensor, "k c"], scale: Float[Tensor, " k"]
) -> Integer[Tensor, " m"]:
    """The class that a model gives each mask: the largest scaled cosine.

    Examples:
        >>> mask_classes(torch.tensor([[0.6, 0.8]]), torch.eye(2), torch.tensor([2.0, 1.0]))
        tensor([0])
    """
    weight = scale[:, None] * F.normalize(direction, dim=1)
    return (features @ weight.to(features).T).argmax(1)
