"""Photometric augmentation of the student's images, as in the authors' program."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from primaps.backbones.backbone import Backbone, network_input
from primaps.utils.seeding import generator

CHANCES = 7
"""Number of uniform random numbers that :func:`photometric` needs per image."""


def photometric(
    images: Float[Tensor, "b 3 H W"], chances: Float[Tensor, "b 7"]
) -> Float[Tensor, "b 3 H W"]:
    """Blur and recolor images; the result for an image does not depend on its batch.

    Every image is blurred with a 21 x 21 Gaussian of standard deviation 0.1 to 2. With equal
    probability either brightness, contrast, saturation and hue are jittered by up to 0.1 (in 30 %
    of these images) or the image becomes gray (in 10 %).

    Args:
        images: RGB in [0, 1].
        chances: uniform in [0, 1): blur, branch, apply, brightness, contrast, saturation, hue.

    Examples:
        >>> photometric(torch.rand(2, 3, 32, 32), torch.rand(2, CHANCES)).shape
        torch.Size([2, 3, 32, 32])
    """
    from kornia import enhance
    from kornia.color import rgb_to_grayscale
    from kornia.filters import gaussian_blur2d

    blur, branch, apply, *amounts = chances.to(images).T
    brightness, contrast, saturation, hue = (0.2 * amount - 0.1 for amount in amounts)
    images = gaussian_blur2d(images, (21, 21), (0.1 + 1.9 * blur)[:, None].expand(-1, 2))
    jittered = enhance.adjust_brightness_accumulative(images, 1 + brightness)
    jittered = enhance.adjust_contrast_with_mean_subtraction(jittered, 1 + contrast)
    jittered = enhance.adjust_saturation_with_gray_subtraction(jittered, 1 + saturation)
    jittered = enhance.adjust_hue(jittered, hue * 2 * torch.pi)
    gray = rgb_to_grayscale(images).expand_as(images)
    jitter = ((branch < 0.5) & (apply < 0.3)).view(-1, 1, 1, 1)
    to_gray = ((branch >= 0.5) & (apply < 0.1)).view(-1, 1, 1, 1)
    return torch.where(jitter, jittered, torch.where(to_gray, gray, images)).clamp(0, 1)


def augmented(
    backbone: Backbone,
    images: UInt8[Tensor, "b 3 H W"],
    flip: Bool[Tensor, " b"],
    chances: Float[Tensor, "b 7"],
) -> Float[Tensor, "b c h w"]:
    """Compute features of images, flipped where ``flip`` is set and augmented with ``chances``."""
    inputs = network_input(backbone, images)
    flip = flip.to(inputs.device).view(-1, 1, 1, 1)
    return backbone(photometric(torch.where(flip, inputs.flip(-1), inputs), chances))


def view_chances(view: int, content: str) -> Float[Tensor, " 8"]:
    """Return the random numbers of a view: the flip (if below 0.5), then ``chances``.

    They depend on the content of the image and not on the seed, so all fits share the views.
    """
    return torch.rand(1 + CHANCES, generator=generator("view", view, content))
