"""PriMaPs-EM (section 3.2): k-means start, then expectation and maximisation on cached features.

A frozen backbone gives the same features in every epoch, so they are computed once. Training
touches nothing but ``Views``, the masks and the K x C prototypes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from primaps.imagesize import focal_step, predict_classes
from primaps.progress import Report, silent
from primaps.prototypes import (
    Prototypes,
    kmeans_loss,
    momentum_update,
    principal_directions,
    vote,
)


@dataclass(frozen=True)
class Views:
    """Cached feature maps of the training images.

    Attributes:
        clean: (2, N, C, h, w) half precision; [0] of each image and [1] of its mirror image.
        augmented: (V, N, C, h, w) of photometrically augmented images; V may be 0.
        mirrored: (V, N), which of the augmented images were mirrored.
    """

    clean: Float[Tensor, "2 n c h w"]
    augmented: Float[Tensor, "v n c h w"]
    mirrored: Bool[Tensor, "v n"]

    def __len__(self) -> int:
        return self.clean.shape[1]


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
    """

    batch_size: int = 32
    learning_rate: float = 0.005
    momentum: float = 0.98
    momentum_every: int = 10
    momentum_ramp: bool = True


def batches(
    count: int, batch_size: int, steps: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Indices of ``steps`` random batches; every epoch is a new permutation, its rest dropped."""
    batch_size = min(batch_size, count)
    done = 0
    while done < steps:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - batch_size + 1, batch_size):
            if done == steps:
                return
            yield order[start : start + batch_size]
            done += 1


def fit_kmeans(
    views: Views,
    classes: int,
    steps: int,
    settings: Settings = Settings(),
    seed: int = 0,
    report: Report = silent,
) -> Prototypes:
    """Spherical k-means by stochastic gradient descent on Eq. 9, started from PCA.

    Returns:
        Prototypes with scale 1: the baseline of the paper, and where EM starts.
    """
    device = views.clean.device
    generator = torch.Generator().manual_seed(seed)
    prototypes = Prototypes(principal_directions(views.clean[0], classes)).to(device)
    optimizer = torch.optim.Adam([prototypes.direction], lr=settings.learning_rate)
    for step, index in enumerate(batches(len(views), settings.batch_size, steps, generator), 1):
        mirror = torch.rand(len(index), generator=generator) < 0.5
        features = views.clean[mirror.long().to(device), index.to(device)].float()
        loss = kmeans_loss(prototypes(features) / features.norm(dim=1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report("k-means", step, steps, {"loss": loss.item()})
    return prototypes


def fit_em(
    views: Views,
    masks: Integer[Tensor, "n H W"],
    start: Prototypes,
    steps: int,
    settings: Settings = Settings(),
    seed: int = 0,
    report: Report = silent,
) -> Prototypes:
    """Moving-average stochastic EM from given prototypes (Eq. 10 and 11).

    E-step: the momentum prototypes predict on the clean image at image size, and every mask takes
    the class that they predict most often inside it. M-step: one step of Adam on the focal loss of
    the student on the augmented view. The momentum prototypes follow the student.

    Args:
        masks: proposals at image size, 0 = ignore.

    Returns:
        The momentum prototypes.
    """
    device, size = views.clean.device, masks.shape[-2:]
    generator = torch.Generator().manual_seed(seed)
    student, momentum = copy.deepcopy(start), copy.deepcopy(start).requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), lr=settings.learning_rate)
    updates = 0
    for step, index in enumerate(batches(len(views), settings.batch_size, steps, generator), 1):
        clean, seen, mirror = _draw(views, index, generator)
        mask = masks[index.to(masks.device)].to(device)
        mask = torch.where(mirror.view(-1, 1, 1), mask.flip(-1), mask)

        prediction = predict_classes(momentum(clean), size)
        pseudo = vote(prediction, mask, len(start.scale))

        logits = student(seen)
        loss, gradient = focal_step(logits, pseudo)
        optimizer.zero_grad()
        logits.backward(gradient)
        optimizer.step()

        if step % settings.momentum_every == 0:
            updates += 1
            ramp = 1 - 1 / (updates + 1) if settings.momentum_ramp else 1.0
            momentum_update(momentum, student, min(ramp, settings.momentum))
        report(
            "EM", step, steps, {"loss": loss, **diagnostics(prediction, pseudo, len(start.scale))}
        )
    return momentum


def _draw(
    views: Views, index: Integer[Tensor, " b"], generator: torch.Generator
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"], Bool[Tensor, " b"]]:
    """Clean and augmented features of a batch, and which of its images are mirrored."""
    device, count = views.clean.device, len(views.augmented)
    if count:
        view = torch.randint(count, (len(index),), generator=generator).to(device)
        index = index.to(device)
        mirror = views.mirrored[view, index]
        seen = views.augmented[view, index].float()
        return views.clean[mirror.long(), index].float(), seen, mirror
    mirror = (torch.rand(len(index), generator=generator) < 0.5).to(device)
    clean = views.clean[mirror.long(), index.to(device)].float()
    return clean, clean, mirror


def diagnostics(
    prediction: Integer[Tensor, "b H W"], pseudo: Integer[Tensor, "b H W"], classes: int
) -> dict[str, float]:
    """What can be told without labels.

    Returns:
        ``ignored``: share of pixels in no mask. ``agreement``: share of the others whose predicted
        class is that of their mask. ``entropy``: of the classes' shares among predictions, divided
        by log K, so 1 = all equal. ``empty_classes``: classes that no pixel has.
    """
    inside = int((pseudo >= 0).sum())
    agreeing = int((prediction == pseudo).sum())  # ignored pixels are -1, which no class is
    share = torch.bincount(prediction.flatten().int(), minlength=classes).double()
    share /= prediction.numel()
    entropy = -(share * share.clamp_min(1e-12).log()).sum() / math.log(classes)
    return {
        "ignored": 1 - inside / pseudo.numel(),
        "agreement": agreeing / max(inside, 1),
        "entropy": float(entropy),
        "empty_classes": float((share == 0).sum()),
    }
