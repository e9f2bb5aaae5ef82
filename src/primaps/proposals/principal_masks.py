"""Principal mask proposals (section 3.1 of the paper): features in, masks out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, overload

import torch
from annotated_types import Interval
from jaxtyping import Float, Int
from torch import Tensor

from primaps.proposals.batched import propose_torch
from primaps.utils.arrays import as_tensor
from primaps.utils.errors import InputError
from primaps.utils.validation import validated


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
    similarities: list[Float[Tensor, "_ h w"]]  # as many maps as the image has masks
    anchors: list[Int[Tensor, "_ 2"]]
    explained: list[Float[Tensor, " _"]]


@overload
def propose(
    features: Any,
    *,
    threshold: float = ...,
    coverage: float = ...,
    anchor: bool = ...,
    iterative: bool = ...,
    return_details: Literal[False] = ...,
) -> Int[Tensor, "b h w"]: ...


@overload
def propose(
    features: Any,
    *,
    threshold: float = ...,
    coverage: float = ...,
    anchor: bool = ...,
    iterative: bool = ...,
    return_details: Literal[True],
) -> Proposals: ...


@validated
def propose(
    features: Any,
    *,
    threshold: Annotated[float, Interval(lt=1, ge=0)] = 0.4,
    coverage: Annotated[float, Interval(gt=0, le=1)] = 0.95,
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
        features: (B, C, h, w), of any scale, finite; one row and column per position. A tensor, an
            array, or a list of (C, h, w) of one shape.
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
        InputError: an option is outside its range, the shape is not (B, C, h, w), or the features
            contain NaN or infinity.

    Example:
        >>> features = torch.zeros(1, 3, 2, 4)
        >>> features[:, 0, :, :3] = 1.0  # two kinds of features, side by side
        >>> features[:, 1, :, 3] = 0.5
        >>> propose(features)
        tensor([[[1, 1, 1, 2],
                 [1, 1, 1, 2]]])
    """
    features = as_tensor(features, "features")
    maps = _prepare(features)
    b, (h, w) = len(maps), features.shape[2:]
    if maps.device.type == "cpu" and iterative:
        from primaps.proposals.compiled import propose_cpu

        by_image = propose_cpu(maps, threshold, coverage, anchor)
    else:
        by_image = propose_torch(maps, threshold, coverage, anchor, iterative)
    masks = (
        torch.stack([image.masks for image in by_image]).view(b, h, w)
        if b
        else maps.new_zeros((0, h, w), dtype=torch.int64)
    )
    if not return_details:
        return masks
    similarities = []
    for image in by_image:
        number = torch.arange(1, len(image.anchors) + 1, device=image.masks.device)[:, None]
        alone = (image.masks == number) * image.similarities
        similarities.append(alone.view(-1, h, w))
    return Proposals(
        masks=masks,
        similarities=similarities,
        anchors=[torch.stack([image.anchors // w, image.anchors % w], 1) for image in by_image],
        explained=[image.shares for image in by_image],
    )


def _prepare(features: Tensor) -> Float[Tensor, "b c n"]:
    """Checked, float32, positions in one axis, of a scale whose squares float32 can hold."""
    if features.ndim != 4 or 0 in features.shape[1:]:
        raise InputError(f"features must be (B, C, h, w), got {tuple(features.shape)}")
    if not features.is_floating_point():
        raise InputError(f"features must be floating point, got {features.dtype}")
    maps = features.detach().flatten(2)
    if len(maps) == 0:
        return maps.float()
    low, high = maps.flatten(1).aminmax(dim=1)
    peak = torch.maximum(-low, high)  # NaN if there is one
    if not bool(peak.isfinite().all()):
        first = int((~peak.isfinite()).int().argmax())
        raise InputError(f"features contain NaN or infinity (first in image {first} of the batch)")
    odd = (peak > 1e6) | ((peak < 1e-3) & (peak > 0))
    if bool(odd.any()):
        scale = torch.where(odd, peak, 1.0).to(maps.dtype)[:, None, None]
        maps = maps / scale
    return maps.float()
