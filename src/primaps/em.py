"""PriMaPs-EM (section 3.2): k-means start, then expectation and maximisation on features.

A frozen backbone gives the same features in every epoch, so training touches nothing but
``Views``, the masks and the K x C prototypes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from primaps.data.store import Rows
from primaps.distributed import total
from primaps.imagesize import assign, confidence_sum, weighted_cross_entropy
from primaps.prototypes import (
    Prototypes,
    focal_weights,
    kmeans_loss,
    moments,
    momentum_update,
    principal_directions,
)
from primaps.seeding import generator
from primaps.training import Figures, Recorder, mean_figures, optimise
from primaps.views import Views, batch_indices


@dataclass(frozen=True)
class Settings:
    """Optimisation of PriMaPs-EM; the defaults are the paper's.

    Attributes:
        batch_size: images per step; the last incomplete batch of an epoch is dropped.
        learning_rate: of Adam, for k-means and EM.
        momentum: decay of the moving average (Eq. 11).
        momentum_every: steps between its updates.
        momentum_ramp: let the decay of the n-th update be min(1 - 1/(n+1), momentum), as the
            authors' program does; without it the decay is constant as in Eq. 11.
        loss_size: ``image`` takes votes and the loss at image size, as the paper; ``feature`` at
            that of the feature map, with the mask at the middle of each position.
        seed: everything random follows from it.
    """

    batch_size: int = 32
    learning_rate: float = 0.005
    momentum: float = 0.98
    momentum_every: int = 10
    momentum_ramp: bool = True
    loss_size: str = "image"
    seed: int = 0


def pca_start(views: Views, classes: int) -> Prototypes:
    """The first principal components of the clean features of all images, as prototypes."""
    count, summed, second = moments(views.project(chunk[:, 0]) for chunk in views.clean.chunks())
    number = total(torch.tensor([count], device=views.device))
    directions = principal_directions(int(number), total(summed), total(second), classes)
    return Prototypes(directions).to(views.device)


def fit_kmeans(
    views: Views,
    start: Prototypes,
    steps: int,
    settings: Settings = Settings(),
    recorder: Recorder | None = None,
    stage: str = "k-means",
) -> Prototypes:
    """Spherical k-means by stochastic gradient descent on Eq. 9.

    Args:
        stage: its name in progress and history.

    Returns:
        Prototypes with scale 1: the baseline of the paper, and where EM starts.
    """
    prototypes = copy.deepcopy(start)
    prototypes.scale.requires_grad_(False)

    def step(number: int) -> dict[str, Tensor]:
        size = settings.batch_size
        index = batch_indices(number, len(views), size, "k-means", settings.seed)
        random = generator("k-means mirror", settings.seed, number)
        mirror = torch.rand(len(index), generator=random) < 0.5
        rows, here = views.here(index)
        if not len(rows):
            return {"loss": torch.zeros((), device=views.device)}
        features = views.features(rows, mirror[here])
        cosines = prototypes(features) / features.norm(dim=1, keepdim=True)
        loss = kmeans_loss(cosines) * (len(rows) / len(index))
        loss.backward()
        return {"loss": loss}

    optimise(
        stage,
        nn.ModuleDict({"trained": prototypes}),
        step,
        steps,
        settings.learning_rate,
        recorder or Recorder(),
    )
    prototypes.scale.requires_grad_()
    return prototypes


def fit_em(
    views: Views,
    masks: Rows,
    start: Prototypes,
    steps: int,
    settings: Settings = Settings(),
    recorder: Recorder | None = None,
) -> Prototypes:
    """Moving-average stochastic EM from given prototypes (Eq. 10 and 11).

    E-step: the momentum prototypes predict on the clean image at image size, and every mask takes
    the class that they predict most often inside it. M-step: one step of Adam on the focal loss of
    the student on the augmented view. The momentum prototypes follow the student.

    Args:
        masks: proposals (H, W) of each image at image size, 0 = ignore.

    Returns:
        The momentum prototypes.
    """
    student, momentum = copy.deepcopy(start), copy.deepcopy(start).requires_grad_(False)

    def step(number: int) -> dict[str, Tensor]:
        index = batch_indices(number, len(views), settings.batch_size, "EM", settings.seed)
        clean, seen, mirror, rows = views.batch(index, number, settings.seed)
        mask = masks.take(rows)
        mask = torch.where(mirror.view(-1, 1, 1), mask.flip(-1), mask).to(views.device)
        if settings.loss_size == "feature":
            mask = _at_positions(mask, (clean.shape[2], clean.shape[3]))
        height, width = mask.shape[1:]
        pixels = len(index) * height * width  # of the batch in all processes

        pseudo, counts = assign(momentum(clean), mask)

        logits = student(seen)
        confidence = total(confidence_sum(logits.detach(), (height, width))) / pixels
        loss, gradient = weighted_cross_entropy(logits.detach(), pseudo, focal_weights(confidence))
        logits.backward(gradient / pixels)
        return {
            "loss": loss / pixels,
            "pixels": counts.sum(),
            "assigned": counts[:, 1:].sum(),
            "agreeing": counts[:, 1:].amax(2).sum(),
            "classes": counts.sum((0, 1)),
        }

    def follow(number: int) -> None:
        if number % settings.momentum_every == 0:
            updates = number // settings.momentum_every
            ramp = 1 - 1 / (updates + 1) if settings.momentum_ramp else 1.0
            momentum_update(momentum, student, min(ramp, settings.momentum))

    optimise(
        "EM",
        nn.ModuleDict({"trained": student, "momentum": momentum}),
        step,
        steps,
        settings.learning_rate,
        recorder or Recorder(),
        diagnostics,
        follow,
    )
    return momentum


def diagnostics(sums: Mapping[str, Tensor], steps: int) -> Figures:
    """What can be told of an epoch of EM without labels.

    Returns:
        ``loss``: its mean. ``ignored``: share of pixels in no mask. ``agreement``: share of the
        others whose predicted class is that of their mask. ``entropy``: of the classes' shares
        among predictions, divided by log K, so 1 = all equal. ``empty``: the classes that no pixel
        of the epoch has.
    """
    share = sums["classes"] / sums["classes"].sum()
    return {
        **mean_figures({"loss": sums["loss"]}, steps),
        "ignored": 1 - float(sums["assigned"] / sums["pixels"]),
        "agreement": float(sums["agreeing"] / sums["assigned"].clamp_min(1)),
        "entropy": class_entropy(share),
        "empty": (share == 0).nonzero()[:, 0].tolist(),
    }


def class_entropy(share: Float[Tensor, " k"]) -> float:
    """Entropy of the classes' shares divided by log K: 1 = all equal, 0 = one has all.

    Examples:
        >>> class_entropy(torch.tensor([0.5, 0.5])), class_entropy(torch.tensor([1.0, 0.0]))
        (1.0, 0.0)
    """
    share = share.double()
    return abs(float(-(share * share.clamp_min(1e-12).log()).sum() / math.log(len(share))))


def _at_positions(
    masks: Integer[Tensor, "b H W"], size: tuple[int, int]
) -> Integer[Tensor, "b h w"]:
    """The mask at the middle of each position of a feature map."""
    rows, columns = (
        ((torch.arange(small) + 0.5) * large / small).long().to(masks.device)
        for small, large in zip(size, masks.shape[1:], strict=True)
    )
    return masks[:, rows][:, :, columns]
