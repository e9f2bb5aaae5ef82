"""STEGO (Hamilton et al., ICLR 2022): distil feature correspondences into codes.

Where two positions have similar features, their codes are drawn together; where not, apart. The
pairs of positions lie in one image, in an image and one of its nearest neighbors, and in two
random images. Written from section 3 of the paper; what the paper leaves open is as in the
authors' program and said so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from primaps.features.training_data import ImageArrays
from primaps.projections.projection import Head, Projection
from primaps.projections.sampling import (
    batches,
    check,
    descriptors,
    draw,
    finite,
    nearest_images,
    partners,
    random_points,
    sample,
)
from primaps.utils.errors import InputError
from primaps.utils.progress import ProgressCallback, silent


class Pairs(NamedTuple):
    """One number for each kind of pair of images."""

    same: float
    near: float
    random: float


_POTSDAM = Pairs(0.67, 0.25, 0.63)


@dataclass(frozen=True)
class StegoSettings:
    """How STEGO trains a head.

    Attributes:
        dim: D, channels of the codes.
        weights: lambda of each kind of pair.
        shifts: b of each kind: correlations above it attract, below it repel. None, where nobody
            knows them: :func:`primaps.projections.automatic_shifts` takes them from the data.
        batch_size: images per step.
        learning_rate: of Adam.
        points: points drawn per image.
        negatives: random partners of each image.
        neighbors: nearest images, of which one is drawn.
        dropout: share of the feature channels that are hidden from each branch of the head.
    """

    dim: int = 70
    weights: Pairs = _POTSDAM
    shifts: Pairs | None = None
    batch_size: int = 32
    learning_rate: float = 5e-4
    points: int = 121
    negatives: int = 5
    neighbors: int = 7
    dropout: float = 0.1

    def __post_init__(self) -> None:
        counts = ("dim", "batch_size", "points", "negatives", "neighbors")
        check(self, counts, ("learning_rate",), ("dropout",))


# The authors' values, for features of DINO: ViT-B/8 for the first two, ViT-S/8 for Potsdam-3.
STEGO_PRESETS = {
    "own": StegoSettings(),
    "cityscapes": StegoSettings(100, Pairs(1.0, 0.58, 0.91), Pairs(0.46, 0.18, 0.31)),
    "cocostuff": StegoSettings(70, Pairs(0.10, 1.0, 0.15), Pairs(0.12, 0.20, 1.0)),
    "potsdam": StegoSettings(70, _POTSDAM, Pairs(0.08, 0.02, 0.46)),
}


def correlation(
    one: Float[Tensor, "b c p"], other: Float[Tensor, "b c q"]
) -> Float[Tensor, "b p q"]:
    """Cosines between all points of one image and all of another: the paper's F and S.

    Examples:
        >>> correlation(torch.tensor([[[3.0], [4.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]))
        tensor([[[0.6000, 0.8000]]])
    """
    return F.normalize(one, dim=1).transpose(1, 2) @ F.normalize(other, dim=1)


def centered(correlations: Float[Tensor, "b p q"]) -> Float[Tensor, "b p q"]:
    """Spatial centering, so that large things do not drown small ones: every point loses its mean.

    The mean of the batch is added again. The paper does not mention it, but the authors' program
    does, and the published shifts b are relative to it.
    """
    return correlations - correlations.mean(2, keepdim=True) + correlations.mean()


def correspondence_loss(
    features: Float[Tensor, "b p q"], codes: Float[Tensor, "b p q"], shift: float
) -> Float[Tensor, ""]:
    """L_corr of the paper: minus the mean of ``max(S, 0) (F - b)``.

    Args:
        features: F, correlations of features, centered.
        codes: S, correlations of codes. Below 0 they do not count: orthogonal is far enough.
        shift: b.
    """
    return -(codes.clamp_min(0) * (features - shift)).mean()


def train_stego(
    features: ImageArrays,
    steps: int,
    settings: StegoSettings,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> Projection:
    """Train a head on cached features of N images.

    Features are sampled at the random points first and the head is applied there. The paper
    samples the codes, which is the same for the linear branch and several times slower.

    Args:
        features: of N images and their flipped images; N at least 2.
        steps: of Adam, each on ``batch_size`` images, as many neighbors and random pairs.
        progress: told the mean correlation of codes for each kind of pair: near 1 for all kinds
            means collapse, near 0 for all kinds that nothing attracts.

    Returns:
        A projection without clusters; its ``about`` holds the settings.

    Raises:
        InputError: fewer than 2 images, settings without shifts, or features with NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    count, channels = len(features), features.shape[1]
    if (shifts := settings.shifts) is None:
        raise InputError("STEGO needs shifts in its settings: automatic_shifts finds some")
    images = descriptors(features)
    neighbors = nearest_images(images, settings.neighbors).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(channels, settings.dim).to(images.device)
    optimizer = torch.optim.Adam(head.parameters(), lr=settings.learning_rate)
    for step, index in enumerate(batches(count, settings.batch_size, steps, "STEGO", seed), 1):
        one, near, others = draw_points(features, index, neighbors, settings, generator)
        code, code_near = (
            head.tokens(f.transpose(1, 2), settings.dropout, generator).transpose(1, 2)
            for f in (one, near)
        )
        pairs = [
            (correlation(one, one), correlation(code, code)),
            (correlation(one, near), correlation(code, code_near)),
            (
                torch.cat([correlation(one, one[i]) for i in others]),
                torch.cat([correlation(code, code[i]) for i in others]),
            ),
        ]
        losses = [
            correspondence_loss(centered(f), s, b) for (f, s), b in zip(pairs, shifts, strict=True)
        ]
        loss = torch.stack([w * x for w, x in zip(settings.weights, losses, strict=True)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        figures = {name: s.mean().item() for name, (_, s) in zip(Pairs._fields, pairs, strict=True)}
        progress("STEGO", step, steps, {"loss": finite(loss, step), **figures})
    about = {"method": "stego", "steps": steps, "seed": seed, "images": count}
    chosen = {**asdict(settings), "weights": settings.weights._asdict(), "shifts": shifts._asdict()}
    return Projection(head, None, "stego", {**about, "settings": chosen})


def draw_points(
    features: ImageArrays,
    index: Tensor,
    neighbors: Tensor,
    settings: StegoSettings,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Features at random points of images and of a neighbor of each, and random partners."""
    size = len(index)
    if size < 2:
        raise InputError("STEGO compares images and needs at least 2, also in a batch")
    pick = torch.randint(neighbors.shape[1], (size,), generator=generator)
    one = draw(features, index, generator)
    near = draw(features, neighbors[index, pick], generator)
    points = [random_points(size, settings.points, generator) for _ in range(2)]
    others = [partners(size, generator) for _ in range(settings.negatives)]
    return sample(one, points[0]), sample(near, points[1]), others
