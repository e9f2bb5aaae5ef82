"""Principal mask proposals (section 3.1 of the paper): from feature maps to masks."""

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
    """Masks of a batch of feature maps, and the intermediate results.

    Attributes:
        masks: 0 = ignore, 1..Z in the order in which they are found.
        similarities: per image and mask, cosine similarities with the anchor divided by their
            maximum; 0 outside the mask (Eq. 5 and 6).
        anchors: per image, row and column of the anchor of each mask (Eq. 4).
        explained: per image and mask, share of the variance of the unassigned features that the
            principal component explains; 0 for features without variance.
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
    """Compute principal mask proposals of a batch of feature maps (Eq. 2-8).

    Masks are found one after the other. The first principal component of the unassigned features
    is computed (Eq. 2 and 3). The anchor is the feature that is most similar to it (Eq. 4). The
    mask consists of the unassigned patch tokens whose cosine similarity with the anchor exceeds
    ``threshold`` times the maximum (Eq. 5 and 6). The sign of the component makes its largest
    absolute cosine similarity positive. The result is deterministic and does not depend on the
    batch.

    Features without variance become one mask. Features that are zero are in no mask.

    Args:
        features: (B, C, h, w) feature maps, finite, of any scale: a tensor, an array, or a list of
            (C, h, w) of one shape.
        threshold: psi of Eq. 6, in [0, 1); a lower threshold gives fewer and larger masks.
        coverage: share of the patch tokens after which the search stops, in (0, 1].
        anchor: compare with the anchor; False compares with the component itself ("similarity
            masks" of Table 4a).
        iterative: decompose the unassigned features for each mask; False uses the principal
            directions of all features in turn (Table 4a) and stops after three without a new mask.
        return_details: return :class:`Proposals` instead of the masks.

    Returns:
        Masks: 0 = ignore, 1..Z in the order in which they are found; or :class:`Proposals`.

    Raises:
        InputError: an option is out of range, the shape is not (B, C, h, w), or the features
            contain NaN or infinity.

    Example:
        >>> features = torch.zeros(1, 3, 2, 4)
        >>> features[:, 0, :, :3] = 1.0
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
    """Check features, flatten their token grid, and scale them to avoid overflow of squares."""
    if features.ndim != 4 or 0 in features.shape[1:]:
        raise InputError(f"features must be (B, C, h, w), got {tuple(features.shape)}")
    if not features.is_floating_point():
        raise InputError(f"features must be floating point, got {features.dtype}")
    maps = features.detach().flatten(2)
    if len(maps) == 0:
        return maps.float()
    low, high = maps.flatten(1).aminmax(dim=1)
    peak = torch.maximum(-low, high)  # NaN if any value is
    if not bool(peak.isfinite().all()):
        first = int((~peak.isfinite()).int().argmax())
        raise InputError(f"features of image {first} of the batch contain NaN or infinity")
    extreme = (peak > 1e6) | ((peak < 1e-3) & (peak > 0))
    if bool(extreme.any()):
        scale = torch.where(extreme, peak, 1.0).to(maps.dtype)[:, None, None]
        maps = maps / scale
    return maps.float()
