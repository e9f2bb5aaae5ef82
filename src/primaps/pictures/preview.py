"""The picture that ``fit`` leaves: training images, their proposals and the classes found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from primaps.model import PriMaPsEM
from primaps.pictures.overlays import grid, overlay, overlay_masks, with_legend
from primaps.results import write_own_png
from primaps.utils.colors import palette
from primaps.utils.errors import InputError


def model_preview(model: PriMaPsEM, path: str | Path, crf: bool = True) -> None:
    """Write a picture of up to six training images: image, mask proposals, predicted classes.

    Raises:
        InputError: the model was not fitted in this process, so it has no images to show.
    """
    if model.samples_ is None:
        raise InputError("the model was loaded, not fitted here: it has no training images to show")
    images = model.samples_.to(model.backbone.device)
    masks = model.masks(model.backbone(images.float() / 255), images).cpu().numpy()
    labels = model.predict_probabilities(images, crf=crf).argmax(1).cpu().numpy()
    colors = palette(model.config.classes)
    rows = []
    for image, mask, label in zip(images.cpu(), masks, labels, strict=True):
        photo = Image.fromarray(image.permute(1, 2, 0).numpy())
        rows.append(
            [
                photo,
                overlay_masks(photo, mask),
                overlay(photo, label, colors),
            ]
        )
    sheet = grid(rows, ("image", "mask proposals", "classes found"))
    present = np.flatnonzero(np.bincount(labels.flatten(), minlength=len(colors)))
    sheet = with_legend(sheet, [f"class {k}" for k in present], colors[present])
    write_own_png(sheet, path)
