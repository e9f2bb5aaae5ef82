"""Parameters and arguments of the dense CRF: their ranges, their checks, and the unary term."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Interval
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from primaps.utils.arrays import as_tensor
from primaps.utils.errors import InputError
from primaps.utils.validation import validate_fields

if TYPE_CHECKING:
    from PIL.Image import Image

SMALLEST = 1e-5
"""Probabilities are clipped to this minimum: a single pixel cannot exclude a label."""
Iterations = Annotated[int, Interval(ge=0, le=100_000)]
Weight = Annotated[float, Ge(0)]
Compatibility = Sequence[Sequence[float]] | Float[Tensor, "k k"] | None
Tolerance = Annotated[float, Ge(0)] | None
Negligible = Annotated[float, Interval(ge=0, le=0.5)]
Deviation = Annotated[float, Gt(0)]


@dataclass(frozen=True)
class CRFParameters:
    """Parameters of the kernels and of the inference of a dense CRF.

    :class:`primaps.DenseCRF` documents them.

    Raises:
        InputError: a parameter is out of range.
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


def as_images(images: Any) -> list[UInt8[Tensor, "3 h w"]]:
    """Convert images in any supported form to a list of 8-bit tensors."""
    if isinstance(images, np.ndarray):
        images = _channels_first(images)
    if isinstance(images, Tensor):
        if images.ndim not in (3, 4) or images.shape[-3] != 3:
            raise InputError(
                f"images: expected shape (B, 3, H, W) or (3, H, W), got {tuple(images.shape)}"
            )
        if images.dtype != torch.uint8:
            raise InputError(
                f"images: expected 8-bit values (torch.uint8), got {images.dtype}; "
                "undo the normalization and scale to 0..255"
            )
        if 0 in images.shape[-2:]:
            raise InputError(f"images: no pixels in shape {tuple(images.shape)}")
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, (list, tuple)):
        if _depth(images) > 1:  # nested lists of numbers
            values = as_tensor(images, "images")
            integers = not values.is_floating_point() and not values.is_complex()
            if not integers or (values.numel() and not (values.min() >= 0 and values.max() <= 255)):
                raise InputError(
                    "images: expected integers from 0 to 255 in the list; undo the normalization"
                )
            return as_images(_channels_first(values.numpy().astype(np.uint8)))
        parts = [as_images(image) for image in images]
        if any(len(part) != 1 for part in parts):
            raise InputError("images: a list must contain single images, found a batch")
        return [part[0] for part in parts]
    if hasattr(images, "convert"):  # a PIL image; tensors do not need PIL
        return [_from_pil(images)]
    raise InputError(
        "images: expected a uint8 tensor, an array, a PIL image or a list of them, "
        f"got {type(images).__name__}"
    )


def _channels_first(array: np.ndarray) -> Tensor:
    """Move the colors of an array to the front if they are last, as in most image libraries."""
    if array.ndim in (3, 4) and array.shape[-1] == 3:
        array = np.moveaxis(array, -1, -3)
    return as_tensor(array, "images")


def _depth(values: Any) -> int:
    """Return the nesting depth of lists."""
    return 1 + _depth(values[0]) if isinstance(values, list | tuple) and len(values) else 0


def _from_pil(image: "Image") -> UInt8[Tensor, "3 h w"]:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise InputError(
            f"images: expected an 8-bit PIL image, got mode {image.mode!r}; convert it to 'RGB'"
        )
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def as_values(probabilities: Any, logits: Any) -> tuple[str, Tensor | list[Tensor]]:
    """Return the name of the argument that is given, and its value as a tensor or list of tensors.

    The tensors of a list have shape (K, H, W).
    """
    if (probabilities is None) == (logits is None):
        given = "neither" if logits is None else "both"
        raise InputError(f"pass either probabilities or logits, got {given}")
    name, values = ("logits", logits) if probabilities is None else ("probabilities", probabilities)
    if not isinstance(values, list | tuple) or _depth(values) > 1:
        values = as_tensor(values, name)
    if isinstance(values, Tensor):
        if values.ndim not in (3, 4):
            raise InputError(
                f"{name}: expected shape (B, K, H, W) or (K, H, W), got {tuple(values.shape)}"
            )
        given_values: Tensor | list[Tensor] = values
        parts = list(values) if values.ndim == 4 else [values]
    else:
        given_values = parts = [as_tensor(part, name) for part in values]
    for part in parts:
        if part.ndim != 3 or not part.is_floating_point():
            raise InputError(f"{name}: expected floating-point tensors of shape (K, H, W)")
        if len(part) < 1:
            raise InputError(f"{name}: expected at least one label, got shape {tuple(part.shape)}")
    return name, given_values


