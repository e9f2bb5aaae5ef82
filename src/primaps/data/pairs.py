"""An image and its label map as the protocol sees them, at one size."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import Image
from torch import Tensor

from primaps.config import Resize
from primaps.data.dataset import Dataset, Sample
from primaps.data.reading import ImageError, image_size, load_image
from primaps.data.transforms import (
    center_crop,
    resize_shorter,
    tensor_square,
    to_tensor,
)


def square(image: Image.Image, size: int) -> UInt8[Tensor, "3 size size"]:
    """The protocol's crop: shorter side to ``size``, then the centered square."""
    return to_tensor(center_crop(resize_shorter(image, size), size))


def load_pair(
    data: Dataset, sample: Sample, size: int | None = None, resize: Resize = "pillow"
) -> tuple[UInt8[Tensor, "3 h w"], Integer[Tensor, "h w"]]:
    """Load an image and its label map.

    Args:
        size: side of the centered square in pixels, as in the protocol: the shorter side is scaled
            to it, bilinearly for the image and by nearest neighbor for the label map. None loads
            both whole and unscaled.
        resize: resampling of squares: ``pillow``, or ``tensor`` as in the authors' program
            (:func:`primaps.data.transforms.tensor_square`).

    Raises:
        ImageError: the label map is missing, or does not fit the image or the classes.
    """
    image = load_image(sample.source)
    classes = _label_of_size(data, sample, image.size)
    if size is None:
        return to_tensor(image), _to_long(classes)
    if resize == "tensor":
        label = tensor_square(_to_long(classes)[None], size, nearest=True)[0]
        return tensor_square(to_tensor(image), size), label
    return square(image, size), _label_square(classes, size)


def load_label_square(data: Dataset, sample: Sample, size: int) -> Integer[Tensor, "size size"]:
    """The label map of :func:`load_pair` alone: of the image no more than the header is read.

    Raises:
        ImageError: there is no label, or it does not fit the image or the classes.
    """
    return _label_square(_label_of_size(data, sample, image_size(sample.source)), size)


def _label_of_size(data: Dataset, sample: Sample, size: tuple[int, int]) -> Image.Image:
    """Classes of a label map, which must have the width and height of its image."""
    label = data.label(sample)
    if label.shape != size[::-1]:
        raise ImageError(
            f"label {sample.label} has {label.shape[1]}x{label.shape[0]} pixels and its image "
            f"{size[0]}x{size[1]}; they must be equal"
        )
    # Nearest neighbor picks single pixels, so 32-bit integers keep every value.
    return Image.fromarray(label.astype(np.int32))


def _label_square(classes: Image.Image, size: int) -> Integer[Tensor, "size size"]:
    return _to_long(center_crop(resize_shorter(classes, size, nearest=True), size))


def _to_long(classes: Image.Image) -> Integer[Tensor, "h w"]:
    return torch.from_numpy(np.array(classes)).long()
