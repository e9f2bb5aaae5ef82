"""Figures that explain mask proposals: ``primaps propose --explain``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from primaps.pictures.overlays import grid, overlay_masks, with_legend
from primaps.proposals.image_size import CRF, image_masks
from primaps.proposals.principal_masks import Proposals, propose
from primaps.utils.colors import palette

logger = logging.getLogger("primaps")

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6)
"""Thresholds psi of :func:`threshold_picture`."""


def masks_picture(
    image: Image.Image, masks: Integer[Tensor, "h w"], names: Sequence[str] = ()
) -> Image.Image:
    """Draw masks in colors over their image; pixels outside of masks are darkened.

    Args:
        image: image in RGB.
        masks: 0 = ignore, 1..Z, at any size.
        names: legend, one entry per mask.
    """
    picture = overlay_masks(image, _to_size(masks, image))
    return with_legend(picture, names, palette(len(names)))


def similarity_maps(
    features: Float[Tensor, "c h w"], proposals: Proposals, index: int = 0
) -> tuple[Float[Tensor, "z h w"], Float[Tensor, "z h w"]]:
    """Compute cosines of all features with the component (Eq. 3) and anchor (Eq. 5) of each mask.

    Args:
        features: features that ``proposals`` were computed from, with the default options.
        proposals: proposals with details.
        index: index of the image in ``proposals``.

    Returns:
        Two maps per mask, in [-1, 1]; tokens of earlier masks are NaN.

    Example:
        >>> features = torch.randn(1, 8, 4, 5)
        >>> found = propose(features, return_details=True)
        >>> component, anchor = similarity_maps(features[0], found)
        >>> component.shape == anchor.shape == found.similarities[0].shape
        True
    """
    x = features.detach().float().flatten(1).T
    unit, mask = F.normalize(x, dim=1), proposals.masks[index].flatten()
    components, anchors = [], []
    for z, (row, column) in enumerate(proposals.anchors[index].tolist(), 1):
        free = (mask == 0) | (mask >= z)
        rest = x[free].double()
        direction = torch.linalg.svd(rest - rest.mean(0), full_matrices=False)[2][0].float()
        anchor = unit[row * features.shape[2] + column]
        cosine = unit @ direction * torch.where(anchor @ direction < 0, -1.0, 1.0)
        components.append(cosine.masked_fill(~free, torch.nan))
        anchors.append((unit @ anchor).masked_fill(~free, torch.nan))
    shape = (len(components), *features.shape[1:])
    if not components:
        return x.new_zeros(shape), x.new_zeros(shape)
    return torch.stack(components).view(shape), torch.stack(anchors).view(shape)


def steps_picture(
    image: Image.Image,
    features: Float[Tensor, "c h w"],
    threshold: float = 0.4,
    limit: int = 6,
    height: int = 240,
) -> Image.Image:
    """Draw component, anchor and mask of the first masks, one row per mask (Fig. 3 and 5).

    Similarities are dark blue (0 and below) over green to yellow (maximum). Tokens of earlier masks
    are gray. The cross marks the anchor.

    Args:
        image: scaled image.
        features: features of the image.
        threshold: psi of Eq. 6.
        limit: maximum number of rows.
        height: height of each image in pixels.
    """
    proposals = propose(features[None], threshold=threshold, return_details=True)
    rows = []
    for z, shown in enumerate(similarity_pictures(image, features, proposals, limit)):
        alone = torch.where(proposals.masks[0] == z + 1, z + 1, 0)
        position = proposals.anchors[0][z].tolist()
        marked = _marked(image, position, features.shape[1:])
        rows.append([marked, *shown, masks_picture(image, alone)])
    titles = ("image and anchor", "similarity to component", "similarity to anchor", "mask")
    return grid(rows, titles, height) if rows else grid([[image]], ["no mask"], height)


def similarity_pictures(
    image: Image.Image, features: Float[Tensor, "c h w"], proposals: Proposals, limit: int
) -> list[tuple[Image.Image, Image.Image]]:
    """Draw the similarity to component and anchor of the first masks in colors.

    Args:
        image: scaled image.
        features: features of the image.
        proposals: proposals of these features, with details.
        limit: maximum number of masks.
    """
    component, anchor = similarity_maps(features, proposals)
    positions = proposals.anchors[0].tolist()[:limit]
    return [
        (_heat(component[z], image, position), _heat(anchor[z], image, position))
        for z, position in enumerate(positions)
    ]


def threshold_picture(
    image: Image.Image,
    features: Float[Tensor, "c h w"],
    pixels: UInt8[Tensor, "3 H W"],
    crf: CRF | Literal["dense"] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    height: int = 240,
) -> Image.Image:
    """Draw the masks for several thresholds side by side (Fig. 6).

    Args:
        image: scaled image.
        features: features of the image.
        pixels: the scaled image as a tensor.
        crf: see :func:`primaps.image_masks`.
        thresholds: values of psi.
        height: height of each image in pixels.
    """
    cells, titles = [image], ["image"]
    for threshold in thresholds:
        masks = image_masks(features[None], pixels[None], crf=crf, threshold=threshold)[0]
        cells.append(masks_picture(image, masks))
        titles.append(f"threshold {threshold:g}: {len(masks[masks > 0].unique())} masks")
    return grid([cells], titles, height)


def _to_size(masks: Integer[Tensor, "h w"], image: Image.Image) -> Integer[np.ndarray, "H W"]:
    size = (image.height, image.width)
    scaled = F.interpolate(masks[None, None].double(), size=size, mode="nearest-exact")
    return scaled[0, 0].long().cpu().numpy()


def _heat(
    similarity: Float[Tensor, "h w"], image: Image.Image, position: Sequence[int]
) -> Image.Image:
    from matplotlib import colormaps

    values = similarity.cpu().numpy()
    scaled = np.clip(values / max(float(np.nanmax(values)), 1e-6), 0, 1)
    rgb = colormaps["viridis"](np.nan_to_num(scaled))[..., :3]
    rgb[np.isnan(values)] = 0.8
    picture = Image.fromarray((255 * rgb).round().astype(np.uint8))
    picture = picture.resize(image.size, Image.Resampling.NEAREST)
    return _marked(picture, position, values.shape)


def _marked(image: Image.Image, position: Sequence[int], shape: Sequence[int]) -> Image.Image:
    """Draw a white cross with a black outline at a token."""
    picture = image.convert("RGB")
    draw = ImageDraw.Draw(picture)
    y = (position[0] + 0.5) * image.height / shape[0]
    x = (position[1] + 0.5) * image.width / shape[1]
    reach = max(5, min(image.size) // 28)
    for color, width in (("black", reach // 2 + 2), ("white", max(1, reach // 4))):
        draw.line((x - reach, y, x + reach, y), color, width)
        draw.line((x, y - reach, x, y + reach), color, width)
    return picture
