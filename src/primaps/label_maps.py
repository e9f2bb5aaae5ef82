"""Label maps of files: proposals and predictions of a collection, each with a picture."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer
from PIL import Image
from torch import Tensor

from primaps.backbones.backbone import Backbone, image_features, image_side
from primaps.backbones.load import load_backbone
from primaps.classes.legend import HIDDEN
from primaps.config import Size, Threshold
from primaps.crf import DenseCRF
from primaps.data import (
    ImageError,
    ImageFile,
    Problem,
    find_images,
    fit_to_patches,
    load_image,
    read,
    to_tensor,
)
from primaps.data.stream import content_digest
from primaps.em.pixels import largest_channel
from primaps.model import PriMaPsEM
from primaps.pictures.explain import steps_picture, threshold_picture
from primaps.pictures.overlays import overlay, overlay_masks, with_legend
from primaps.proposals.image_size import mask_probabilities
from primaps.scenes.predict import predict_image, shown_classes
from primaps.support.entrance import entrance
from primaps.support.files import save_picture
from primaps.support.outputs import OutputFolder
from primaps.support.progress import ProgressCallback, silent
from primaps.support.renamed import renamed
from primaps.version import VERSION

logger = logging.getLogger("primaps")
Inputs = str | Path | Sequence[str | Path]
OVERLAY_SIDE = 1600
"""Longest side of overlay pictures in pixels: to look at, so no larger than a screen."""


@dataclass(frozen=True)
class Written:
    """What a run over files did.

    Attributes:
        written: label maps made now.
        kept: label maps that an earlier run with the same options had made.
        problems: one sentence about each image that was left out.
    """

    written: list[Path]
    kept: list[Path]
    problems: list[str]


@renamed(report="progress", crf="mask_crf")
@entrance
def propose_files(
    inputs: Inputs,
    out: str | Path,
    *,
    backbone: str | Path | Backbone = "dinov2-vits14",
    threshold: Threshold = 0.4,
    mask_crf: bool = True,
    size: Size | None = None,
    device: str | torch.device = "auto",
    progress: ProgressCallback = silent,
    problem: Problem = logger.warning,
) -> Written:
    """Mask proposals of images: ``primaps propose``.

    For each image ``out/<relative path>.png`` has the masks at the image's own size (0 = ignore,
    1..Z in the order found; 8 bits, or 16 if Z > 255), and ``.overlay.jpg`` beside it shows them.
    Whole images are used, the shorter side scaled to ``size``. What an earlier run with the same
    options wrote is kept.

    Args:
        inputs: files, folders (searched recursively) or globs.
        threshold: psi of Eq. 6, in [0, 1).
        mask_crf: refine the masks by the dense CRF.
        size: shorter side in pixels; None is 320 or the multiple of the patch size nearest to it.

    Raises:
        NotFoundError: there is no image.
        WeightsError: the backbone has no weights here.
    """
    network = load_backbone(backbone, device)
    side, refine = image_side(network, size), DenseCRF() if mask_crf else None

    def masks(image: Image.Image) -> Tensor:
        scaled = to_tensor(fit_to_patches(image, side, network.patch_size))[None]
        scaled = scaled.to(network.device)
        features = image_features(network, scaled)
        (probabilities,) = mask_probabilities(features, scaled, crf=refine, threshold=threshold)
        return consecutive(largest_channel(probabilities, (image.height, image.width)))

    options = propose_options(network, threshold, mask_crf, side)
    return _write_maps("proposals", inputs, out, masks, overlay_masks, options, progress, problem)


def propose_options(
    network: Backbone, threshold: float, mask_crf: bool, size: int
) -> dict[str, Any]:
    """Everything that proposals of an image depend on, as it is kept beside them."""
    return {
        "primaps": VERSION,
        "command": "propose",
        "backbone": network.digest or network.name,
        "threshold": threshold,
        "mask_crf": mask_crf,
        "size": size,
    }


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


@renamed(report="progress")
@entrance
def predict_files(
    model: PriMaPsEM,
    inputs: Inputs,
    out: str | Path,
    *,
    crf: bool = True,
    names: Sequence[str] | None = None,
    tiles: Mapping[str, Any] | None = None,
    progress: ProgressCallback = silent,
    problem: Problem = logger.warning,
) -> Written:
    """Class maps of images by a fitted model: ``primaps predict``.

    For each image ``out/<relative path>.png`` has the class 0..K-1 of every pixel at the image's
    own size (8 bits), and ``.overlay.jpg`` beside it shows it with a legend.

    Args:
        names: of the K classes, for the legend; those of ``classes.json`` or the cut if None.
        tiles: of :class:`primaps.scenes.look.Look`: images are looked at by windows, not scaled.
    """
    classes, known = model.classes, model.legend_
    titles, colours = shown_classes(model, names)
    hides = known is not None and known.hides
    options = {
        "primaps": VERSION,
        "command": "predict",
        "crf": crf,
        "model": model.prediction_digest(),
        "names": titles,
    }
    options |= {"colours": colours.tolist()} if known else {}
    options |= {"tiles": dict(tiles)} if tiles is not None else {}

    def picture(image: Image.Image, labels: np.ndarray) -> Image.Image:
        labels = np.where(labels == HIDDEN, classes, labels) if hides else labels
        present = np.bincount(labels.flatten(), minlength=classes) / labels.size
        shown = [k for k in np.argsort(-present[:classes]) if present[k] >= 0.001]
        legend = [f"{titles[k]} {present[k]:.0%}" for k in shown]
        shades = np.concatenate([colours, np.zeros_like(colours[:1])])  # the last one: hidden
        return with_legend(overlay(image, labels, shades, ignore=classes), legend, colours[shown])

    def classify(image: Image.Image) -> Tensor:
        if tiles is not None:
            return torch.from_numpy(predict_image(model, image, crf, **tiles))
        return model.predict(image, crf)

    return _write_maps("prediction", inputs, out, classify, picture, options, progress, problem)


@renamed(report="progress", crf="mask_crf")
@entrance
def explain_files(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    backbone: Backbone,
    threshold: Threshold = 0.4,
    mask_crf: bool = True,
    size: Size | None = None,
    progress: ProgressCallback = silent,
    problem: Problem = logger.warning,
) -> list[Path]:
    """Write ``<relative path>.steps.jpg`` and ``.thresholds.jpg`` for each image.

    Args:
        inputs: files, folders (searched recursively) or globs.
        threshold: of the steps, psi of Eq. 6.
        mask_crf: refine the masks of the threshold strip by the dense CRF.
        size: shorter side in pixels; None is the multiple of the patch size nearest to 320.

    Raises:
        NotFoundError: there is no image.
    """
    files, written = find_images(inputs, exclude=out), []
    refine = DenseCRF() if mask_crf else None
    side, out = image_side(backbone, size), Path(out).expanduser()
    kinds = ("steps", "thresholds")
    output = OutputFolder(
        out,
        propose_options(backbone, threshold, mask_crf, side),
        [Path(str(file.source)) for file in files],
        [f"{file.key}.{kind}.jpg" for file in files for kind in kinds],
    )
    loaded = read(files, lambda file: (content_digest(file), load_image(file.source)), problem)
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


def _write_maps(
    stage: str,
    inputs: Inputs,
    out: str | Path,
    label: Callable[[Image.Image], Tensor],
    picture: Callable[[Image.Image, Integer[np.ndarray, "h w"]], Image.Image],
    options: dict[str, Any],
    progress: ProgressCallback,
    problem: Problem,
) -> Written:
    """Apply ``label`` to every image; write its map and picture, keeping what is already there."""
    out = Path(out).expanduser()
    files = find_images(inputs, exclude=out)
    endings = (".png", ".overlay.jpg")
    output = OutputFolder(
        out,
        options,
        [Path(str(file.source)) for file in files],
        [f"{file.key}{end}" for file in files for end in endings],
    )
    result = Written([], [], [])

    def skip(sentence: str) -> None:
        result.problems.append(sentence)
        problem(sentence)

    def load(file: ImageFile) -> tuple[str, Image.Image | None]:
        """Digest of the file; the image too if its results are not there."""
        digest = content_digest(file)
        done = output.finished(digest, [f"{file.key}{end}" for end in endings])
        return digest, None if done else load_image(file.source)

    for done, (file, (digest, image)) in enumerate(read(files, load, skip), 1):
        if image is None:
            result.kept.append(out / f"{file.key}.png")
        else:
            labels = label(image).cpu().numpy()
            labels = labels.astype(np.uint8 if labels.max() < 256 else np.uint16)
            scale = min(1.0, OVERLAY_SIDE / max(image.size))
            shown = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            small = Image.fromarray(labels).resize(shown, Image.Resampling.NEAREST)
            overlaid = picture(image.resize(shown), np.asarray(small))
            output.write(
                digest,
                {
                    f"{file.key}.overlay.jpg": partial(save_picture, overlaid, quality=90),
                    f"{file.key}.png": partial(save_picture, Image.fromarray(labels)),
                },
            )
            result.written.append(out / f"{file.key}.png")
        progress(stage, done, len(files), {})
    if len(result.written) + len(result.kept) < len(files):
        progress(stage, len(files), len(files), {})
    if not result.written and not result.kept:
        raise ImageError(
            f"none of the {len(files)} images could be read; first: {result.problems[0]}"
        )
    return result
