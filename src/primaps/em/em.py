"""PriMaPs-EM (section 3.2): expectation and maximization on features.

The backbone is frozen and gives the same features in every epoch. Training reads cached feature
maps and masks, and changes only the K x C prototypes. A 1x1 convolution and bilinear upsampling
commute: logits are upsampled to image size instead of features. On the CPU these steps are compiled
(:mod:`primaps.em.em_compiled`); on other devices they are the torch operations of this module.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from primaps.config import Config
from primaps.em.kmeans import Prototypes
from primaps.em.training import HistoryLine, Recorder, mean_of_steps, optimize
from primaps.features.feature_cache import MASKS
from primaps.features.training_data import ImageArrays, Views, batch_indices
from primaps.utils.bilinear import upsample
from primaps.utils.distributed import total


def fit_em(
    views: Views,
    masks: ImageArrays,
    init: Prototypes,
    steps: int,
    config: Config,
    recorder: Recorder | None = None,
) -> Prototypes:
    """Run moving-average stochastic EM (Eq. 10 and 11) from initial prototypes.

    Args:
        masks: mask proposals (H, W) of each image at image size, 0 = ignore.
        init: initial prototypes; they are not changed.
        steps: number of steps of Adam.
        config: only batch size, learning rate, momentum, loss size and seed are used.

    Returns:
        The momentum prototypes.
    """
    student, momentum = copy.deepcopy(init), copy.deepcopy(init).requires_grad_(False)

    def step(number: int) -> dict[str, Tensor]:
        index = batch_indices(number, len(views), config.batch_size, "EM", config.seed)
        batch = views.batch(index, number, config.seed)
        mask = masks.take(batch.rows)
        mask = torch.where(batch.flip.view(-1, 1, 1), mask.flip(-1), mask).to(views.device)
        if config.loss_size == "feature":
            mask = _at_tokens(mask, (batch.clean.shape[2], batch.clean.shape[3]))
        height, width = mask.shape[1:]
        pixels = len(index) * height * width  # of the whole batch, over all processes

        # E-step: the momentum prototypes label each mask of the clean image.
        pseudo, counts = assign(momentum(batch.clean), mask)

        # M-step: gradient of the focal loss (Eq. 10) of the student on the augmented image.
        logits = student(batch.augmented)
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

    def update_momentum(number: int) -> None:
        every, ramp = config.momentum_every, config.momentum_ramp
        decay = momentum_decay(number, every, config.momentum, ramp)
        if decay is not None:
            momentum_update(momentum, student, decay)  # Eq. 11

    optimize(
        "EM",
        nn.ModuleDict({"trained": student, "momentum": momentum}),
        step,
        steps,
        config.learning_rate,
        recorder or Recorder(),
        diagnostics,
        update_momentum,
    )
    return momentum


def assign(
    logits: Float[Tensor, "b k h w"], masks: Integer[Tensor, "b H W"]
) -> tuple[Integer[Tensor, "b H W"], Integer[Tensor, "b 256 k"]]:
    """E-step (section 3.2): give every mask the class that is predicted most often inside it.

    Predictions are the argmax of the upsampled logits.

    Args:
        masks: 0 = ignore, 1..255.

    Returns:
        Pseudo labels, -1 where the mask is 0 (ties go to the smaller class); and per image the
        number of pixels by mask and predicted class.
    """
    if logits.device.type == "cpu":
        from primaps.em import em_compiled

        return em_compiled.assign(logits, masks)
    return assign_torch(logits, masks)


def assign_torch(
    logits: Float[Tensor, "b k h w"], masks: Integer[Tensor, "b H W"]
) -> tuple[Integer[Tensor, "b H W"], Integer[Tensor, "b 256 k"]]:
    """:func:`assign` in torch operations."""
    size, k = masks.shape[-2:], logits.shape[1]
    prediction = torch.cat([upsample(part, size).argmax(1) for part in _parts(logits, size)])
    return vote(prediction, masks, k)


def vote(
    prediction: Integer[Tensor, "b h w"],
    masks: Integer[Tensor, "b h w"],
    classes: int,
) -> tuple[Integer[Tensor, "b h w"], Integer[Tensor, "b 256 k"]]:
    """Return pseudo labels: for each mask the class that is predicted most often inside it.

    Args:
        prediction: classes 0..K-1 predicted by the momentum prototypes.
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


def confidence_sum(
    logits: Float[Tensor, "b k h w"], size: tuple[int, int] | torch.Size
) -> Float[Tensor, " k"]:
    """Sum the softmax probability of each class over batch and pixels.

    The mean over pixels is chi of Eq. 10. The sum can be added over processes.
    """
    if logits.device.type == "cpu":
        from primaps.em import em_compiled

        return em_compiled.confidence_sum(logits, (size[0], size[1]))
    return confidence_sum_torch(logits, size)


def confidence_sum_torch(
    logits: Float[Tensor, "b k h w"], size: tuple[int, int] | torch.Size
) -> Float[Tensor, " k"]:
    """:func:`confidence_sum` in torch operations."""
    parts = _parts(logits.detach(), size)
    return sum(
        (upsample(part, size).softmax(1).sum((0, 2, 3)).double() for part in parts),
        start=logits.new_zeros(logits.shape[1], dtype=torch.float64),
    )


