"""The two Gaussian kernels of the dense CRF: their features, and exact filtering."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from primaps.utils.errors import InputError

MAX_BYTES = 4 * 2**30
"""Maximum size of an exact kernel matrix in bytes; two of them are in memory at once."""


def spatial_features(
    height: int,
    width: int,
    theta: float,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "n 2"]:
    """Return pixel coordinates (x, y), row by row, divided by ``theta`` pixels.

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
    """Return coordinates divided by ``theta_alpha`` pixels, and 8-bit colors by ``theta_beta``.

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


def gaussian_filter(
    positions: Float[Tensor, "n d"],
) -> Callable[[Float[Tensor, "n c"]], Float[Tensor, "n c"]]:
    """Return the Gaussian filter ``v -> k v`` with the matrix ``k_ij = exp(-|p_i - p_j|^2 / 2)``.

    The lattice approximates this filter; tests and small images use it.

    Args:
        positions: one point per row, divided by the standard deviation of each axis.

    Returns:
        A function from values (N, C) to filtered values (N, C).

    Raises:
        InputError: the N x N matrix exceeds :data:`MAX_BYTES`.

    Example:
        >>> k = gaussian_filter(torch.tensor([[0.0], [1.0]]))
        >>> [round(x, 4) for x in k(torch.tensor([[1.0], [0.0]])).flatten().tolist()]
        [1.0, 0.6065]
    """
    n = len(positions)
    needed = n * n * positions.element_size()
    if needed > MAX_BYTES:
        raise InputError(
            f"exact=True needs a {n} x {n} matrix for {n} pixels ({needed / 2**30:.1f} GiB, "
            f"limit {MAX_BYTES / 2**30:.0f} GiB): use a smaller image or exact=False"
        )
    # Differences, because the expansion |p|^2 + |q|^2 - 2pq cancels in float32.
    matrix = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist")
    matrix.square_().mul_(-0.5).exp_()
    return lambda values: matrix @ values
