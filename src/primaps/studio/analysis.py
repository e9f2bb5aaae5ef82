"""What the model sees in an image, found once and kept: parts, logits, doubt, masks.

The part of every pixel is all that a number of classes, an edit or a correction needs
(:func:`primaps.classes.tree.part_map`), so looks stay what they are whatever a person does.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from PIL import Image
from torch import Tensor

from primaps.backbones.backbone import image_features
from primaps.data import fit_to_patches, to_tensor
from primaps.em.pixels import largest_channel, upsample
from primaps.model import PriMaPsEM
from primaps.proposals.principal_masks import propose
from primaps.utils.files import atomic_path
from primaps.version import VERSION


@dataclass(frozen=True)
class Look:
    """An image as a model sees it; arrays as they are kept on disk.

    Attributes:
        parts: of every pixel, at the size at which the image is shown; 8 bits, or 16 if needed.
        logits: of the model's classes, on the feature grid; half precision.
        margin: by how much the first class leads the second, on the feature grid, in [0, 1].
        alike: per part, the mean cosine of its pixels to the part that they are most like.
        directions: of the features of each mask proposal, of length 1; half precision.
        boxes: of these masks: left, top, right, bottom in 0..1.
    """

    parts: Integer[np.ndarray, "H W"]
    logits: Float[np.ndarray, "k h w"]
    margin: Float[np.ndarray, "h w"]
    alike: Float[np.ndarray, " l"]
    directions: Float[np.ndarray, "z c"]
    boxes: Float[np.ndarray, "z 4"]

    @property
    def doubt(self) -> float:
        """How unsure the model is of the image, in [0, 1]."""
        return float(1 - self.margin.astype(np.float32).mean())


@torch.no_grad()
def look(model: PriMaPsEM, photo: Image.Image, crf: bool = True) -> Look:
    """Look at an image.

    Args:
        model: cut at all its parts, so that its label maps are part maps.
        photo: at the size at which it is shown.
    """
    assert model.inventory_ is not None
    tree = model.inventory_.tree
    scaled = fit_to_patches(photo, model.size, model.backbone.patch_size)
    images = to_tensor(scaled)[None]
    clean = features = image_features(model.backbone, images)
    if model.encoder is not model.backbone:  # prototypes live among codes
        features = image_features(model.encoder, images)
    probabilities = model.probabilities(features, images, crf)[0]
    size = (photo.height, photo.width)
    parts = model.relabel(largest_channel(probabilities, size), features[0]).cpu()
    first, second = probabilities.topk(min(2, len(probabilities)), 0).values[[0, -1]]
    margin = F.adaptive_avg_pool2d((first - second)[None], (clean.shape[-2], clean.shape[-1]))[0]
    codes = features[0]
    cosines = F.normalize(codes, dim=0).flatten(1).T @ tree.parts.to(codes).T
    best = cosines.amax(1).view(1, 1, *codes.shape[1:])
    nearness = upsample(best, size)[0, 0].cpu()
    flat = parts.flatten().long()
    counts = flat.bincount(minlength=len(tree))
    sums = flat.bincount(nearness.flatten().double(), len(tree))
    masks = propose(clean, threshold=model.config.threshold)[0]
    return Look(
        parts=parts.numpy().astype(np.uint8 if len(tree) <= 256 else np.uint16),
        logits=model.logits(features)[0].cpu().half().numpy(),
        margin=margin.cpu().half().numpy(),
        alike=(sums / counts.clamp_min(1)).float().numpy(),
        directions=mask_directions(clean[0], masks).cpu().half().numpy(),
        boxes=mask_boxes(masks),
    )


def mask_directions(
    features: Float[Tensor, "c h w"], masks: Integer[Tensor, "h w"]
) -> Float[Tensor, "z c"]:
    """Direction of the sum of features over each mask, of length 1.

    Examples:
        >>> mask_directions(torch.eye(2).view(2, 1, 2), torch.tensor([[2, 1]])).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    count = int(masks.max())
    sums = features.new_zeros(count + 1, len(features))
    sums.index_add_(0, masks.flatten().to(features.device), features.flatten(1).T)
    return F.normalize(sums[1:], dim=1)


def mask_boxes(masks: Integer[Tensor, "h w"]) -> Float[np.ndarray, "z 4"]:
    """Around each mask: left, top, right, bottom in 0..1."""
    found = []
    height, width = masks.shape
    for number in range(1, int(masks.max()) + 1):
        rows, columns = (masks == number).nonzero(as_tuple=True)
        if not len(rows):
            found.append([0.0, 0.0, 0.0, 0.0])
            continue
        left, top = int(columns.min()) / width, int(rows.min()) / height
        found.append([left, top, (int(columns.max()) + 1) / width, (int(rows.max()) + 1) / height])
    return np.array(found, np.float32).reshape(-1, 4)


def about(model: str, path: Path) -> str:
    """What a look depends on: the digest of the model, and the file as it is now."""
    status = path.stat()
    text = f"{VERSION} {model} {status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save(found: Look, path: Path, about: str) -> None:
    """Write a look, whole or not at all."""
    arrays = {name: np.asarray(value) for name, value in asdict(found).items()}
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, about=np.array(about), **arrays)  # type: ignore[arg-type]


def load(path: Path, about: str) -> Look | None:
    """A look that was kept; None if there is none, or one of another model or file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["about"]) != about:
                return None
            return Look(**{name: file[name] for name in Look.__dataclass_fields__})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # it is a cache: what is damaged is looked at again
