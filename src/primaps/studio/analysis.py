"""Analysis of an image: what the network computes for it, independent of edits and corrections.

The leaf of each pixel in the class tree determines its class for any number of classes, edits and
corrections (:func:`primaps.classes.tree.leaf_map`). An analysis therefore stays valid after edits,
and is cached.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from primaps.backbones.backbone import Backbone, image_features
from primaps.classes.tree import leaf_cosines
from primaps.data import fit_to_patches, to_tensor
from primaps.model import PriMaPsEM
from primaps.proposals.image_size import mask_probabilities
from primaps.proposals.principal_masks import propose
from primaps.utils.bilinear import largest_channel, upsample
from primaps.utils.files import atomic_path
from primaps.version import VERSION

MAX_SIMILAR = 12
"""Maximum number of similar regions."""


@dataclass(frozen=True)
class ImageAnalysis:
    """Analysis of an image, as arrays in the types in which they are cached.

    Attributes:
        leaves: Leaf of the class tree of every pixel, at the displayed size; 8 or 16 bits.
        logits: Logits of the K classes of the model on the feature grid; half precision.
        margin: Probability of the first class minus that of the second, on the feature grid.
        similarity: Mean cosine similarity of the pixels of each leaf to their nearest leaf.
        directions: Mean feature direction of each mask proposal, of length 1; half precision.
        boxes: Left, top, right and bottom edge of each mask, as fractions of the image.
    """

    leaves: Integer[np.ndarray, "H W"]
    logits: Float[np.ndarray, "k h w"]
    margin: Float[np.ndarray, "h w"]
    similarity: Float[np.ndarray, " l"]
    directions: Float[np.ndarray, "z c"]
    boxes: Float[np.ndarray, "z 4"]

    @property
    def uncertainty(self) -> float:
        """One minus the mean margin, in [0, 1]."""
        return float(1 - self.margin.astype(np.float32).mean())


@torch.no_grad()
def analyze(model: PriMaPsEM, image: Image.Image) -> ImageAnalysis:
    """Analyze an image.

    Args:
        model: Model cut at all its leaves, which makes its label maps leaf maps.
        image: Image at the displayed size.
    """
    assert model.class_summary_ is not None
    tree = model.class_summary_.tree
    found = model.segment(image)
    codes, leaves = found.features, found.labels.cpu()
    masked = codes[None]
    if model.encoder is not model.backbone:  # masks are found on features, not on codes
        scaled = fit_to_patches(image, model.size, model.backbone.patch_size)
        masked = image_features(model.backbone, to_tensor(scaled)[None])
    size = (image.height, image.width)
    margin = F.adaptive_avg_pool2d(found.margin[None], (masked.shape[-2], masked.shape[-1]))[0]
    best = upsample(leaf_cosines(tree, codes).amax(0)[None, None], size)[0, 0].cpu()
    flat = leaves.flatten().long()
    counts = flat.bincount(minlength=len(tree))
    sums = flat.bincount(best.flatten().double(), len(tree))
    masks = propose(masked, threshold=model.config.threshold)[0]
    return ImageAnalysis(
        leaves=leaves.numpy().astype(np.uint8 if len(tree) <= 256 else np.uint16),
        logits=found.logits.cpu().half().numpy(),
        margin=margin.cpu().half().numpy(),
        similarity=(sums / counts.clamp_min(1)).float().numpy(),
        directions=mask_directions(masked[0], masks).cpu().half().numpy(),
        boxes=mask_boxes(masks),
    )


def mask_directions(
    features: Float[Tensor, "c h w"], masks: Integer[Tensor, "h w"]
) -> Float[Tensor, "z c"]:
    """Return the normalized sum of the features in each mask.

    Examples:
        >>> mask_directions(torch.eye(2).view(2, 1, 2), torch.tensor([[2, 1]])).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    sums = features.new_zeros(int(masks.max()) + 1, len(features))
    sums.index_add_(0, masks.flatten().to(features.device), features.flatten(1).T)
    return F.normalize(sums[1:], dim=1)


