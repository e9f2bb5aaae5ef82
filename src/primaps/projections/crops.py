"""Five crops of every image, to train on smaller things: an option of STEGO."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor


def five_crops(images: UInt8[Tensor, "b 3 H W"]) -> UInt8[Tensor, "b5 3 H W"]:
    """The four quarters and the centre of each image, enlarged to its size.

    The features of crops are used like those of further images, five for one.

    Args:
        images: 8-bit; sides of at least 2 pixels.

    Returns:
        Per image: top left, top right, bottom left, bottom right, centre.

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
