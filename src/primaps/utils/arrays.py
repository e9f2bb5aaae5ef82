"""Conversion of arguments to tensors."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from primaps.utils.errors import InputError


def as_tensor(values: Any, name: str) -> Tensor:
    """Convert an array, or a list of numbers, arrays or tensors, to a tensor.

    A dense tensor is returned unchanged.

    Args:
        name: name of the argument in error messages.

    Raises:
        InputError: the conversion is not possible, or the entries of a list differ in shape.

    Examples:
        >>> as_tensor([np.zeros((2, 3)), np.ones((2, 3))], "features").shape
        torch.Size([2, 2, 3])
        >>> as_tensor([[0, 1], [0.5, 0]], "features").dtype
        torch.float64
        >>> as_tensor([[1.0, 2.0], [3.0]], "features")
        Traceback (most recent call last):
        primaps.utils.errors.InputError: features: the entries of the list differ in shape
    """
    if isinstance(values, Tensor):
        return values.to_dense() if values.layout != torch.strided else values
    if isinstance(values, list | tuple):
        parts = [as_tensor(part, name) if _has_shape(part) else part for part in values]
        if parts and all(isinstance(part, Tensor) for part in parts):
            if len({(part.shape, part.device) for part in parts}) > 1:
                raise InputError(f"{name}: the entries of the list differ in shape")
            kind = functools.reduce(torch.promote_types, (part.dtype for part in parts))
            return torch.stack([part.to(kind) for part in parts])
        values = parts
    try:
        return torch.from_numpy(np.ascontiguousarray(values))
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"{name}: expected a tensor, an array, or a list of them, got {type(values).__name__}"
        ) from None


def _has_shape(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray | list | tuple)
