"""Scale and crop images and label maps, with Pillow as in the published numbers.

The shorter side is scaled to ``size``, bilinearly for images and by nearest neighbor for labels;
then the center crop is taken.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Integer, Shaped, UInt8
from PIL import Image
from torch import Tensor

from primaps.config import Resize
from primaps.data.dataset import Dataset, Sample
from primaps.data.images import ImageError, image_size

MAX_PIXELS = 89_478_485
"""Maximum number of pixels of a scaled image; Pillow warns of larger files, too."""


def to_tensor(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """Convert an 8-bit RGB image to a tensor with channels first, in 0 to 255."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def resize_shorter(image: Image.Image, size: int, nearest: bool = False) -> Image.Image:
    """Scale an image until its shorter side has ``size`` pixels; the longer side is rounded down.

    Raises:
        ImageError: the scaled image would have more than ``MAX_PIXELS`` pixels.

    Examples:
        >>> resize_shorter(Image.new("RGB", (480, 360)), 322).size
        (429, 322)
    """
    resampling = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    return image.resize(_shorter_to(size, *image.size), resampling)


def tensor_square(
    image: Shaped[Tensor, "c h w"], size: int, nearest: bool = False
) -> Shaped[Tensor, "c size size"]:
    """Scale a tensor and take its center crop, as the authors' program does at evaluation.

    Bilinear scaling is without antialiasing: a large image keeps noise that Pillow averages away.
    Nearest neighbor takes the upper left source pixel of each block; Pillow takes the middle one.

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
    """Return width and height of a scaled image."""
    if width <= height:
        target = (size, max(1, int(size * height / width)))
    else:
        target = (max(1, int(size * width / height)), size)
    if target[0] * target[1] > MAX_PIXELS:
        raise ImageError(
            f"an image of {width}x{height} pixels would have {target[0]}x{target[1]} pixels at "
            f"size {size}; cut it into tiles"
        )
    return target


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Take the center crop of ``size`` pixels of an image with at least this size.

    Examples:
        >>> center_crop(Image.new("RGB", (429, 322)), 322).size
        (322, 322)
    """
    left, top = (round((side - size) / 2.0) for side in image.size)
    return image.crop((left, top, left + size, top + size))


def fit_to_patches(
    image: Image.Image, size: int, patch_size: int, longest: float = 4.0
) -> Image.Image:
    """Scale a whole image for a backbone; both sides become multiples of the patch size.

    Args:
        image: the image.
        size: shorter side in pixels.
        patch_size: side of a patch in pixels.
        longest: maximum of the longer side as a multiple of ``size``. Beyond it the shorter side
            becomes smaller than ``size``; otherwise a panorama of 8000 x 300 pixels would have
            15,000 patches.

    Examples:
        >>> fit_to_patches(Image.new("RGB", (480, 360)), 322, 14).size
        (434, 322)
        >>> fit_to_patches(Image.new("RGB", (8000, 300)), 322, 14).size
        (1288, 42)
    """
    scale = min(size / min(image.size), longest * size / max(image.size))
    sides = (max(1, round(side * scale / patch_size)) * patch_size for side in image.size)
    return image.resize(tuple(sides), Image.Resampling.BILINEAR)  # type: ignore[arg-type]


def square(image: Image.Image, size: int) -> UInt8[Tensor, "3 size size"]:
    """Scale the shorter side of an image to ``size`` and take the center crop."""
    return to_tensor(center_crop(resize_shorter(image, size), size))


def load_pair(
    data: Dataset, sample: Sample, size: int | None = None, resize: Resize = "pillow"
) -> tuple[UInt8[Tensor, "3 h w"], Integer[Tensor, "h w"]]:
    """Load an image and its label map.

    Args:
        size: side of the center crop in pixels, as in the protocol: the shorter side is scaled to
            it, bilinearly for the image and by nearest neighbor for the label map. None loads both
            whole and unscaled.
        resize: scaling of center crops: ``pillow``, or ``tensor`` as in the authors' program
            (:func:`tensor_square`).

    Raises:
        ImageError: the label map is missing, or does not fit the image or the classes.
    """
    image = sample.load()
    classes = _label_of_size(data, sample, image.size)
    if size is None:
        return to_tensor(image), _to_long(classes)
    if resize == "tensor":
        label = tensor_square(_to_long(classes)[None], size, nearest=True)[0]
        return tensor_square(to_tensor(image), size), label
    return square(image, size), _label_square(classes, size)


def load_label_square(data: Dataset, sample: Sample, size: int) -> Integer[Tensor, "size size"]:
    """Load the label map of :func:`load_pair`; only the header of the image is read.

    Raises:
        ImageError: the label map is missing, or does not fit the image or the classes.
    """
    return _label_square(_label_of_size(data, sample, image_size(sample.source)), size)


def _label_of_size(data: Dataset, sample: Sample, size: tuple[int, int]) -> Image.Image:
    """Load the classes of a label map, and compare its size with the size of the image."""
    label = data.label(sample)
    if label.shape != size[::-1]:
        raise ImageError(
            f"label {sample.label} has {label.shape[1]}x{label.shape[0]} pixels, but its image has "
            f"{size[0]}x{size[1]}; they must be equal"
        )
    # Nearest neighbor copies pixels: 32-bit integers keep every value.
    return Image.fromarray(label.astype(np.int32))


def _label_square(classes: Image.Image, size: int) -> Integer[Tensor, "size size"]:
    return _to_long(center_crop(resize_shorter(classes, size, nearest=True), size))


def _to_long(classes: Image.Image) -> Integer[Tensor, "h w"]:
    return torch.from_numpy(np.array(classes)).long()
