"""An image and its label map as the protocol sees them: the centred square at one size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import Image
from torch import Tensor

from primaps.data.folder import ImageFile, find_label
from primaps.data.reading import ImageError, load_image, load_label
from primaps.data.transforms import centre_crop, resize_shorter, to_tensor


def square(image: Image.Image, size: int) -> UInt8[Tensor, "3 size size"]:
    """The protocol's crop: shorter side to ``size``, then the centred square."""
    return to_tensor(centre_crop(resize_shorter(image, size), size))


def load_pair(
    file: ImageFile, labels: str | Path, size: int, classes: int | None, ignore_index: int
) -> tuple[UInt8[Tensor, "3 size size"], Integer[Tensor, "size size"]]:
    """An image and its label map, scaled and cut to the square of the protocol.

    Args:
        classes: number of classes; labels are checked against it unless it is None.

    Raises:
        ImageError: there is no label, or it does not fit the image or the classes.
    """
    path = find_label(file, labels)
    if path is None:
        raise ImageError(f"{file.source} has no label {labels}/{file.key}.png")
    image, label = load_image(file.source), load_label(path)
    if label.shape != (image.height, image.width):
        raise ImageError(
            f"label {path} has {label.shape[1]}x{label.shape[0]} pixels and its image "
            f"{image.width}x{image.height}; they must be equal"
        )
    if classes is not None:
        odd = sorted(set(np.unique(label).tolist()) - {*range(classes), ignore_index})
        if odd:
            raise ImageError(
                f"label {path} has the value {odd[0]}, which is none of the {classes} classes "
                f"and not the ignore index {ignore_index}"
            )
    # Nearest neighbour picks single pixels, so 32-bit integers keep every value.
    scaled = resize_shorter(Image.fromarray(label.astype(np.int32)), size, nearest=True)
    return square(image, size), torch.from_numpy(np.array(centre_crop(scaled, size))).long()
