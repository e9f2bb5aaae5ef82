"""Checks of everything a caller hands to the CRF, in one place, and the unary term."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from primaps.utils.arrays import as_tensor
from primaps.utils.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


SMALLEST = 1e-5
"""Probabilities are clipped here, so that no pixel can veto a label for good."""


def as_images(images: Any) -> list[UInt8[Tensor, "3 h w"]]:
    """Any accepted form of images as a list of 8-bit tensors."""
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
        if _depth(images) > 1:  # numbers
            values = as_tensor(images, "images")
            whole = not values.is_floating_point() and not values.is_complex()
            if not whole or (values.numel() and not (values.min() >= 0 and values.max() <= 255)):
                raise InputError(
                    "images: expected whole numbers of 0 to 255 in the list; undo the normalization"
                )
            return as_images(_channels_first(values.numpy().astype(np.uint8)))
        parts = [as_images(image) for image in images]
        if any(len(part) != 1 for part in parts):
            raise InputError("images: a list must hold single images, found a batch in it")
        return [part[0] for part in parts]
    if hasattr(images, "convert"):  # a PIL image; PIL need not be installed for tensors
        return [_from_pil(images)]
    raise InputError(
        "images: expected a uint8 tensor, an array, a PIL image or a list of them, "
        f"got {type(images).__name__}"
    )


def _channels_first(array: np.ndarray) -> Tensor:
    """Arrays may have their colors last, as image libraries have them."""
    if array.ndim in (3, 4) and array.shape[-1] == 3:
        array = np.moveaxis(array, -1, -3)
    return as_tensor(array, "images")


def _depth(values: Any) -> int:
    """How deep lists are nested."""
    return 1 + _depth(values[0]) if isinstance(values, list | tuple) and len(values) else 0


def _from_pil(image: Image) -> UInt8[Tensor, "3 h w"]:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise InputError(
            f"images: expected an 8-bit PIL image, got mode {image.mode!r}; convert it to 'RGB'"
        )
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def as_values(probabilities: Any, logits: Any) -> tuple[str, Tensor | list[Tensor]]:
    """The name of the argument that was given, as a tensor or a list of (K, H, W) tensors."""
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
        whole: Tensor | list[Tensor] = values
        parts = list(values) if values.ndim == 4 else [values]
    else:
        whole = parts = [as_tensor(part, name) for part in values]
    for part in parts:
        if part.ndim != 3 or not part.is_floating_point():
            raise InputError(f"{name}: expected floating-point tensors of shape (K, H, W)")
        if len(part) < 1:
            raise InputError(f"{name}: expected at least one label, got shape {tuple(part.shape)}")
    return name, whole


def check_match(
    name: str, images: list[Tensor], values: list[Tensor], compatibility: Any | None
) -> list[tuple[int, int]]:
    """Sizes of the images; raise unless values have them, or logits smaller ones, and the
    compatibility the labels of all."""
    if len(images) != len(values):
        raise InputError(f"{name}: got {len(values)} of them for {len(images)} images")
    for image, value in zip(images, values, strict=True):
        size, own = tuple(image.shape[1:]), tuple(value.shape[1:])
        small = name == "logits" and 0 not in own and own[0] <= size[0] and own[1] <= size[1]
        if own != size and not small:
            raise InputError(
                f"{name}: size {own} differs from the image's {size}; resize it to the image first"
            )
        if compatibility is not None and len(compatibility) != len(value):
            raise InputError(
                f"compatibility: is {len(compatibility)} x {len(compatibility)}, "
                f"but {name} has {len(value)} labels"
            )
    return [(image.shape[1], image.shape[2]) for image in images]


def check_range(name: str, low: float, high: float, smallest_maximum: float) -> None:
    """Raise unless the extremes of the values are those of probabilities or of usable logits."""
    if math.isnan(low) or math.isnan(high):
        raise InputError(f"{name}: found NaN")
    if name == "probabilities" and (low < 0 or high > 1 + 1e-3):
        raise InputError(
            f"probabilities: expected values in [0, 1], got {low:.3g} to {high:.3g}; "
            "pass scores as logits="
        )
    if high == math.inf or smallest_maximum == -math.inf:
        raise InputError(f"{name}: every pixel needs a finite largest value")


def log_unary(
    name: str, values: Float[Tensor, "k h w"], dtype: torch.dtype, size: tuple[int, int]
) -> Float[Tensor, "k n"]:
    """The log-probabilities -psi_u of the labels, clipped at log :data:`SMALLEST`; at ``size``,
    to which smaller logits are scaled.

    Raises:
        InputError: NaN, probabilities outside [0, 1], or logits without a finite maximum.
    """
    values = values.detach().to(dtype)
    top = values.amax(0)
    check_range(name, values.amin().item(), top.amax().item(), top.amin().item())
    if values.shape[1:] != size:
        least = values.clamp(min=-1e30)  # -inf times 0 would be no number
        values = F.interpolate(least[None], size, mode="bilinear", align_corners=False)[0]
    values = values.flatten(1)
    if name == "probabilities":
        return values.clamp(SMALLEST, 1).log_()
    return values.log_softmax(0).clamp_(min=math.log(SMALLEST))


def checked_top(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest value over labels, the first axis, after :func:`check_range`."""
    top = values.max(0)
    check_range(name, float(values.min()), float(top.max()), float(top.min()))
    return top


def log_unary_numpy(name: str, values: Float[Tensor, "k h w"]) -> NDArray[np.float32]:
    """:func:`log_unary` in the calling thread alone.

    Torch would start a team of threads for each thread that calls it, and they would compete.
    """
    planes = values.detach().float().numpy().reshape(len(values), -1)
    top = checked_top(name, planes)
    if name == "probabilities":
        out = planes.clip(SMALLEST, 1)
        return np.log(out, out=out)
    with np.errstate(over="ignore"):  # to -inf, which is clipped below
        out = planes - top
    out -= np.log(np.exp(out).sum(0))
    return np.maximum(out, np.float32(math.log(SMALLEST)), out=out)
