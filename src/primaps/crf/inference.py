"""The dense CRF on images: :class:`DenseCRF` and :func:`dense_crf`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar, overload

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from primaps.crf import inputs
from primaps.crf.inputs import CRFParameters
from primaps.crf.kernels import bilateral_features, gaussian_filter, spatial_features
from primaps.crf.lattice import Lattice, build_lattice
from primaps.crf.mean_field import Filter, Kernel, mean_field
from primaps.utils.errors import InputError
from primaps.utils.validation import validated

Values = TypeVar("Values", Tensor, np.ndarray, list[Any], tuple[Any, ...])

GROUP_VALUES = 2**28
"""Maximum number of pixels times labels that torch operations filter together."""


@dataclass(frozen=True)
class DenseCRF(CRFParameters):
    """A fully connected CRF over the pixels of an image, solved by mean-field inference.

    Two Gaussian kernels connect every pair of pixels: the bilateral kernel connects nearby pixels
    of similar color, the Gaussian kernel connects close neighbors of any color (Krähenbühl & Koltun
    2011, Eq. 3). Filtering runs on the permutohedral lattice (Adams et al. 2010). The defaults are
    those of unsupervised segmentation (PriMaPs, STEGO and others).

    Attributes:
        iterations: number of mean-field updates.
        bilateral_weight: weight of the bilateral kernel; 0 disables it.
        theta_alpha: spatial standard deviation of the bilateral kernel in pixels.
        theta_beta: color standard deviation of the bilateral kernel in 8-bit units (0..255).
        gaussian_weight: weight of the Gaussian kernel; 0 disables it.
        theta_gamma: standard deviation of the Gaussian kernel in pixels.
        compatibility: K x K penalties ``mu(l, l')`` for label l next to label l', as nested lists
            or a tensor; None is the Potts model, 1 for different labels and 0 for equal ones.
        exact: evaluate the kernels exactly instead of on the lattice, for small images; memory
            grows with the square of the number of pixels.
        dtype: "float32", or "float64" for reference results, which is slow.
        tolerance: stop an image after an update whose mean absolute change of the marginals is
            below this value; None runs all iterations.
        negligible: labels whose largest marginals in an image sum to less than this are dropped
            from message passing until the sum grows to twice that. Only used on the CPU and with
            the Potts model; with 0.3 a class map changes very little.

    Raises:
        InputError: a parameter is out of range.

    Example:
        >>> image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
        >>> image[..., 4:] = 200
        >>> noisy = torch.full((1, 2, 8, 8), 0.4)
        >>> noisy[:, 0, :, :4] = noisy[:, 1, :, 4:] = 0.6
        >>> noisy[0, :, 3, 1] = torch.tensor([0.4, 0.6])  # one wrong pixel
        >>> crf = DenseCRF(iterations=5)
        >>> crf(image, noisy).argmax(1)[0, 3].tolist()
        [0, 0, 0, 0, 1, 1, 1, 1]
    """

    @overload
    def __call__(
        self,
        images: Any,
        probabilities: Values | None = None,
        *,
        logits: Values | None = None,
        return_changes: Literal[False] = False,
    ) -> Values: ...

    @overload
    def __call__(
        self,
        images: Any,
        probabilities: Values | None = None,
        *,
        logits: Values | None = None,
        return_changes: Literal[True],
    ) -> tuple[Values, Tensor]: ...

    @validated
    @torch.no_grad()
    def __call__(
        self,
        images: Any,
        probabilities: Any = None,
        *,
        logits: Any = None,
        return_changes: bool = False,
    ) -> Any:
        """Compute the marginals of the label of every pixel.

        Args:
            images: 8-bit RGB: a uint8 tensor (B, 3, H, W) or (3, H, W), a PIL image, or a list of
                (3, H, W) tensors and PIL images, whose sizes can differ. Arrays can also have the
                colors last; if the first and last axis have size 3, colors are last.
            probabilities: (B, K, H, W) or (K, H, W) in [0, 1], or a list of (K, H, W), whose number
                of labels can differ; tensors or arrays, clipped to at least 1e-5. The computation
                runs on their device.
            logits: unnormalized scores instead of probabilities, finite or -inf. If they are
                smaller than the images, they are upsampled bilinearly.
            return_changes: also return the change of the marginals in every iteration.

        Returns:
            The float32 marginals at image size, in the layout of the argument (a list for a list or
            tuple, an array for an array). With ``return_changes``, a pair of the marginals and the
            mean absolute change in every iteration, shape (B, iterations), NaN after an early stop.

        Raises:
            InputError: an argument has a wrong shape, type or range, or both or neither of
                probabilities and logits are given.
        """
        image_list = inputs.as_images(images)
        name, given = inputs.as_values(probabilities, logits)
        values = list(given) if not isinstance(given, Tensor) or given.ndim == 4 else [given]
        sizes = inputs.check_match(name, image_list, values, self.compatibility)
        out: Any
        if isinstance(given, Tensor):
            if len(set(sizes)) > 1:
                raise InputError(f"{name}: images of several sizes need a list of tensors")
            shape = (*given.shape[:-2], *(sizes[0] if sizes else given.shape[-2:]))
            out = torch.empty(shape, dtype=torch.float32, device=given.device)
            slots = list(out) if out.ndim == 4 else [out]
        else:
            out = slots = [
                torch.empty(len(v), *size, device=v.device)
                for v, size in zip(values, sizes, strict=True)
            ]
        changes = torch.full((len(values), self.iterations), torch.nan)

        supported = self.dtype == "float32" and not self.exact
        if not values:
            pass
        elif supported and all(v.device.type == "cpu" for v in values):
            from primaps.crf import compiled

            compiled.solve(self, image_list, name, values, slots, changes, return_changes)
        else:
            for group in self._groups(values, slots):
                _solve(self, image_list, name, values, slots, changes, group)
        out = _as_given(out, probabilities if logits is None else logits)
        return (out, changes) if return_changes else out

    def _groups(self, values: list[Tensor], out: list[Tensor]) -> list[range]:
        """Group consecutive images of one shape, which torch operations solve together."""
        groups: list[range] = []
        for i, value in enumerate(values):
            last = groups[-1] if groups else None
            if (
                last is not None
                and not self.exact
                and self.tolerance is None
                and values[last.start].shape == value.shape
                and out[last.start].shape == out[i].shape
                and values[last.start].device == value.device
                and (len(last) + 1) * out[i].numel() <= GROUP_VALUES
            ):
                groups[-1] = range(last.start, i + 1)
            else:
                groups.append(range(i, i + 1))
        return groups


CLASS_CRF = DenseCRF(negligible=0.3)
"""The CRF of class maps. Few classes of a model occur in one image; with 27 classes, 99.99 % of the
pixels get the same class as with ``negligible=0``."""


def dense_crf(
    images: Any,
    probabilities: Any = None,
    *,
    logits: Any = None,
    return_changes: bool = False,
    **parameters: Any,
) -> Any:
    """Refine label probabilities with a dense CRF: ``DenseCRF(...)(images, probabilities)``.

    Args:
        images, probabilities, logits, return_changes: as in :meth:`DenseCRF.__call__`, which also
            documents results and errors.
        parameters: parameters of :class:`DenseCRF`.

    Example:
        >>> image = torch.randint(0, 256, (1, 3, 6, 6), dtype=torch.uint8)
        >>> marginals = dense_crf(image, logits=torch.randn(1, 4, 6, 6))
        >>> marginals.shape, bool(torch.allclose(marginals.sum(1), torch.ones(1, 6, 6)))
        (torch.Size([1, 4, 6, 6]), True)
    """
    crf: Any = DenseCRF(**parameters)
    return crf(images, probabilities, logits=logits, return_changes=return_changes)


def _as_given(found: Any, given: Any) -> Any:
    """Convert results to arrays where the argument was an array."""
    if isinstance(found, list):
        return [_as_given(one, was) for one, was in zip(found, given, strict=True)]
    return found.numpy() if isinstance(given, np.ndarray) else found


def _solve(
    crf: CRFParameters,
    images: list[Tensor],
    name: str,
    values: list[Tensor],
    out: list[Tensor],
    changes: Float[Tensor, "b iterations"],
    group: range,
) -> None:
    """Solve a group of images of one shape with torch operations, as one block-diagonal problem."""
    dtype = getattr(torch, crf.dtype)
    first = values[group.start]
    labels, height, width = out[group.start].shape
    size = (height, width)
    log_unary = torch.cat([inputs.log_unary(name, values[i], dtype, size).T for i in group])

    weighted: list[tuple[float, Filter]] = []
    if crf.bilateral_weight:
        features = torch.cat(
            [
                bilateral_features(
                    images[i].to(first.device), crf.theta_alpha, crf.theta_beta, dtype
                )
                for i in group
            ]
        )
        bilateral = (
            gaussian_filter(features)
            if crf.exact
            else build_lattice(features, blocks=len(group)).filter
        )
        weighted.append((crf.bilateral_weight, bilateral))
    if crf.gaussian_weight:
        spatial = (height, width, crf.theta_gamma, dtype, first.device)
        gaussian = (
            gaussian_filter(spatial_features(*spatial))
            if crf.exact
            else _spatial_lattice(*spatial).repeat(len(group)).filter
        )
        weighted.append((crf.gaussian_weight, gaussian))

    compatibility = crf.compatibility
    if compatibility is not None:
        compatibility = torch.as_tensor(compatibility, dtype=dtype, device=first.device)
    marginals, change = mean_field(
        log_unary,
        [Kernel.normalized(kernel, weight, log_unary) for weight, kernel in weighted],
        compatibility=compatibility,
        iterations=crf.iterations,
        tolerance=crf.tolerance,
        blocks=len(group),
    )
    changes[group.start : group.stop, : change.shape[1]] = change.cpu()
    for i, part in zip(group, marginals.chunk(len(group)), strict=True):
        out[i].copy_(part.T.reshape(labels, height, width))


@lru_cache(maxsize=8)
def _spatial_lattice(
    height: int, width: int, theta: float, dtype: torch.dtype, device: torch.device
) -> Lattice:
    """Build the lattice of the Gaussian kernel, which depends only on the image size."""
    return build_lattice(spatial_features(height, width, theta, dtype, device))
