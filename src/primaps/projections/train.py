"""Train a projection by name: method, preset, number of steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch

from primaps.config import Classes, Seed, Steps
from primaps.features.training_data import ImageArrays
from primaps.projections.hp import HP_PRESETS, HPSettings, train_hp
from primaps.projections.projection import Projection
from primaps.projections.shifts import automatic_shifts
from primaps.projections.stego import STEGO_PRESETS, StegoSettings, train_stego
from primaps.utils.errors import InputError
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validate, validated

Method = Literal["stego", "hp"]
STEPS = 300
"""Of the optimizer, if nothing else is asked for."""


def projection_settings(
    method: str, preset: str = "own", **changes: Any
) -> StegoSettings | HPSettings:
    """The settings of a preset, with changes.

    Args:
        method: ``stego`` or ``hp``.
        preset: ``own`` for any images; ``cityscapes``, ``cocostuff`` and ``potsdam`` are the
            authors' values for features of DINO on these data sets.
        **changes: fields of :class:`StegoSettings` or :class:`HPSettings`.

    Raises:
        InputError: there is no such method, preset or field.

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
        raise InputError(f"{error}; {method} has {known}") from error


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

    It has no clusters: the cluster probe of both papers is k-means on codes by gradient descent on
    Eq. 9, which is ``PriMaPsEM(method="kmeans", projection=...)``.

    Args:
        features: (2, C, h, w) of each image; [0] of itself and [1] of its flipped image.
        method: ``stego`` or ``hp``.
        classes: K, by which STEGO finds its shifts (:func:`automatic_shifts`) if its settings have
            none; HP needs none.
        settings: from :func:`projection_settings`; None is its preset ``own``.
        steps: of the optimizer.

    Raises:
        InputError: settings of the other method, too few images, or out of range.
    """
    validate(method, Method, "method")
    settings = projection_settings(method) if settings is None else settings
    if method == "stego" and isinstance(settings, StegoSettings):
        if settings.shifts is None:
            if classes is None:
                raise InputError(
                    "STEGO needs shifts in its settings, or the number of classes (at least 2) to "
                    "find them by"
                )
            shifts = automatic_shifts(features, settings, classes, seed, progress)
            settings = replace(settings, shifts=shifts)
        return train_stego(features, steps, settings, seed, progress)
    if method == "hp" and isinstance(settings, HPSettings):
        return train_hp(features, steps, settings, seed, progress)
    raise InputError(f"{type(settings).__name__} are no settings of method {method!r}")
