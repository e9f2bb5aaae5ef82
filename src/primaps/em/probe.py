"""The supervised linear probe, the upper bound that the paper compares with."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from primaps.config import Config
from primaps.em.em import weighted_cross_entropy
from primaps.em.training import Recorder, optimize
from primaps.features.extract import UNLABELED
from primaps.features.training_data import ImageArrays, Views, batch_indices
from primaps.utils.distributed import total
from primaps.utils.seeding import generator


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
    labels: ImageArrays,
    steps: int,
    config: Config,
    recorder: Recorder | None = None,
) -> LinearProbe:
    """Minimize the cross-entropy at image size with Adam, initialized with zeros.

    Half of the images of a batch are flipped; none are augmented.

    Args:
        labels: classes (H, W) of each image at image size, 255 = not counted.
        steps: number of steps of Adam.
        config: only classes, batch size, learning rate and seed are used.
    """
    classes, channels = config.classes, len(views.flip_average(0))
    probe = LinearProbe(torch.zeros(classes, channels)).to(views.device)
    weights = torch.ones(classes, device=views.device)

    def step(number: int) -> dict[str, Tensor]:
        index = batch_indices(number, len(views), config.batch_size, "probe", config.seed)
        random = generator("probe mirror", config.seed, number)  # the text is part of the seed
        rows, local = views.local_rows(index)
        flip = (torch.rand(len(index), generator=random) < 0.5)[local]
        label = labels.take(rows).long()
        label = torch.where(flip.view(-1, 1, 1), label.flip(-1), label).to(views.device)
        counted = label != UNLABELED
        logits = probe(views.features(rows, flip))
        loss, gradient = weighted_cross_entropy(
            logits.detach(), torch.where(counted, label, -1), weights
        )
        pixels = total(counted.sum()).clamp_min(1)
        logits.backward(gradient / pixels)
        return {"loss": loss / pixels}

    modules = nn.ModuleDict({"trained": probe})
    optimize("probe", modules, step, steps, config.learning_rate, recorder or Recorder())
    return probe
