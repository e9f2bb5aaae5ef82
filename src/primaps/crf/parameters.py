"""The parameters of the dense CRF and their ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from primaps.support.errors import InputError


@dataclass(frozen=True)
class CRFParameters:
    """What the two kernels and the inference of a dense CRF depend on.

    Attributes:
        iterations: mean-field updates.
        bilateral_weight: weight of the bilateral kernel; 0 leaves it out.
        theta_alpha: its standard deviation in space, pixels.
        theta_beta: its standard deviation in colour, 8-bit units (0..255).
        gaussian_weight: weight of the Gaussian kernel; 0 leaves it out.
        theta_gamma: its standard deviation, pixels.
        compatibility: K x K penalties ``mu(l, l')`` for label l beside label l', as rows of
            numbers or a tensor; None is Potts, 1 for different labels and 0 for equal ones.
        exact: evaluate the kernels by brute force instead of the lattice, for small images
            (memory grows with the square of the pixels).
        dtype: "float32", or "float64" for reference results, which is slow.
        tolerance: stop early, image by image, once an update changes the marginals by less than
            this (mean absolute difference); None always runs all iterations.

    Raises:
        InputError: a parameter out of its range, named in the message.
    """

    iterations: int = 10
    bilateral_weight: float = 4.0
    theta_alpha: float = 67.0
    theta_beta: float = 3.0
    gaussian_weight: float = 3.0
    theta_gamma: float = 1.0
    compatibility: Sequence[Sequence[float]] | Float[Tensor, "k k"] | None = None
    exact: bool = False
    dtype: Literal["float32", "float64"] = "float32"
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.iterations, int) or self.iterations < 0:
            raise InputError(f"iterations: expected a whole number >= 0, got {self.iterations!r}")
        for name in ("bilateral_weight", "gaussian_weight"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise InputError(f"{name}: expected a finite number >= 0, got {value!r}")
        for name in ("theta_alpha", "theta_beta", "theta_gamma"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise InputError(f"{name}: expected a finite number > 0, got {value!r}")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise InputError(f"tolerance: expected None or a number >= 0, got {self.tolerance!r}")
        if self.dtype not in ("float32", "float64"):
            raise InputError(f'dtype: expected "float32" or "float64", got {self.dtype!r}')
        if self.compatibility is not None:
            matrix = torch.as_tensor(self.compatibility)
            if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
                raise InputError(
                    f"compatibility: expected a K x K matrix, got shape {tuple(matrix.shape)}"
                )
            if not torch.isfinite(matrix).all():
                raise InputError(
                    "compatibility: every penalty must be finite, found NaN or infinity"
                )
