"""Resizing and cropping of the protocol, with Pillow as in the numbers of the field.

Shorter side to ``size``, bilinear for images and nearest for labels, then a centred square.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from primaps.data.reading import ImageError

MOST_PIXELS = 89_478_485
"""Of an image that is scaled: from here on Pillow, too, warns of what a file claims to hold."""


def to_tensor(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """8-bit RGB image as a channels-first tensor in 0..255."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def resize_shorter(image: Image.Image, size: int, nearest: bool = False) -> Image.Image:
    """Scale so that the shorter side has ``size`` pixels; the longer side is rounded down.

    Raises:
        ImageError: the image is so long that it would have more than ``MOST_PIXELS`` then.

    Examples:
        >>> resize_shorter(Image.new("RGB", (480, 360)), 322).size
        (429, 322)
    """
    width, height = image.size
    if width <= height:
        target = (size, max(1, int(size * height / width)))
    else:
        target = (max(1, int(size * width / height)), size)
    if target[0] * target[1] > MOST_PIXELS:
        raise ImageError(
            f"an image of {width}x{height} pixels would have {target[0]}x{target[1]} with a "
            f"shorter side of {size}: cut it into pieces"
        )
    return image.resize(target, Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Cut the centred square of ``size`` pixels out of an image that is at least that large.

    Examples:
        >>> centre_crop(Image.new("RGB", (429, 322)), 322).size
        (322, 322)
    """
    left, top = (round((side - size) / 2.0) for side in image.size)
    return image.crop((left, top, left + size, top + size))


def fit_to_patches(
    image: Image.Image, size: int, patch_size: int, longest: float = 4.0
) -> Image.Image:
    """Scale a whole image for a backbone: shorter side ``size``, both sides multiples of a patch.

    The longer side is at most ``longest * size``, so that a panorama of 8000 x 300 pixels does not
    become a sequence of 15,000 patches; the shorter side then becomes smaller than ``size``.

    Examples:
        >>> fit_to_patches(Image.new("RGB", (480, 360)), 322, 14).size
        (434, 322)
        >>> fit_to_patches(Image.new("RGB", (8000, 300)), 322, 14).size
        (1288, 42)
    """
    scale = min(size / min(image.size), longest * size / max(image.size))
    sides = (max(1, round(side * scale / patch_size)) * patch_size for side in image.size)
    return image.resize(tuple(sides), Image.Resampling.BILINEAR)  # type: ignore[arg-type]
