"""Where pixels lie in the feature spaces of the two kernels (Krähenbühl & Koltun 2011, Eq. 3)."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def spatial_features(
    height: int,
    width: int,
    theta: float,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "n 2"]:
    """Pixel coordinates (x, y) over the standard deviation ``theta`` in pixels, row by row.

    Example:
        >>> spatial_features(1, 3, 2.0).tolist()
        [[0.0, 0.0], [0.5, 0.0], [1.0, 0.0]]
    """
    y = torch.arange(height, dtype=dtype, device=device)[:, None].expand(height, width)
    x = torch.arange(width, dtype=dtype, device=device)[None].expand(height, width)
    return torch.stack([x, y], -1).view(-1, 2).div_(theta)


def bilateral_features(
    image: UInt8[Tensor, "3 h w"],
    theta_alpha: float,
    theta_beta: float,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "n 5"]:
    """Coordinates over ``theta_alpha`` pixels and 8-bit colors over ``theta_beta``.

    Example:
        >>> bilateral_features(torch.full((3, 1, 2), 30, dtype=torch.uint8), 10.0, 3.0).tolist()
        [[0.0, 0.0, 10.0, 10.0, 10.0], [0.10000000149011612, 0.0, 10.0, 10.0, 10.0]]
    """
    _, height, width = image.shape
    features = torch.empty(height * width, 5, dtype=dtype, device=image.device)
    features[:, :2] = spatial_features(height, width, theta_alpha, dtype, image.device)
    features[:, 2:] = image.flatten(1).T
    features[:, 2:] /= theta_beta
    return features