def mask_boxes(masks: Integer[Tensor, "h w"]) -> Float[np.ndarray, "z 4"]:
    """Return the box around each mask, as fractions of the image; an empty mask has zeros."""
    boxes = np.zeros((int(masks.max()), 4), np.float32)
    height, width = masks.shape
    for row in range(len(boxes)):
        rows, columns = (masks == row + 1).nonzero(as_tuple=True)
        if len(rows):
            left, top = int(columns.min()) / width, int(rows.min()) / height
            right, bottom = (int(columns.max()) + 1) / width, (int(rows.max()) + 1) / height
            boxes[row] = left, top, right, bottom
    return boxes


def live_masks(features: Float[Tensor, "c h w"], threshold: float) -> Integer[np.ndarray, "h w"]:
    """Propose masks on the feature grid without the CRF, which takes milliseconds."""
    return propose(features[None], threshold=threshold)[0].cpu().numpy()


@torch.no_grad()
def refined_masks(
    backbone: Backbone,
    image: Image.Image,
    features: Float[Tensor, "c h w"],
    size: int,
    threshold: float,
) -> Integer[np.ndarray, "H W"]:
    """Propose masks refined by the CRF at the displayed size, as ``primaps propose`` does.

    Args:
        image: Image at the displayed size.
        size: Shorter side in pixels at which the network processes images.

    Returns:
        Mask numbers. A mask that the CRF removes leaves a gap in the numbers.
    """
    scaled = to_tensor(fit_to_patches(image, size, backbone.patch_size))[None].to(features.device)
    (probabilities,) = mask_probabilities(features[None], scaled, threshold=threshold)
    return largest_channel(probabilities, (image.height, image.width)).cpu().numpy()


def similar_regions(
    regions: Mapping[int, Any],
    number: int,
    features: Float[Tensor, "c h w"],
    mask: int,
    threshold: float,
) -> list[dict[str, Any]]:
    """Find the most similar masks of other images by cosine similarity, one per image.

    Args:
        regions: By image number, something with the ``directions`` and ``boxes`` of the masks.
        number: Image of the mask.
        mask: Number of the mask, from 1.

    Returns:
        One dict per mask, most similar first: ``image`` number, ``box`` and ``similarity``.
    """
    masks = propose(features[None], threshold=threshold)[0]
    directions = mask_directions(features, masks).cpu().numpy()
    if not 1 <= mask <= len(directions):
        return []
    found = []
    for other, candidates in regions.items():
        if other == number or not len(candidates.directions):
            continue
        cosines = candidates.directions.astype(np.float32) @ directions[mask - 1]
        best = int(cosines.argmax())
        found.append((float(cosines[best]), other, candidates.boxes[best].tolist()))
    found.sort(key=lambda one: (-one[0], one[1]))
    return [
        {"image": other, "box": box, "similarity": round(max(0.0, cosine), 4)}
        for cosine, other, box in found[:MAX_SIMILAR]
    ]


def cache_key(model: str, path: Path) -> str:
    """Return the key of a cached analysis: a hash of the model digest and of the file's state."""
    status = path.stat()
    text = f"{VERSION} {model} {status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save_analysis(analysis: ImageAnalysis, path: Path, key: str) -> None:
    """Write an analysis atomically; the leaf map is compressed as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(analysis.leaves).save(file, "PNG", compress_level=1)
    arrays = {name: np.asarray(value) for name, value in asdict(analysis).items()}
    arrays["leaves"] = np.frombuffer(file.getvalue(), np.uint8)
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(arrays, {"key": key}))


def load_analysis(path: Path, key: str) -> ImageAnalysis | None:
    """Read a cached analysis; None if it is missing, damaged, or has another key."""
    try:
        with safe_open(path, "numpy") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            arrays = {name: file.get_tensor(name) for name in ImageAnalysis.__dataclass_fields__}
        with Image.open(io.BytesIO(arrays["leaves"].tobytes())) as image:
            leaves = np.asarray(image)
        arrays["leaves"] = leaves if leaves.dtype == np.uint8 else leaves.astype(np.uint16)
        return ImageAnalysis(**arrays)
    except (OSError, SyntaxError, ValueError, KeyError, SafetensorError):
        return None
