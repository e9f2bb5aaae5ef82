"""The parameters of the dense CRF and their ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval
from jaxtyping import Float
from torch import Tensor

from primaps.utils.arrays import as_tensor
from primaps.utils.errors import InputError
from primaps.utils.validation import validate_fields

Iterations = Annotated[int, Interval(ge=0, le=100_000)]
Weight = Annotated[float, Ge(0)]
Compatibility = Sequence[Sequence[float]] | Float[Tensor, "k k"] | None
Tolerance = Annotated[float, Ge(0)] | None
Negligible = Annotated[float, Interval(ge=0, le=0.5)]
Deviation = Annotated[float, Gt(0)]


@dataclass(frozen=True)
class CRFParameters:
    """What the two kernels and the inference of a dense CRF depend on.

    Attributes:
        iterations: mean-field updates.
        bilateral_weight: weight of the bilateral kernel; 0 leaves it out.
        theta_alpha: its standard deviation in space, pixels.
        theta_beta: its standard deviation in color, 8-bit units (0..255).
        gaussian_weight: weight of the Gaussian kernel; 0 leaves it out.
        theta_gamma: its standard deviation, pixels.
        compatibility: K x K penalties ``mu(l, l')`` for label l beside label l', as rows of
            numbers or a tensor; None is Potts, 1 for different labels and 0 for equal ones.
        exact: evaluate the kernels by brute force instead of the lattice, for small images
            (memory grows with the square of the pixels).
        dtype: "float32", or "float64" for reference results, which is slow.
        tolerance: stop early, image by image, once an update changes the marginals by less than
            this (mean absolute difference); None always runs all iterations.
        negligible: labels whose largest marginals in an image sum to less than this hear of no
            other pixel until their sum grows to twice that, under Potts and where it makes a CPU
            faster; other devices compute all labels. A class map hardly changes at 0.3.

    Raises:
        InputError: a parameter out of its range, named in the message.
    """

    iterations: Iterations = 10
    bilateral_weight: Weight = 4.0
    theta_alpha: Deviation = 67.0
    theta_beta: Deviation = 3.0
    gaussian_weight: Weight = 3.0
    theta_gamma: Deviation = 1.0
    compatibility: Compatibility = None
    exact: bool = False
    dtype: Literal["float32", "float64"] = "float32"
    tolerance: Tolerance = None
    negligible: Negligible = 1e-3

    def __post_init__(self) -> None:
        validate_fields(self, skip="compatibility")
        if self.compatibility is not None:
            matrix = as_tensor(self.compatibility, "compatibility")
            object.__setattr__(self, "compatibility", matrix)
            if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
                raise InputError(
                    f"compatibility: expected a K x K matrix, got shape {tuple(matrix.shape)}"
                )
            if not torch.isfinite(matrix).all():
                raise InputError(
                    "compatibility: every penalty must be finite, found NaN or infinity"
                )
