"""Logits at image size: what predictions, votes and the loss are taken on.

A 1x1 convolution and bilinear upsampling commute, so logits are upsampled, never features. On the
CPU the steps of training run compiled and fused; elsewhere they are the torch operations below.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from primaps.features.collection import MASKS
from primaps.utils.bilinear import middles, neighbors


def upsample(
    logits: Float[Tensor, "b k h w"], size: tuple[int, int] | torch.Size
) -> Float[Tensor, "b k H W"]:
    """Bilinear interpolation to ``size`` (height, width) with ``align_corners=False``."""
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def largest_channel(
    probabilities: Float[Tensor, "k h w"], size: tuple[int, int]
) -> Integer[Tensor, "H W"]:
    """Channel of the largest bilinearly scaled value, of equal ones the first.

    Examples:
        >>> largest_channel(torch.eye(2).view(2, 1, 2), (1, 4)).tolist()
        [[0, 0, 1, 1]]
    """
    rows, columns = map(middles, probabilities.shape[1:], size)
    return largest_channel_at(probabilities, rows, columns)


def largest_channel_at(
    probabilities: Float[Tensor, "k h w"],
    rows: Float[np.ndarray, " n"],
    columns: Float[np.ndarray, " m"],
) -> Integer[Tensor, "n m"]:
    """The same at rows and columns that need not be whole; beyond the rim its values count.

    One channel, or on the CPU one row, at a time to spare memory.
    """
    if probabilities.device.type == "cpu":
        from primaps.em import pixels_compiled

        return pixels_compiled.largest_channel_at(probabilities, rows, columns)
    return largest_channel_at_torch(probabilities, rows, columns)


def largest_channel_at_torch(
    probabilities: Float[Tensor, "k h w"],
    rows: Float[np.ndarray, " n"],
    columns: Float[np.ndarray, " m"],
) -> Integer[Tensor, "n m"]:
    """:func:`largest_channel_at` in torch operations."""
    best = interpolate(probabilities[0], rows, columns)
    winner = torch.zeros(best.shape, dtype=torch.int16, device=best.device)
    for channel in range(1, len(probabilities)):
        value = interpolate(probabilities[channel], rows, columns)
        winner[value > best] = channel
        best = torch.maximum(best, value)
    return winner


def interpolate(
    values: Float[Tensor, "h w"],
    rows: Float[np.ndarray, " n"],
    columns: Float[np.ndarray, " m"],
) -> Float[Tensor, "n m"]:
    """Bilinear interpolation at rows and columns that need not be whole; beyond the rim its values.

    Examples:
        >>> values = torch.tensor([[0.0, 4.0]])
        >>> interpolate(values, np.array([0.0]), np.array([-0.5, 0.25, 1.0])).tolist()
        [[0.0, 1.0, 4.0]]
    """
    for dim, places in ((0, rows), (1, columns)):
        low, high, share = (
            torch.from_numpy(each).to(values.device)
            for each in neighbors(places, values.shape[dim])
        )
        one, other = values.index_select(dim, low), values.index_select(dim, high)
        share = share.to(values.dtype)
        values = torch.lerp(one, other, share[:, None] if dim == 0 else share)
    return values


def assign(
    logits: Float[Tensor, "b k h w"], masks: Integer[Tensor, "b H W"]
) -> tuple[Integer[Tensor, "b H W"], Integer[Tensor, "b 256 k"]]:
    """E-step (section 3.2): every mask takes the class that the upsampled logits predict most often
    inside it.

    Args:
        masks: 0 = ignore, 1..255.

    Returns:
        Pseudo labels, -1 where the mask is 0 (ties go to the smaller class); and per image the
        number of pixels by mask and predicted class.
    """
    if logits.device.type == "cpu":
        from primaps.em import pixels_compiled

        return pixels_compiled.assign(logits, masks)
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
    """Pseudo labels: inside each mask, the class that is predicted most often.

    Args:
        prediction: classes 0..K-1 of the momentum prototypes.
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
    """Softmax probability of each class, summed over batch and pixels: chi of Eq. 10 before the
    division, so that it can be summed over processes."""
    if logits.device.type == "cpu":
        from primaps.em import pixels_compiled

        return pixels_compiled.confidence_sum(logits, (size[0], size[1]))
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
    """Cross-entropy at image size with class weights, and its gradient.

    Args:
        labels: classes 0..K-1; pixels with -1 contribute nothing.

    Returns:
        The sum over pixels, and its gradient with respect to the small logits.
    """
    if logits.device.type == "cpu":
        from primaps.em import pixels_compiled

        return pixels_compiled.weighted_cross_entropy(logits, labels, weights)
    return weighted_cross_entropy_torch(logits, labels, weights)


def weighted_cross_entropy_torch(
    logits: Float[Tensor, "b k h w"],
    labels: Integer[Tensor, "b H W"],
    weights: Float[Tensor, " k"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "b k h w"]]:
    """:func:`weighted_cross_entropy` in torch operations."""
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
        loss += value.detach()  # Eq. 10, before the mean
    return loss, torch.cat(gradients) if gradients else torch.zeros_like(logits)


def _parts(logits: Tensor, size: tuple[int, int] | torch.Size) -> list[Tensor]:
    """Parts of a batch of at most about 1 GB each at image size."""
    images = max(1, (1 << 28) // (logits.shape[1] * size[0] * size[1]))
    return list(logits.split(images)) if len(logits) else []
