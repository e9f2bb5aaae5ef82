"""Principal mask proposals (section 3.1 of the paper): features in, masks out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from primaps._proposals_torch import propose_torch

CRF = Callable[[Tensor, list[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Proposals:
    """Masks of a batch of feature maps and how they came about.

    Attributes:
        masks: 0 = ignore, 1..Z in the order found.
        similarities: per image, each mask's cosine similarities divided by their maximum, 0
            where below the threshold or already assigned (Eq. 5 and 6).
        anchors: per image, row and column of each mask's anchor (Eq. 4).
        explained: per image and mask, share of the variance of the features still unassigned
            that the component explains (0 where they do not vary).
    """

    masks: Int[Tensor, "b h w"]
    similarities: list[Float[Tensor, "z h w"]]
    anchors: list[Int[Tensor, "z 2"]]
    explained: list[Float[Tensor, " z"]]


@overload
def propose(
    features: Float[Tensor, "b c h w"],
    *,
    threshold: float = ...,
    coverage: float = ...,
    anchor: bool = ...,
    iterative: bool = ...,
    return_details: Literal[False] = ...,
) -> Int[Tensor, "b h w"]: ...


@overload
def propose(
    features: Float[Tensor, "b c h w"],
    *,
    threshold: float = ...,
    coverage: float = ...,
    anchor: bool = ...,
    iterative: bool = ...,
    return_details: Literal[True],
) -> Proposals: ...


def propose(
    features: Float[Tensor, "b c h w"],
    *,
    threshold: float = 0.4,
    coverage: float = 0.95,
    anchor: bool = True,
    iterative: bool = True,
    return_details: bool = False,
) -> Int[Tensor, "b h w"] | Proposals:
    """Principal mask proposals of a batch of feature maps (Eq. 2-8).

    One mask after the other: the first principal component of the features that are still
    unassigned (Eq. 2 and 3), the feature most similar to it (the anchor, Eq. 4), and every
    unassigned position whose cosine similarity with the anchor exceeds ``threshold`` times the
    largest (Eq. 5 and 6). The sign of the component is the one that makes its largest absolute
    cosine similarity with an unassigned feature positive, so the result is deterministic; it does
    not depend on the batch that an image is in.

    Features that do not vary have no principal component; their mean takes its place, which puts
    them into one mask. Features that are zero stay in no mask.

    Args:
        features: of any scale, finite; one row and column per position.
        threshold: psi of Eq. 6, in [0, 1): smaller gives larger and fewer masks.
        coverage: stop once this share of the positions is assigned, in (0, 1].
        anchor: compare with the anchor; False compares with the component itself ("similarity
            masks" of Table 4a).
        iterative: decompose the remaining features anew for each mask; False takes the principal
            directions of all features one after the other (Table 4a), and stops when three in a
            row add nothing.
        return_details: also return the anchors, similarity maps and explained shares.

    Returns:
        Masks: 0 = ignore, 1..Z in the order found; or :class:`Proposals`.

    Raises:
        ValueError: an option is outside its range, the shape is not (B, C, h, w), or the features
            contain NaN or infinity.

    Example:
        >>> features = torch.zeros(1, 3, 2, 4)
        >>> features[:, 0, :, :3] = 1.0  # two kinds of features, side by side
        >>> features[:, 1, :, 3] = 0.5
        >>> propose(features)
        tensor([[[1, 1, 1, 2],
                 [1, 1, 1, 2]]])
    """
    maps = _prepare(features, threshold, coverage)
    b, h, w = len(features), *features.shape[2:]
    if maps.device.type == "cpu" and iterative:
        from primaps._proposals_cpu import propose_cpu

        found = propose_cpu(maps, threshold, coverage, anchor)
    else:
        found = propose_torch(maps, threshold, coverage, anchor, iterative)
    masks = (
        torch.stack([each[0] for each in found]).view(b, h, w)
        if b
        else maps.new_zeros((0, h, w), dtype=torch.int64)
    )
    if not return_details:
        return masks
    similarities = []
    for mask, values, anchors, _ in found:
        number = torch.arange(1, len(anchors) + 1, device=mask.device)[:, None]
        similarities.append(((mask == number) * values).view(-1, h, w))
    return Proposals(
        masks=masks,
        similarities=similarities,
        anchors=[torch.stack([each[2] // w, each[2] % w], 1) for each in found],
        explained=[each[3] for each in found],
    )


def mask_logits(
    similarities: Sequence[Float[Tensor, "z h w"]], *, median: bool = True, gain: float = 10.0
) -> list[Float[Tensor, "z1 h w"]]:
    """Log-probabilities of ignore (channel 0) and each mask, from the similarity maps.

    The original program's post-processing: 3x3 median filter, gain, clamp to [0, 1]; ignore is
    what the mean of the non-zero values exceeds the sum of the maps by.

    Args:
        similarities: per image, as in :class:`Proposals`.
        median: smooth with a 3x3 median filter, mirrored at the border.
        gain: factor before the clamp to [0, 1].

    Returns:
        Per image ``(1 + Z, h, w)``; ``exp`` sums to 1 over the channels.

    Raises:
        ValueError: ``gain`` is not positive.

    Example:
        >>> found = propose(torch.randn(2, 8, 3, 4), return_details=True)
        >>> logits = mask_logits(found.similarities)
        >>> [len(each) - len(maps) for each, maps in zip(logits, found.similarities)]
        [1, 1]
    """
    if not gain > 0:
        raise ValueError(f"gain must be positive, got {gain}")
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


def mask_probabilities(
    features: Float[Tensor, "b c h w"],
    images: UInt8[Tensor, "b 3 H W"],
    *,
    crf: CRF | Literal["dense"] | None = "dense",
    threshold: float = 0.4,
    coverage: float = 0.95,
    anchor: bool = True,
    iterative: bool = True,
    median: bool = True,
    gain: float = 10.0,
) -> list[Float[Tensor, "z1 H W"]]:
    """Proposals at image size as probabilities: smoothed, upsampled and refined by a dense CRF.

    Args:
        features: feature maps of the images.
        images: what the features were made from, 8-bit RGB.
        crf: ``"dense"`` is :class:`primaps.DenseCRF` with its defaults; any callable that maps
            images and a list of probabilities (K_b, H, W) to marginals will do; None leaves it out.
        threshold, coverage, anchor, iterative: see :func:`propose`.
        median, gain: see :func:`mask_logits`.

    Returns:
        Per image (1 + Z, H, W): ignore, and the masks in the order found.

    Raises:
        ValueError: as :func:`propose`, or images and features do not go together.

    Example:
        >>> features, images = torch.randn(2, 8, 3, 4), torch.zeros(2, 3, 6, 8, dtype=torch.uint8)
        >>> first, second = mask_probabilities(features, images, crf=None)
        >>> bool(torch.allclose(first.sum(0), torch.ones(6, 8)))
        True
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        kind = f"{images.dtype} {tuple(images.shape)}"
        raise ValueError(f"images must be uint8 (B, 3, H, W), got {kind}")
    if len(images) != len(features):
        raise ValueError(f"{len(features)} feature maps but {len(images)} images")
    found = propose(
        features,
        threshold=threshold,
        coverage=coverage,
        anchor=anchor,
        iterative=iterative,
        return_details=True,
    )
    size = (images.shape[2], images.shape[3])
    probabilities = [
        F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0].softmax(0)
        for logits in mask_logits(found.similarities, median=median, gain=gain)
    ]
    if crf == "dense":
        from primaps.crf import DenseCRF

        crf = DenseCRF()
    return probabilities if crf is None else list(crf(images, probabilities))


