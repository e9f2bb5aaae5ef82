"""Class maps of a collection by a fitted model: ``primaps predict``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer
from PIL import Image
from torch import Tensor

from primaps.backbones.backbone import image_features, image_side
from primaps.classes.legend import HIDDEN
from primaps.config import Size
from primaps.data import LogCallback, find_images
from primaps.label_maps.collection import Inputs, Picture, Written, write_maps
from primaps.label_maps.labeler import ImageSize, Labeler
from primaps.model import PriMaPsEM
from primaps.pictures.overlays import overlay, with_legend
from primaps.scenes.predict import predict_image, shown_classes
from primaps.utils.bilinear import largest_channel
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validated
from primaps.version import VERSION

logger = logging.getLogger("primaps")


@validated
def predict_files(
    model: PriMaPsEM,
    inputs: Inputs,
    out: str | Path,
    *,
    crf: bool = True,
    size: Size | None = None,
    names: Sequence[str] | None = None,
    tiles: Mapping[str, Any] | None = None,
    shard: str | None = None,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> Written:
    """Class maps of images by a fitted model: ``primaps predict``.

    For each image ``out/<relative path>.png`` has the class 0..K-1 of every pixel at the image's
    own size (8 bits), and ``.overlay.jpg`` beside it shows it with a legend.

    Args:
        inputs, shard: as in :func:`primaps.propose_files`.
        size: shorter side in pixels; None is that of the fit. A larger one finds smaller things, in
            more time. With ``tiles`` the side of crops.
        names: of the K classes, for the legend; those of ``edits.json`` or the cut if None.
        tiles: fields of :class:`primaps.scenes.tiling.TilingOptions`; images are processed in tiles
            at their own resolution.

    Raises:
        InputError: the size, or a field of ``tiles``, is out of its range.
    """
    known = model.legend_
    titles, colors = shown_classes(model, names)
    options: dict[str, Any] = {
        "primaps": VERSION,
        "command": "predict",
        "crf": crf,
        "model": model.prediction_digest(),
        "names": titles,
    }
    options |= {"colors": colors.tolist()} if known else {}
    options |= {"tiles": dict(tiles)} if tiles is not None else {}
    options |= {"size": size} if size is not None else {}
    out = Path(out).expanduser()
    files = find_images(inputs, exclude=out)
    shown = class_picture(model, titles)
    if tiles is None:
        labeler = predictor(model, crf, size)
    else:
        labeler = tiled_predictor(model, crf, {"size": size, **tiles})
    return write_maps("prediction", files, out, labeler, shown, options, shard, progress, log)


def predictor(model: PriMaPsEM, crf: bool = True, size: int | None = None) -> Labeler:
    """Images to maps of their classes; each as :meth:`primaps.PriMaPsEM.predict` gives it."""
    side = image_side(model.backbone, size or model.size, 1, model.config.classes)

    def label(images: Tensor, sizes: Sequence[ImageSize]) -> list[Tensor]:
        features = image_features(model.encoder, images)
        found = model.probabilities(features, images, crf)
        return [
            model.relabel(largest_channel(probabilities, size), own)
            for probabilities, size, own in zip(found, sizes, features, strict=True)
        ]

    return Labeler(label, side, model.backbone.patch_size, model.backbone.device)


def tiled_predictor(model: PriMaPsEM, crf: bool, tiles: Mapping[str, Any]) -> Labeler:
    """The same by crops, as :func:`primaps.predict_image` looks at an image: it is not scaled."""

    def label(images: Tensor, sizes: Sequence[ImageSize]) -> list[Tensor]:
        pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        return [torch.from_numpy(predict_image(model, one, crf, **tiles)) for one in pictures]

    return Labeler(label, None, model.network.patch_size, model.network.device)


def class_picture(model: PriMaPsEM, titles: Sequence[str]) -> Picture:
    """Classes in colors over their image, above a legend with the share of each."""
    known, (_, colors) = model.legend_, shown_classes(model, titles)
    classes = len(colors)
    shades = np.concatenate([colors, np.zeros_like(colors[:1])])  # the last one: hidden
    hides = known is not None and known.hides

    def picture(image: Image.Image, labels: Integer[np.ndarray, "h w"]) -> Image.Image:
        labels = np.where(labels == HIDDEN, classes, labels) if hides else labels
        present = np.bincount(labels.flatten(), minlength=classes) / labels.size
        shown = [k for k in np.argsort(-present[:classes]) if present[k] >= 0.001]
        legend = [f"{titles[k]} {present[k]:.0%}" for k in shown]
        return with_legend(overlay(image, labels, shades, ignore=classes), legend, colors[shown])

    return picture
