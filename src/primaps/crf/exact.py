"""Brute-force Gaussian kernels: what the lattice approximates, for tests and small images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from primaps.utils.errors import InputError

MAX_BYTES = 4 * 2**30
"""Largest kernel matrix that is built; two of them are held at once."""


def gaussian_filter(
    positions: Float[Tensor, "n d"],
) -> Callable[[Float[Tensor, "n c"]], Float[Tensor, "n c"]]:
    """The Gaussian filter ``v -> k v`` with ``k_ij = exp(-|p_i - p_j|^2 / 2)``, as a full matrix.

    Args:
        positions: one point per row, divided by the standard deviation of each axis. Their dtype
            is that of the matrix.

    Returns:
        A function from values (N, C) to filtered values (N, C).

    Raises:
        InputError: the N x N matrix would take more than :data:`MAX_BYTES`.

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
    # Differences rather than the |p|^2 + |q|^2 - 2pq expansion, which cancels in float32.
    matrix = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist")
    matrix.square_().mul_(-0.5).exp_()
    return lambda values: matrix @ values
