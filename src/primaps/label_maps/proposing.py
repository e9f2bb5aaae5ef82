"""Mask proposals of a collection: ``primaps propose``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Integer
from torch import Tensor

from primaps.backbones.backbone import Backbone, image_features, image_side
from primaps.backbones.load import load_backbone
from primaps.config import Size, Threshold
from primaps.data import LogCallback, find_images
from primaps.label_maps.collection import Inputs, Written, write_maps
from primaps.label_maps.labeler import ImageSize, Labeler
from primaps.pictures.overlays import overlay_masks
from primaps.proposals.image_size import mask_probabilities
from primaps.utils.bilinear import largest_channel
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validated
from primaps.version import VERSION

logger = logging.getLogger("primaps")


@validated
def propose_files(
    inputs: Inputs,
    out: str | Path,
    *,
    backbone: str | Path | Backbone = "dinov2-vits14",
    threshold: Threshold = 0.4,
    mask_crf: bool = True,
    size: Size | None = None,
    device: str | torch.device = "auto",
    engine: str | None = None,
    shard: str | None = None,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> Written:
    """Mask proposals of images: ``primaps propose``.

    For each image ``out/<relative path>.png`` has the masks at the image's own size (0 = ignore,
    1..Z in the order found; 8 bits, or 16 if Z > 255), and ``.overlay.jpg`` beside it shows them.
    Whole images are used, the shorter side scaled to ``size``. What an earlier run with the same
    options wrote is kept.

    Args:
        inputs: files, folders (searched recursively), globs, tar files or URLs, see
            :func:`primaps.find_images`.
        threshold: psi of Eq. 6, in [0, 1).
        mask_crf: refine the masks by the dense CRF.
        size: shorter side in pixels; None is 320 or the multiple of the patch size nearest to it.
        engine: of :func:`primaps.load_backbone`.
        shard: ``I/N`` for the I-th of N shares of the images, each for a process of its own, on one
            folder or several; ``auto`` is that of torchrun or a Slurm array; None is everything.

    Raises:
        NotFoundError: there is no image.
        InputError: there is no such shard.
        WeightsError: the backbone has no weights here.
    """
    network = load_backbone(backbone, device, engine=engine)
    side = image_side(network, size)
    labeler = proposer(network, threshold, mask_crf, side)
    options = propose_options(network, threshold, mask_crf, side)
    out = Path(out).expanduser()
    files = find_images(inputs, exclude=out)
    return write_maps(
        "proposals", files, out, labeler, overlay_masks, options, shard, progress, log
    )


def proposer(
    network: Backbone, threshold: float, mask_crf: bool, size: int | None = None
) -> Labeler:
    """Images to maps of their masks, 0 = ignore and 1..Z; see :func:`propose_files`."""
    refine: Literal["dense"] | None = "dense" if mask_crf else None

    def label(images: Tensor, sizes: Sequence[ImageSize]) -> list[Tensor]:
        images = images.to(network.device)
        features = image_features(network, images)
        found = mask_probabilities(features, images, crf=refine, threshold=threshold)
        return [
            consecutive(largest_channel(probabilities, own))
            for probabilities, own in zip(found, sizes, strict=True)
        ]

    return Labeler(label, image_side(network, size), network.patch_size, network.device)


def propose_options(
    network: Backbone, threshold: float, mask_crf: bool, size: int
) -> dict[str, Any]:
    """Everything that proposals of an image depend on, as it is kept beside them."""
    options: dict[str, Any] = {
        "primaps": VERSION,
        "command": "propose",
        "backbone": network.digest or network.name,
        "threshold": threshold,
        "mask_crf": mask_crf,
        "size": size,
    }
    return options | ({} if network.arithmetic == "float32" else {"arithmetic": network.arithmetic})


def consecutive(masks: Integer[Tensor, "h w"]) -> Integer[Tensor, "h w"]:
    """Renumber masks 1..Z without gaps, which the CRF leaves where it removes a mask; 0 stays 0.

    Examples:
        >>> consecutive(torch.tensor([[0, 5], [2, 5]])).tolist()
        [[0, 2], [1, 2]]
    """
    present = torch.zeros(int(masks.max()) + 1, dtype=masks.dtype, device=masks.device)
    present[masks.unique().long()] = 1
    present[0] = 0
    return (present.cumsum(0) * present)[masks.long()]
