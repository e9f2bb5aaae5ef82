"""Resizing and cropping of the protocol, with Pillow as in the numbers of the field.

Shorter side to ``size``, bilinear for images and nearest for labels, then a centered square.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Shaped, UInt8
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
    resampling = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    return image.resize(_shorter_to(size, *image.size), resampling)


def tensor_square(
    image: Shaped[Tensor, "c h w"], size: int, nearest: bool = False
) -> Shaped[Tensor, "c size size"]:
    """The protocol's crop as the authors' program makes it at evaluation: resized as a tensor.

    Bilinear without antialiasing, so that a large image keeps noise that Pillow averages away; or
    nearest neighbor, which takes the upper left of the pixels that Pillow takes the middle of.

    Examples:
        >>> tensor_square(torch.arange(16, dtype=torch.uint8).view(1, 2, 8), 1).tolist()
        [[[8]]]
    """
    width, height = _shorter_to(size, image.shape[2], image.shape[1])
    mode = {"mode": "nearest"} if nearest else {"mode": "bilinear", "align_corners": False}
    pixels = image[None].double() if nearest else image[None].float()
    scaled = F.interpolate(pixels, size=(height, width), **mode)[0]
    left, top = (round((side - size) / 2.0) for side in (width, height))
    return scaled.round()[:, top : top + size, left : left + size].to(image.dtype)


def _shorter_to(size: int, width: int, height: int) -> tuple[int, int]:
    """Width and height that an image is scaled to."""
    if width <= height:
        target = (size, max(1, int(size * height / width)))
    else:
        target = (max(1, int(size * width / height)), size)
    if target[0] * target[1] > MOST_PIXELS:
        raise ImageError(
            f"an image of {width}x{height} pixels would have {target[0]}x{target[1]} with a "
            f"shorter side of {size}: cut it into pieces"
        )
    return target


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Cut the centered square of ``size`` pixels out of an image that is at least that large.

    Examples:
        >>> center_crop(Image.new("RGB", (429, 322)), 322).size
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
