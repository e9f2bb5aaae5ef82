"""PriMaPs-EM (section 3.2): expectation and maximization on features.

A frozen backbone gives the same features in every epoch, so training touches nothing but
``Views``, the masks and the K x C prototypes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from primaps.config import Config
from primaps.em.loop import optimize
from primaps.em.pixels import assign, confidence_sum, weighted_cross_entropy
from primaps.em.prototypes import Prototypes
from primaps.em.recorder import HistoryLine, Recorder, mean_of_steps
from primaps.features.feature_cache import Rows
from primaps.features.views import Views, batch_indices
from primaps.utils.distributed import total


def focal_weights(confidence: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Class weights ``(1 - chi_k)^2`` of the focal loss (Eq. 10).

    Args:
        confidence: chi, the mean softmax probability of each class over batch and positions.
    """
    return (1 - confidence) ** 2


@torch.no_grad()
def momentum_update(momentum: nn.Module, student: nn.Module, decay: float) -> None:
    """Eq. 11: ``momentum = decay * momentum + (1 - decay) * student``, in place."""
    for slow, fast in zip(momentum.parameters(), student.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


def momentum_decay(step: int, every: int, momentum: float, ramp: bool) -> float | None:
    """Decay of the moving average after a step of Adam (from 1); None if it is not updated then.

    Eq. 11 has a constant decay. With ``ramp`` it grows as in the authors' program: the first update
    follows batch 11, the first two copy the student, and the n-th decays by 1 - 1/n at most.

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


def fit_em(
    views: Views,
    masks: Rows,
    start: Prototypes,
    steps: int,
    config: Config,
    recorder: Recorder | None = None,
) -> Prototypes:
    """Moving-average stochastic EM from given prototypes (Eq. 10 and 11).

    E-step: the momentum prototypes predict on the clean image at image size, and every mask takes
    the class that they predict most often inside it. M-step: one step of Adam on the focal loss of
    the student on the augmented view. The momentum prototypes follow the student.

    Args:
        masks: proposals (H, W) of each image at image size, 0 = ignore.
        steps: of Adam.
        config: batch size, learning rate, momentum, loss size and seed are used.

    Returns:
        The momentum prototypes.
    """
    student, momentum = copy.deepcopy(start), copy.deepcopy(start).requires_grad_(False)

    def step(number: int) -> dict[str, Tensor]:
        index = batch_indices(number, len(views), config.batch_size, "EM", config.seed)
        batch = views.batch(index, number, config.seed)
        mask = masks.take(batch.rows)
        mask = torch.where(batch.flip.view(-1, 1, 1), mask.flip(-1), mask).to(views.device)
        if config.loss_size == "feature":
            mask = _at_positions(mask, (batch.clean.shape[2], batch.clean.shape[3]))
        height, width = mask.shape[1:]
        pixels = len(index) * height * width  # of the batch in all processes

        pseudo, counts = assign(momentum(batch.clean), mask)

        logits = student(batch.seen)
        confidence = total(confidence_sum(logits.detach(), (height, width))) / pixels
        # Eq. 10
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
        follow,
    )
    return momentum


def diagnostics(sums: Mapping[str, Tensor], steps: int) -> HistoryLine:
    """What can be told of an epoch of EM without labels.

    Returns:
        ``loss``: its mean. ``ignored``: share of pixels in no mask. ``agreement``: share of the
        others whose predicted class is that of their mask. ``entropy``: of the classes' shares
        among predictions, divided by log K, so 1 = all equal. ``empty``: the classes that no pixel
        of the epoch has.
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
