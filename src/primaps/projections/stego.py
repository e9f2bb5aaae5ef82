"""STEGO (Hamilton et al., ICLR 2022): distill feature correspondences into codes.

If two tokens have similar features, their codes attract each other; otherwise they repel. Pairs of
tokens are in one image, in an image and one of its nearest neighbors, and in two random images.
Implemented from section 3 of the paper; comments name the details that come from the authors'
program.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from primaps.config import Config
from primaps.em.kmeans import fit_kmeans, pca_init
from primaps.em.training import Recorder
from primaps.features.training_data import ImageArrays, Views
from primaps.projections.projection import Head, Projection
from primaps.projections.sampling import (
    Count,
    Positive,
    Share,
    batches,
    descriptors,
    finite_loss,
    interpolate,
    nearest_images,
    partners,
    random_points,
    sample_features,
)
from primaps.utils.errors import InputError
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validate_fields


class Pairs(NamedTuple):
    """One number for each type of image pair."""

    same: float
    near: float
    random: float


_POTSDAM = Pairs(0.67, 0.25, 0.63)


@dataclass(frozen=True)
class StegoSettings:
    """Settings of STEGO.

    Attributes:
        dim: D, number of channels of the codes.
        weights: lambda, the weight of each type of pair.
        shifts: b of each type of pair: correlations above it attract, below it repel. None:
            :func:`automatic_shifts` computes them from the features.
        batch_size: number of images per step.
        learning_rate: learning rate of the Adam optimizer.
        points: number of points that are sampled per image.
        negatives: number of random partners of each image.
        neighbors: number of nearest images, of which one is sampled.
        dropout: probability that a feature channel is set to 0 in each branch of the head.
    """

    dim: Count = 70
    weights: Pairs = _POTSDAM
    shifts: Pairs | None = None
    batch_size: Count = 32
    learning_rate: Positive = 5e-4
    points: Count = 121
    negatives: Count = 5
    neighbors: Count = 7
    dropout: Share = 0.1

    def __post_init__(self) -> None:
        validate_fields(self)


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
    """Compute the cosines between all points of two images: F and S of the paper.

    Examples:
        >>> correlation(torch.tensor([[[3.0], [4.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]))
        tensor([[[0.6000, 0.8000]]])
    """
    return F.normalize(one, dim=1).transpose(1, 2) @ F.normalize(other, dim=1)


def centered(correlations: Float[Tensor, "b p q"]) -> Float[Tensor, "b p q"]:
    """Subtract the mean of each point, which weakens the effect of large objects on small ones.

    Then the mean of the batch is added, as in the authors' program. The paper does not mention it,
    but the published shifts b are relative to it.
    """
    return correlations - correlations.mean(2, keepdim=True) + correlations.mean()


def correspondence_loss(
    features: Float[Tensor, "b p q"], codes: Float[Tensor, "b p q"], shift: float
) -> Float[Tensor, ""]:
    """Compute L_corr of the paper: minus the mean of ``max(S, 0) (F - b)``.

    Args:
        features: F, centered correlations of features.
        codes: S, correlations of codes; negative values are 0, because orthogonal codes are
            distant enough.
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

    The head is applied to features at random points. The paper applies it to all features and
    samples the codes, which is equal for the linear branch and several times slower.

    Args:
        features: features of N images and their flips; N is at least 2.
        steps: number of optimizer steps.
        settings: settings with shifts.
        seed: random seed.
        progress: progress callback; it gets the mean correlation of codes for each type of pair.
            Values near 1 for all types mean a collapse, and values near 0 no attraction.

    Returns:
        A projection without clusters; its ``about`` has the settings.

    Raises:
        InputError: fewer than 2 images, settings without shifts, or features with NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    count, channels = len(features), features.shape[1]
    if (shifts := settings.shifts) is None:
        raise InputError("STEGO needs shifts in its settings; automatic_shifts computes them")
    images = descriptors(features)
    neighbors = nearest_images(images, settings.neighbors).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(channels, settings.dim).to(images.device)
    optimizer = torch.optim.Adam(head.parameters(), lr=settings.learning_rate)
    for step, index in enumerate(batches(count, settings.batch_size, steps, "STEGO", seed), 1):
        one, near, others = sample_pairs(features, index, neighbors, settings, generator)
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
        means = {name: s.mean().item() for name, (_, s) in zip(Pairs._fields, pairs, strict=True)}
        progress("STEGO", step, steps, {"loss": finite_loss(loss, step), **means})
    about = {"method": "stego", "steps": steps, "seed": seed, "images": count}
    chosen = {**asdict(settings), "weights": settings.weights._asdict(), "shifts": shifts._asdict()}
    return Projection(head, None, "stego", {**about, "settings": chosen})


def sample_pairs(
    features: ImageArrays,
    index: Tensor,
    neighbors: Tensor,
    settings: StegoSettings,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return features at random points of images and of a neighbor of each, and random partners."""
    size = len(index)
    if size < 2:
        raise InputError("STEGO compares images and needs at least 2 in a batch")
    pick = torch.randint(neighbors.shape[1], (size,), generator=generator)
    one = sample_features(features, index, generator)
    near = sample_features(features, neighbors[index, pick], generator)
    points = [random_points(size, settings.points, generator) for _ in range(2)]
    others = [partners(size, generator) for _ in range(settings.negatives)]
    return interpolate(one, points[0]), interpolate(near, points[1]), others


SHIFT_STEPS = 184
"""k-means steps for the automatic shifts: those of the baseline on Cityscapes."""
SHIFT_BATCHES = 16
FACTOR, LARGEST_SHARE = 2.0, 0.7
"""Share of attracting pairs: this multiple of pairs in one class, and its maximum."""


def automatic_shifts(
    features: ImageArrays,
    settings: StegoSettings,
    classes: int,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> Pairs:
    """Compute shifts b from K and the classes of the k-means baseline (Eq. 9).

    The paper tunes b for each backbone and data set. It determines the share of point pairs that
    attract: pairs whose centered correlation is above b. If too many pairs attract, all codes
    become equal. If too few attract, classes are split. Here the shares are fixed, and b is the
    quantile of the centered correlations in 16 batches.

    - Random pairs of images: 1 / K, the probability that two points have the same class if classes
      are equally large.
    - One image, and nearest neighbors: twice the probability that both points have the same class
      of the baseline, at most 0.7. Few pairs of points are similar in street scenes, and most in
      aerial images. Both constants were tuned (docs/notes/projections.md).

    Args:
        features: features of N images and their flips; N is at least 2.
        classes: K, the number of classes.

    Raises:
        InputError: more than twice as many classes as channels, or features with NaN.
    """
    images = descriptors(features)
    views = Views(features, device=images.device)
    recorder = Recorder(progress=progress)
    start = pca_init(views, classes)
    prototypes = fit_kmeans(views, start, SHIFT_STEPS, Config(classes, seed=seed), recorder)
    directions = F.normalize(prototypes.direction.detach(), dim=1)
    generator = torch.Generator().manual_seed(seed)
    neighbors = nearest_images(images, settings.neighbors).cpu()
    values: list[list[Tensor]] = [[], [], []]
    same_class: list[list[Tensor]] = [[], []]
    for index in batches(len(features), settings.batch_size, SHIFT_BATCHES, "shifts", seed):
        one, near, others = sample_pairs(features, index, neighbors, settings, generator)
        found, found_near = ((directions @ points).argmax(1) for points in (one, near))
        for kind, other in enumerate((one, near, one[others[0]])):
            values[kind].append(centered(correlation(one, other)).flatten())
        for kind, labels in enumerate((found, found_near)):
            same_class[kind].append((found[:, :, None] == labels[:, None]).float().mean())
    probabilities = (torch.stack(each).mean().item() for each in same_class)
    shares = (
        *(min(LARGEST_SHARE, FACTOR * probability) for probability in probabilities),
        1 / classes,
    )
    return Pairs(*(_quantile(v, 1 - share) for v, share in zip(values, shares, strict=True)))


def _quantile(values: list[Tensor], share: float) -> float:
    joined = torch.cat(values)
    return joined.kthvalue(max(1, round(share * len(joined)))).values.item()
