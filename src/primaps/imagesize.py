"""Logits at image size: what predictions, votes and the loss are taken on.

A 1x1 convolution and bilinear upsampling commute, so logits are upsampled, never features. On the
CPU the steps of training run compiled and fused; elsewhere they are the torch operations below.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from primaps.prototypes import class_confidence, focal_loss


def upsample(
    logits: Float[Tensor, "b k h w"], size: tuple[int, int] | torch.Size
) -> Float[Tensor, "b k H W"]:
    """Bilinear interpolation to ``size`` (height, width) with ``align_corners=False``."""
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def predict_classes(
    logits: Float[Tensor, "b k h w"], size: tuple[int, int] | torch.Size
) -> Integer[Tensor, "b H W"]:
    """Class of the largest upsampled logit at each pixel."""
    if logits.device.type == "cpu":
        from primaps import _imagesize_cpu

        return _imagesize_cpu.predict_classes(logits, (size[0], size[1]))
    return predict_classes_torch(logits, size)


def predict_classes_torch(
    logits: Float[Tensor, "b k h w"], size: tuple[int, int] | torch.Size
) -> Integer[Tensor, "b H W"]:
    """:func:`predict_classes` in torch operations, image by image."""
    return torch.cat([upsample(one[None], size).argmax(1) for one in logits]).to(torch.int16)


def focal_step(
    logits: Float[Tensor, "b k h w"], pseudo_labels: Integer[Tensor, "b H W"]
) -> tuple[float, Float[Tensor, "b k h w"]]:
    """Focal loss (Eq. 10) at image size and its gradient with respect to the small logits.

    Args:
        pseudo_labels: classes 0..K-1, or -1 for ignored pixels.
    """
    if logits.device.type == "cpu":
        from primaps import _imagesize_cpu

        return _imagesize_cpu.focal_step(logits, pseudo_labels)
    return focal_step_torch(logits, pseudo_labels)


def focal_step_torch(
    logits: Float[Tensor, "b k h w"], pseudo_labels: Integer[Tensor, "b H W"]
) -> tuple[float, Float[Tensor, "b k h w"]]:
    """:func:`focal_step` in torch operations.

    The class weights depend on the whole batch and carry no gradient, so the loss is taken image
    by image: memory is that of one image at full size, not of the batch.
    """
    size, b = pseudo_labels.shape[-2:], len(logits)
    logits = logits.detach()
    confidence = torch.stack([class_confidence(upsample(one[None], size)) for one in logits])
    losses, gradients = [], []
    for one, label in zip(logits, pseudo_labels.long(), strict=True):
        leaf = one[None].requires_grad_()
        loss = focal_loss(upsample(leaf, size), label[None], confidence.mean(0)) / b
        gradients.append(torch.autograd.grad(loss, leaf)[0])
        losses.append(loss.detach())
    return torch.stack(losses).sum().item(), torch.cat(gradients)
