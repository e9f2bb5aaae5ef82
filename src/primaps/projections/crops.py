"""Five crops of every image, to train on smaller things: an option of STEGO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from primaps.data import ImageFile, LogCallback, load_image, read, square
from primaps.utils.files import atomic_path


def five_crops(images: UInt8[Tensor, "b 3 H W"]) -> UInt8[Tensor, "b5 3 H W"]:
    """The four quarters and the center of each image, enlarged to its size.

    The features of crops are used like those of further images, five for one.

    Args:
        images: 8-bit; sides of at least 2 pixels.

    Returns:
        Per image: top left, top right, bottom left, bottom right, center.

    Examples:
        >>> five_crops(torch.zeros(2, 3, 64, 48, dtype=torch.uint8)).shape
        torch.Size([10, 3, 64, 48])
    """
    height, width = images.shape[-2:]
    h, w = height // 2, width // 2
    corners = [(0, 0), (0, width - w), (height - h, 0), (height - h, width - w)]
    corners.append(((height - h) // 2, (width - w) // 2))
    parts = torch.stack([images[..., y : y + h, x : x + w] for y, x in corners], 1).flatten(0, 1)
    larger = F.interpolate(parts.float(), (height, width), mode="bilinear", align_corners=False)
    return larger.round().to(torch.uint8)


def write_crops(
    files: Sequence[ImageFile], size: int, folder: Path, log: LogCallback
) -> list[ImageFile]:
    """Write the five crops of the centered square of each image, as PNG files.

    Returns:
        The crops, in the order of the images.
    """
    found = []
    for file, image in read(files, lambda file: square(load_image(file.source), size), log):
        for number, crop in enumerate(five_crops(image[None])):
            path = folder / f"{file.key}.{number}.png"
            with atomic_path(path) as temporary:
                Image.fromarray(crop.permute(1, 2, 0).numpy()).save(temporary)
            found.append(ImageFile(path, f"{file.key}.{number}"))
    return found