def image_masks(
    features: Float[Tensor, "b c h w"], images: UInt8[Tensor, "b 3 H W"], **options: Any
) -> Int[Tensor, "b H W"]:
    """Principal mask proposals at image size: the argmax of :func:`mask_probabilities`.

    Args:
        features: feature maps of the images.
        images: what the features were made from, 8-bit RGB.
        **options: as in :func:`mask_probabilities`.

    Returns:
        Masks: 0 = ignore, else the number that :func:`propose` gave the mask. A mask that the
        smoothing or the CRF removes leaves a gap in the numbers.

    Raises:
        ValueError: as :func:`mask_probabilities`.

    Example:
        >>> features, images = torch.randn(2, 8, 3, 4), torch.zeros(2, 3, 6, 8, dtype=torch.uint8)
        >>> image_masks(features, images, crf=None).shape
        torch.Size([2, 6, 8])
    """
    found = mask_probabilities(features, images, **options)
    if not found:
        return torch.zeros((0, *images.shape[-2:]), dtype=torch.int64, device=features.device)
    return torch.stack([each.argmax(0) for each in found])


def _prepare(features: Tensor, threshold: float, coverage: float) -> Float[Tensor, "b c n"]:
    """Checked, float32, positions in one axis, of a scale whose squares float32 can hold."""
    if features.ndim != 4 or 0 in features.shape[1:]:
        raise ValueError(f"features must be (B, C, h, w), got {tuple(features.shape)}")
    if not features.is_floating_point():
        raise ValueError(f"features must be floating point, got {features.dtype}")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), got {threshold}")
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage must be in (0, 1], got {coverage}")
    maps = features.detach().flatten(2)
    if len(maps) == 0:
        return maps.float()
    low, high = maps.flatten(1).aminmax(dim=1)
    peak = torch.maximum(-low, high)  # NaN if there is one
    if not bool(peak.isfinite().all()):
        first = int((~peak.isfinite()).int().argmax())
        raise ValueError(f"features contain NaN or infinity (first in image {first} of the batch)")
    odd = (peak > 1e6) | ((peak < 1e-3) & (peak > 0))
    if bool(odd.any()):
        scale = torch.where(odd, peak, 1.0).to(maps.dtype)[:, None, None]
        maps = maps / scale
    return maps.float()
