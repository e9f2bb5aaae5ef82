"""Mask proposals at image size: smoothed, upsampled and refined by the dense CRF."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt
from jaxtyping import Float, Int
from torch import Tensor

from primaps.crf import DenseCRF
from primaps.proposals.principal_masks import propose
from primaps.utils.arrays import as_tensor
from primaps.utils.errors import InputError
from primaps.utils.validation import validated

CRF = Callable[[Tensor, list[Tensor]], Sequence[Tensor]]
"""Maps images, and probabilities (K, H, W) of each image, to marginals of each image."""


def mask_logits(
    similarities: Sequence[Float[Tensor, "_ h w"]], *, median: bool = True, gain: float = 10.0
) -> list[Float[Tensor, "_ h w"]]:
    """Compute log-probabilities of ignore (channel 0) and of each mask from similarity maps.

    As in the authors' program, maps are smoothed, multiplied by ``gain`` and clamped to [0, 1].
    Ignore is the mean of the non-zero values minus the sum of the maps, clamped to [0, 1].

    Args:
        similarities: per image, as in :class:`Proposals`.
        median: smooth with a 3x3 median filter with reflected borders.
        gain: factor before the clamp to [0, 1].

    Returns:
        Per image (1 + Z, h, w); ``exp`` sums to 1 over the channels.

    Raises:
        InputError: ``gain`` is not positive.

    Example:
        >>> found = propose(torch.randn(2, 8, 3, 4), return_details=True)
        >>> logits = mask_logits(found.similarities)
        >>> [len(each) - len(maps) for each, maps in zip(logits, found.similarities)]
        [1, 1]
    """
    if not gain > 0:
        raise InputError(f"gain must be positive, got {gain}")
    counts = [len(maps) for maps in similarities]
    if not counts:
        return []
    maps = torch.cat(list(similarities))
    if median and len(maps):
        maps = _median3x3(maps)
    maps = (gain * maps).clamp(0, 1)
    return [_with_background(each) for each in maps.split(counts)]


def _with_background(maps: Float[Tensor, "z h w"]) -> Float[Tensor, "z1 h w"]:
    level = maps.sum() / (maps > 0).sum().clamp_min(1)
    background = (level - maps.sum(0, keepdim=True)).clamp(0, 1)
    return torch.cat([background, maps]).log_softmax(0)


def _median3x3(maps: Float[Tensor, "z h w"]) -> Float[Tensor, "z h w"]:
    h, w = maps.shape[-2:]
    padded = F.pad(maps[:, None], (1, 1, 0, 0), mode="reflect" if w > 1 else "replicate")
    padded = F.pad(padded, (0, 0, 1, 1), mode="reflect" if h > 1 else "replicate")[:, 0]
    windows = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return torch.stack(windows).median(0).values


@validated
def mask_probabilities(
    features: Any,
    images: Any,
    *,
    crf: CRF | Literal["dense"] | None = "dense",
    threshold: float = 0.4,
    coverage: float = 0.95,
    anchor: bool = True,
    iterative: bool = True,
    median: bool = True,
    gain: Annotated[float, Gt(0)] = 10.0,
) -> list[Float[Tensor, "_ H W"]]:
    """Compute the probability of each mask proposal at each pixel.

    Args:
        features: (B, C, h, w) feature maps of the images.
        images: (B, 3, H, W) 8-bit RGB images.
        crf: ``"dense"`` for :class:`primaps.DenseCRF` with its defaults; a callable from images and
            a list of probabilities (K_b, H, W) to marginals; None for no refinement.
        threshold, coverage, anchor, iterative: see :func:`propose`.
        median, gain: see :func:`mask_logits`.

    Returns:
        Per image (1 + Z, H, W): ignore, and the masks in the order in which they are found.

    Raises:
        InputError: as :func:`propose`, or the images do not match the features.

    Example:
        >>> features, images = torch.randn(2, 8, 3, 4), torch.zeros(2, 3, 6, 8, dtype=torch.uint8)
        >>> first, second = mask_probabilities(features, images, crf=None)
        >>> bool(torch.allclose(first.sum(0), torch.ones(6, 8)))
        True
    """
    features, images = as_tensor(features, "features"), as_tensor(images, "images")
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        kind = f"{images.dtype} {tuple(images.shape)}"
        raise InputError(f"images must be uint8 (B, 3, H, W), got {kind}")
    if len(images) != len(features):
        raise InputError(f"got {len(features)} feature maps for {len(images)} images")
    if not (crf is None or crf == "dense" or callable(crf)):
        raise InputError(f"crf is {crf!r}; it must be 'dense', a callable or None")
    proposals = propose(
        features,
        threshold=threshold,
        coverage=coverage,
        anchor=anchor,
        iterative=iterative,
        return_details=True,
    )
    logits = mask_logits(proposals.similarities, median=median, gain=gain)
    if crf == "dense":
        return DenseCRF()(images, logits=logits)  # upsamples the logits
    size = (images.shape[2], images.shape[3])
    probabilities = [
        F.interpolate(each[None], size=size, mode="bilinear", align_corners=False)[0].softmax(0)
        for each in logits
    ]
    return probabilities if crf is None else list(crf(images, probabilities))


@validated
def image_masks(features: Any, images: Any, **options: Any) -> Int[Tensor, "b H W"]:
    """Compute principal mask proposals at image size: the argmax of :func:`mask_probabilities`.

    Args:
        features, images, **options: see :func:`mask_probabilities`.

    Returns:
        Masks: 0 = ignore, otherwise the mask number of :func:`propose`. If smoothing or the CRF
        removes a mask, its number does not occur.

    Raises:
        InputError: as :func:`mask_probabilities`.

    Example:
        >>> features, images = torch.randn(2, 8, 3, 4), torch.zeros(2, 3, 6, 8, dtype=torch.uint8)
        >>> image_masks(features, images, crf=None).shape
        torch.Size([2, 6, 8])
    """
    features, images = as_tensor(features, "features"), as_tensor(images, "images")
    probabilities = mask_probabilities(features, images, **options)
    if not probabilities:
        return torch.zeros((0, *images.shape[-2:]), dtype=torch.int64, device=features.device)
    return torch.stack([of_image.argmax(0) for of_image in probabilities])
