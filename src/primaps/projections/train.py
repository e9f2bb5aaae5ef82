"""Train a projection by name: method, preset, number of steps, number of clusters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from primaps.progress import Report, silent
from primaps.projections.hp import HP_PRESETS, HPSettings, train_hp
from primaps.projections.probes import fit_clusters
from primaps.projections.projection import Projection
from primaps.projections.sampling import Features
from primaps.projections.stego import STEGO_PRESETS, StegoSettings, train_stego

METHODS = ("stego", "hp")


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
        ValueError: there is no such method, preset or field.

    Examples:
        >>> projection_settings("hp", "potsdam", dim=64).temperature
        0.4
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} must be one of {', '.join(METHODS)}")
    presets: dict[str, Any] = STEGO_PRESETS if method == "stego" else HP_PRESETS
    if preset not in presets:
        raise ValueError(f"preset {preset!r} must be one of {', '.join(presets)}")
    try:
        return replace(presets[preset], **changes)
    except TypeError as error:
        known = ", ".join(presets[preset].__dataclass_fields__)
        raise ValueError(f"{error}; {method} has {known}") from error


def train_projection(
    features: Features,
    method: str,
    *,
    classes: int | None = None,
    settings: StegoSettings | HPSettings | None = None,
    steps: int = 300,
    seed: int = 0,
    report: Report = silent,
) -> Projection:
    """Train a projection on cached features, and clusters on its codes.

    Args:
        features: (2, C, h, w) of each image; [0] of itself and [1] of its mirror image.
        method: ``stego`` or ``hp``.
        classes: K, the number of clusters to find in the codes; None for none, which STEGO takes
            only if its settings have shifts.
        settings: from :func:`projection_settings`; None is its preset ``own``.
        steps: of the optimiser.

    Raises:
        ValueError: settings of the other method, too few images, or out of range.
    """
    settings = projection_settings(method) if settings is None else settings
    if method == "stego" and isinstance(settings, StegoSettings):
        projection = train_stego(features, steps, settings, classes, seed, report)
    elif method == "hp" and isinstance(settings, HPSettings):
        projection = train_hp(features, steps, settings, seed, report)
    else:
        raise ValueError(f"{type(settings).__name__} are no settings of method {method!r}")
    if classes is None:
        return projection
    return fit_clusters(features, projection, classes, seed=seed, report=report)
