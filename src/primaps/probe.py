"""The supervised linear probe: the upper bound that the paper compares with."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from primaps.data.store import Rows
from primaps.distributed import total
from primaps.em import Settings
from primaps.imagesize import weighted_cross_entropy
from primaps.seeding import generator
from primaps.training import Recorder, optimise
from primaps.views import Views, batch_indices

UNLABELLED = 255
"""Label that is not counted, in rows of labels."""


class LinearProbe(nn.Module):
    """A 1x1 convolution with bias on frozen features.

    Attributes:
        direction: (K, C).
        bias: (K,).
    """

    def __init__(self, direction: Float[Tensor, "k c"]) -> None:
        super().__init__()
        self.direction = nn.Parameter(direction.detach().clone())
        self.bias = nn.Parameter(torch.zeros(len(direction), device=direction.device))

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        logits = self.direction @ features.flatten(2) + self.bias[:, None]
        return logits.unflatten(2, features.shape[-2:])


def fit_probe(
    views: Views,
    labels: Rows,
    classes: int,
    steps: int,
    settings: Settings,
    recorder: Recorder | None = None,
) -> LinearProbe:
    """Cross-entropy at image size by Adam from zero, on clean features of images and mirror images.

    Args:
        labels: classes (H, W) of each image at image size, 255 = not counted.
    """
    channels = len(views.mirrored_mean(0))
    probe = LinearProbe(torch.zeros(classes, channels)).to(views.device)
    weights = torch.ones(classes, device=views.device)

    def step(number: int) -> dict[str, Tensor]:
        index = batch_indices(number, len(views), settings.batch_size, "probe", settings.seed)
        random = generator("probe mirror", settings.seed, number)
        mirror = torch.rand(len(index), generator=random) < 0.5
        rows, here = views.here(index)
        mirror = mirror[here]
        label = labels.take(rows).long()
        label = torch.where(mirror.view(-1, 1, 1), label.flip(-1), label).to(views.device)
        counted = label != UNLABELLED
        logits = probe(views.features(rows, mirror))
        loss, gradient = weighted_cross_entropy(
            logits.detach(), torch.where(counted, label, -1), weights
        )
        pixels = total(counted.sum()).clamp_min(1)
        logits.backward(gradient / pixels)
        return {"loss": loss / pixels}

    modules = nn.ModuleDict({"trained": probe})
    optimise("probe", modules, step, steps, settings.learning_rate, recorder or Recorder())
    return probe
