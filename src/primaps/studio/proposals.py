"""Mask proposals of an image at any threshold, at once; refined by the CRF when there is time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from primaps.data import fit_to_patches, to_tensor
from primaps.em.pixels import largest_channel
from primaps.proposals.image_size import mask_probabilities
from primaps.proposals.principal_masks import propose
from primaps.studio.album import Album
from primaps.studio.analysis import mask_directions
from primaps.studio.photos import photo

ALIKE = 12
"""Masks of the collection that are shown beside one."""


def live_masks(features: Float[Tensor, "c h w"], threshold: float) -> Integer[np.ndarray, "h w"]:
    """Masks on the feature grid, without the CRF: milliseconds, so that a slider can move."""
    return propose(features[None], threshold=threshold)[0].cpu().numpy()


@torch.no_grad()
def refined_masks(album: Album, number: int, threshold: float) -> Integer[np.ndarray, "H W"]:
    """Masks at the size at which the image is shown, as ``primaps propose`` makes them; in the
    thread of the network. A mask that the CRF removes leaves a gap in the numbers."""
    image = photo(album.workspace.file(number).source)
    features = album.features(number)
    network = album.network
    scaled = fit_to_patches(image, network.size, network.backbone().patch_size)
    images = to_tensor(scaled)[None].to(features.device)
    (probabilities,) = mask_probabilities(features[None], images, threshold=threshold)
    return largest_channel(probabilities, (image.height, image.width)).cpu().numpy()


def similar_masks(
    album: Album, number: int, features: Float[Tensor, "c h w"], mask: int, threshold: float
) -> list[dict[str, Any]]:
    """The masks of other images that are most alike, by the cosine of their features.

    Returns:
        Number of the image, box in 0..1 and similarity, the most similar first; one of an image.
    """
    masks = propose(features[None], threshold=threshold)[0]
    directions = mask_directions(features, masks).cpu().numpy()
    if not 1 <= mask <= len(directions):
        return []
    found = []
    for other, summary in list(album.summaries.items()):
        if other == number or not len(summary.directions):
            continue
        cosines = summary.directions.astype(np.float32) @ directions[mask - 1]
        best = int(cosines.argmax())
        found.append((float(cosines[best]), other, summary.boxes[best].tolist()))
    found.sort(key=lambda one: (-one[0], one[1]))
    return [
        {"image": other, "box": box, "similarity": round(max(0.0, cosine), 4)}
        for cosine, other, box in found[:ALIKE]
    ]