def check_match(
    name: str, images: list[Tensor], values: list[Tensor], compatibility: Any | None
) -> list[tuple[int, int]]:
    """Return the sizes of the images, after checking that all arguments match.

    Raises:
        InputError: values do not have the size of their image (logits can be smaller), or their
            labels do not match the compatibility matrix.
    """
    if len(images) != len(values):
        raise InputError(f"{name}: got {len(values)} for {len(images)} images")
    for image, value in zip(images, values, strict=True):
        size, found = tuple(image.shape[1:]), tuple(value.shape[1:])
        small = name == "logits" and 0 not in found and found[0] <= size[0] and found[1] <= size[1]
        if found != size and not small:
            raise InputError(
                f"{name}: size {found} differs from the image size {size}; resize it to the image"
            )
        if compatibility is not None and len(compatibility) != len(value):
            raise InputError(
                f"compatibility: expected a {len(value)} x {len(value)} matrix for the labels of "
                f"{name}, got {len(compatibility)} x {len(compatibility)}"
            )
    return [(image.shape[1], image.shape[2]) for image in images]


def check_range(name: str, low: float, high: float, smallest_maximum: float) -> None:
    """Raise InputError if the extremes of the values are not valid for probabilities or logits."""
    if math.isnan(low) or math.isnan(high):
        raise InputError(f"{name}: found NaN")
    if name == "probabilities" and (low < 0 or high > 1 + 1e-3):
        raise InputError(
            f"probabilities: expected values in [0, 1], got {low:.3g} to {high:.3g}; "
            "pass scores as logits="
        )
    if high == math.inf or smallest_maximum == -math.inf:
        raise InputError(f"{name}: the largest value of every pixel must be finite")


def log_unary(
    name: str, values: Float[Tensor, "k h w"], dtype: torch.dtype, size: tuple[int, int]
) -> Float[Tensor, "k n"]:
    """Return log-probabilities -psi_u of the labels, clipped to log :data:`SMALLEST`.

    Smaller logits are upsampled to ``size``.

    Raises:
        InputError: the values contain NaN, probabilities outside [0, 1], or logits without a
            finite maximum.
    """
    values = values.detach().to(dtype)
    top = values.amax(0)
    check_range(name, values.amin().item(), top.amax().item(), top.amin().item())
    if values.shape[1:] != size:
        least = values.clamp(min=-1e30)  # because -inf times 0 is NaN
        values = F.interpolate(least[None], size, mode="bilinear", align_corners=False)[0]
    values = values.flatten(1)
    if name == "probabilities":
        return values.clamp(SMALLEST, 1).log_()
    return values.log_softmax(0).clamp_(min=math.log(SMALLEST))


def checked_top(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the maximum over labels, the first axis, after :func:`check_range`."""
    top = values.max(0)
    check_range(name, float(values.min()), float(top.max()), float(top.min()))
    return top


def log_unary_numpy(name: str, values: Float[Tensor, "k h w"]) -> NDArray[np.float32]:
    """:func:`log_unary` on the calling thread only.

    Torch starts a pool of threads for each calling thread, and these pools would compete.
    """
    planes = values.detach().float().numpy().reshape(len(values), -1)
    top = checked_top(name, planes)
    if name == "probabilities":
        out = planes.clip(SMALLEST, 1)
        return np.log(out, out=out)
    with np.errstate(over="ignore"):  # overflow to -inf is clipped below
        out = planes - top
    out -= np.log(np.exp(out).sum(0))
    return np.maximum(out, np.float32(math.log(SMALLEST)), out=out)
