"""An image and its label map as the protocol sees them, at one size."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import Image
from torch import Tensor

from primaps.data.dataset import Dataset, Sample
from primaps.data.reading import ImageError, load_image
from primaps.data.transforms import centre_crop, fit_to_patches, resize_shorter, to_tensor


def square(image: Image.Image, size: int) -> UInt8[Tensor, "3 size size"]:
    """The protocol's crop: shorter side to ``size``, then the centred square."""
    return to_tensor(centre_crop(resize_shorter(image, size), size))


def load_pair(
    data: Dataset, sample: Sample, size: int, patch_size: int | None = None
) -> tuple[UInt8[Tensor, "3 h w"], Integer[Tensor, "h w"]]:
    """An image and its label map, scaled bilinearly and by nearest neighbour.

    Args:
        size: shorter side in pixels.
        patch_size: None cuts the centred square, as the protocol does; a number keeps the whole
            image and makes its sides multiples of it.

    Raises:
        ImageError: there is no label, or it does not fit the image or the classes.
    """
    label = data.label(sample)
    image = load_image(sample.source)
    if label.shape != (image.height, image.width):
        raise ImageError(
            f"label {sample.label} has {label.shape[1]}x{label.shape[0]} pixels and its image "
            f"{image.width}x{image.height}; they must be equal"
        )
    # Nearest neighbour picks single pixels, so 32-bit integers keep every value.
    classes = Image.fromarray(label.astype(np.int32))
    if patch_size is None:
        picture = square(image, size)
        classes = centre_crop(resize_shorter(classes, size, nearest=True), size)
    else:
        picture = to_tensor(fit_to_patches(image, size, patch_size))
        shape = (picture.shape[2], picture.shape[1])
        classes = classes.resize(shape, Image.Resampling.NEAREST)
    return picture, torch.from_numpy(np.array(classes)).long()
