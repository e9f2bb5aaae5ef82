"""Pictures of how masks come about: ``primaps propose --explain``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image

from primaps.backbones.backbone import Backbone, image_features, image_side
from primaps.config import Size, Threshold
from primaps.data import (
    ImageFile,
    LogCallback,
    find_images,
    fit_to_patches,
    load_image,
    read,
    to_tensor,
)
from primaps.data.folder import files_here
from primaps.data.stream import content_digest, in_memory
from primaps.label_maps.collection import Inputs
from primaps.label_maps.proposing import propose_options
from primaps.pictures.explain import steps_picture, threshold_picture
from primaps.results import OutputFolder
from primaps.utils.files import save_picture
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.shards import read_shard
from primaps.utils.validation import validated

logger = logging.getLogger("primaps")


@validated
def explain_files(
    inputs: Inputs,
    out: str | Path,
    *,
    backbone: Backbone,
    threshold: Threshold = 0.4,
    mask_crf: bool = True,
    size: Size | None = None,
    shard: str | None = None,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> list[Path]:
    """Write ``<relative path>.steps.jpg`` and ``.thresholds.jpg`` for each image.

    Args:
        inputs: files, folders (searched recursively) or globs.
        threshold: of the steps, psi of Eq. 6.
        mask_crf: refine the masks of the threshold strip by the dense CRF.
        shard: as in :func:`primaps.propose_files`.
        size: shorter side in pixels; None is the multiple of the patch size nearest to 320.

    Raises:
        NotFoundError: there is no image.
    """
    files: Sequence[ImageFile] = find_images(inputs, exclude=out)
    written = []
    refine: Literal["dense"] | None = "dense" if mask_crf else None
    side, out = image_side(backbone, size), Path(out).expanduser()
    kinds = ("steps", "thresholds")
    output = OutputFolder(
        out,
        propose_options(backbone, threshold, mask_crf, side),
        files_here(files),
        [f"{file.key}.{kind}.jpg" for file in files for kind in kinds],
    )
    files = read_shard(shard).of(files)

    def load(file: ImageFile) -> tuple[str, Image.Image]:
        file = in_memory(file)
        return content_digest(file), load_image(file.source)

    loaded = read(files, load, log)
    for done, (file, (digest, image)) in enumerate(loaded, 1):
        small = fit_to_patches(image, side, backbone.patch_size)
        pixels = to_tensor(small).to(backbone.device)
        features = image_features(backbone, pixels[None])[0]
        pictures = (
            steps_picture(small, features, threshold),
            threshold_picture(small, features, pixels, refine),
        )
        names = [f"{file.key}.{kind}.jpg" for kind in kinds]
        saved = [partial(save_picture, picture, quality=92) for picture in pictures]
        output.write(digest, dict(zip(names, saved, strict=True)))
        written += [out / name for name in names]
        progress("explanations", done, len(files), {})
    return written