def weighted_cross_entropy(
    logits: Float[Tensor, "b k h w"],
    labels: Integer[Tensor, "b H W"],
    weights: Float[Tensor, " k"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "b k h w"]]:
    """Compute the cross-entropy at image size with class weights, and its gradient (Eq. 10).

    Args:
        labels: classes 0..K-1; pixels with -1 do not count.

    Returns:
        The sum over pixels, and its gradient with respect to the logits.
    """
    if logits.device.type == "cpu":
        from primaps.em import em_compiled

        return em_compiled.weighted_cross_entropy(logits, labels, weights)
    return weighted_cross_entropy_torch(logits, labels, weights)


def weighted_cross_entropy_torch(
    logits: Float[Tensor, "b k h w"],
    labels: Integer[Tensor, "b H W"],
    weights: Float[Tensor, " k"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "b k h w"]]:
    """:func:`weighted_cross_entropy` (Eq. 10) in torch operations."""
    size = labels.shape[-2:]
    loss = logits.new_zeros((), dtype=torch.float64)
    gradients = []
    parts = _parts(logits.detach(), size)
    for part, label in zip(parts, labels.long().split([len(p) for p in parts]), strict=True):
        leaf = part.clone().requires_grad_()
        value = F.cross_entropy(
            upsample(leaf, size), label, weights.to(leaf), ignore_index=-1, reduction="sum"
        )
        gradients.append(torch.autograd.grad(value, leaf)[0])
        loss += value.detach()
    return loss, torch.cat(gradients) if gradients else torch.zeros_like(logits)


def _parts(logits: Tensor, size: tuple[int, int] | torch.Size) -> list[Tensor]:
    """Split a batch into parts of at most about 1 GB at image size."""
    images = max(1, (1 << 28) // (logits.shape[1] * size[0] * size[1]))
    return list(logits.split(images)) if len(logits) else []


def focal_weights(confidence: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Return the class weights ``(1 - chi_k)^2`` of the focal loss (Eq. 10).

    Args:
        confidence: chi, the mean softmax probability of each class over batch and pixels.
    """
    return (1 - confidence) ** 2


@torch.no_grad()
def momentum_update(momentum: nn.Module, student: nn.Module, decay: float) -> None:
    """Eq. 11: ``momentum = decay * momentum + (1 - decay) * student``, in place."""
    for slow, fast in zip(momentum.parameters(), student.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


def momentum_decay(step: int, every: int, momentum: float, ramp: bool) -> float | None:
    """Return the decay of the moving average after a step (from 1); None for no update.

    The decay of Eq. 11 is constant. With ``ramp`` it increases as in the authors' program: the
    first update follows batch 11, the first two updates copy the student, and the n-th has a decay
    of at most 1 - 1/n.

    Examples:
        >>> [momentum_decay(step, 10, 0.98, ramp=False) for step in (9, 10, 11, 20)]
        [None, 0.98, None, 0.98]
        >>> [momentum_decay(step, 10, 0.98, ramp=True) for step in (1, 10, 11, 21, 41, 1001)]
        [None, None, 0.0, 0.0, 0.75, 0.98]
    """
    if not ramp:
        return None if step % every else momentum
    update, rest = divmod(step - 1, every)
    if rest or not update:
        return None
    return 0.0 if update <= 2 else min(1 - 1 / update, momentum)


def diagnostics(sums: Mapping[str, Tensor], steps: int) -> HistoryLine:
    """Return the metrics of an epoch of EM, which need no labels.

    Returns:
        ``loss``: mean loss. ``ignored``: share of pixels in no mask. ``agreement``: share of the
        other pixels whose predicted class is the class of their mask. ``entropy``: entropy of the
        predicted class shares, divided by log K. ``empty``: classes without any pixel.
    """
    share = sums["classes"] / sums["classes"].sum()
    return {
        **mean_of_steps({"loss": sums["loss"]}, steps),
        "ignored": 1 - float(sums["assigned"] / sums["pixels"]),
        "agreement": float(sums["agreeing"] / sums["assigned"].clamp_min(1)),
        "entropy": class_entropy(share),
        "empty": (share == 0).nonzero()[:, 0].tolist(),
    }


def class_entropy(share: Float[Tensor, " k"]) -> float:
    """Return the entropy of class shares divided by log K: 1 = all equal, 0 = one class has all.

    Examples:
        >>> class_entropy(torch.tensor([0.5, 0.5])), class_entropy(torch.tensor([1.0, 0.0]))
        (1.0, 0.0)
    """
    share = share.double()
    return abs(float(-(share * share.clamp_min(1e-12).log()).sum() / math.log(len(share))))


def _at_tokens(masks: Integer[Tensor, "b H W"], size: tuple[int, int]) -> Integer[Tensor, "b h w"]:
    """Return the mask at the center of each patch token."""
    rows, columns = (
        ((torch.arange(small) + 0.5) * large / small).long().to(masks.device)
        for small, large in zip(size, masks.shape[1:], strict=True)
    )
    return masks[:, rows][:, :, columns]
