"""Train a projection by method, preset and number of steps; crops of images for the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from primaps.config import Classes, Seed, Steps
from primaps.data import ImageFile, LogCallback, read, square
from primaps.features.training_data import ImageArrays
from primaps.projections.hp import HP_PRESETS, HPSettings, train_hp
from primaps.projections.projection import Projection
from primaps.projections.stego import (
    STEGO_PRESETS,
    StegoSettings,
    automatic_shifts,
    train_stego,
)
from primaps.utils.errors import InputError
from primaps.utils.files import atomic_path, fitting_name
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validate, validated

Method = Literal["stego", "hp"]
STEPS = 300
"""Default number of optimizer steps."""


def projection_settings(
    method: str, preset: str = "own", **changes: Any
) -> StegoSettings | HPSettings:
    """Return the settings of a preset with changes.

    Args:
        method: ``stego`` or ``hp``.
        preset: ``own`` for all images; ``cityscapes``, ``cocostuff`` and ``potsdam`` are the
            values of the authors for features of DINO on these data sets.
        **changes: fields of :class:`StegoSettings` or :class:`HPSettings`.

    Raises:
        InputError: the method, preset or field is unknown.

    Examples:
        >>> projection_settings("hp", "potsdam", dim=64).temperature
        0.4
    """
    validate(method, Method, "method")
    presets: dict[str, Any] = STEGO_PRESETS if method == "stego" else HP_PRESETS
    if preset not in presets:
        raise InputError(f"preset {preset!r} must be one of {', '.join(presets)}")
    try:
        return replace(presets[preset], **changes)
    except TypeError as error:
        known = ", ".join(presets[preset].__dataclass_fields__)
        raise InputError(f"{error}; the fields of {method} are {known}") from error


@validated
@torch.enable_grad()
def train_projection(
    features: ImageArrays,
    method: str,
    *,
    classes: Classes | None = None,
    settings: StegoSettings | HPSettings | None = None,
    steps: Steps = STEPS,
    seed: Seed = 0,
    progress: ProgressCallback = silent,
) -> Projection:
    """Train a projection on cached features.

    The projection has no clusters. The cluster probe of both papers is k-means on codes by gradient
    descent on Eq. 9, which is ``PriMaPsEM(method="kmeans", projection=...)``.

    Args:
        features: (2, C, h, w) of each image; [0] of the image and [1] of its horizontal flip.
        method: ``stego`` or ``hp``.
        classes: K, number of classes; STEGO needs it if its settings have no shifts
            (:func:`automatic_shifts`).
        settings: settings from :func:`projection_settings`; None is the preset ``own``.
        steps: number of optimizer steps.
        seed: random seed.
        progress: progress callback.

    Returns:
        The projection; its ``about`` has the settings.

    Raises:
        InputError: an argument is out of its range, the settings belong to the other method, or
            the number of images is too small.
    """
    validate(method, Method, "method")
    settings = projection_settings(method) if settings is None else settings
    if method == "stego" and isinstance(settings, StegoSettings):
        if settings.shifts is None:
            if classes is None:
                raise InputError(
                    "STEGO needs shifts in its settings, or the number of classes to compute them"
                )
            shifts = automatic_shifts(features, settings, classes, seed, progress)
            settings = replace(settings, shifts=shifts)
        return train_stego(features, steps, settings, seed, progress)
    if method == "hp" and isinstance(settings, HPSettings):
        return train_hp(features, steps, settings, seed, progress)
    raise InputError(f"{type(settings).__name__} are not settings of method {method!r}")


def five_crops(images: UInt8[Tensor, "b 3 H W"]) -> UInt8[Tensor, "b5 3 H W"]:
    """Cut the four quarters and the center of each image, and scale them to its size.

    STEGO can train on these crops instead of the images, for smaller objects.

    Args:
        images: 8-bit images; sides have at least 2 pixels.

    Returns:
        Five crops of each image: top left, top right, bottom left, bottom right, center.

    Examples:
        >>> five_crops(torch.zeros(2, 3, 64, 48, dtype=torch.uint8)).shape
        torch.Size([10, 3, 64, 48])
    """
    height, width = images.shape[-2:]
    h, w = height // 2, width // 2
    corners = [(0, 0), (0, width - w), (height - h, 0), (height - h, width - w)]
    corners.append(((height - h) // 2, (width - w) // 2))
    crops = torch.stack([images[..., y : y + h, x : x + w] for y, x in corners], 1).flatten(0, 1)
    larger = F.interpolate(crops.float(), (height, width), mode="bilinear", align_corners=False)
    return larger.round().to(torch.uint8)


def write_crops(
    files: Sequence[ImageFile], size: int, folder: Path, log: LogCallback
) -> list[ImageFile]:
    """Write the five crops of the center crop of each image as PNG files.

    Returns:
        The crops in the order of the images.
    """
    found = []
    for file, image in read(files, lambda file: square(file.load(), size), log):
        for number, crop in enumerate(five_crops(image[None])):
            path = folder / fitting_name(file.key, f".{number}.png")
            with atomic_path(path) as temporary:
                Image.fromarray(crop.permute(1, 2, 0).numpy()).save(temporary)
            found.append(ImageFile(path, f"{file.key}.{number}"))
    return found
