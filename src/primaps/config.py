"""Options of a model: types, ranges, defaults and help texts, declared once.

Python, the command line and the ``config.json`` of a model read them from here.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_type_hints

from annotated_types import Interval

from primaps.utils.errors import InputError
from primaps.utils.validation import validate_fields

Method = Literal["em", "kmeans", "probe"]
Recipe = Literal["paper", "orthogonal"]
LossSize = Literal["image", "feature"]
Precision = Literal["float32", "bfloat16"]
PredictPrecision = Literal["auto", "float32", "bfloat16"]
Engine = Literal["torch", "openvino"]
Level = Literal["tokens", "pixels"]
Resize = Literal["pillow", "tensor"]
Positions = Literal["exact", "scaled"]
CachedContent = Literal["features", "masks"]
CacheContent = Literal["auto", "features", "masks"]
Views = Annotated[int, Interval(ge=0, le=1000)] | Literal["fresh"]
Threshold = Annotated[float, Interval(ge=0, lt=1)]
Size = Annotated[int, Interval(ge=1, le=16384)]
CrfTile = Annotated[int, Interval(ge=168, le=16384)]
Scale = Annotated[float, Interval(ge=1e-6, le=1e6)]
Seed = Annotated[int, Interval(ge=-(10**18), le=10**18)]
Epochs = Annotated[int, Interval(ge=1, le=10**6)]
Steps = Annotated[int, Interval(ge=1, le=10**8)]
MAX_CLASSES = 255
"""Maximum number of classes: values 0 to 254 of label maps, in which 255 is no label."""
Classes = Annotated[int, Interval(ge=2, le=MAX_CLASSES)]
Depth = Annotated[int, Interval(ge=8, le=32)]
CosineScale = Annotated[float, Interval(gt=0, le=10**6)]

DEFAULT_SIZE = 320
"""Shorter image side of the paper in pixels; the nearest multiple of the patch size is used."""
ORTHOGONAL_SCALE = 6.0
"""Default scale of the cosine logits of recipe "orthogonal"."""
EM_STEPS = (
    "epochs", "min_steps", "momentum", "momentum_every", "momentum_ramp", "views", "loss_size",
)  # fmt: skip
"""Options of the EM steps, which recipe "orthogonal" does not use."""


@dataclass(frozen=True)
class Config:
    """Options of the fit of a :class:`primaps.PriMaPsEM`."""

    classes: Annotated[Classes, "K, the number of classes to find."]
    method: Annotated[
        Method,
        "Method: em (PriMaPs-EM), kmeans (its baseline) or probe (linear, trained on labels).",
    ] = "em"
    recipe: Annotated[
        Recipe,
        "Recipe of method em: orthogonal (orthonormal prototypes, fitted to the features of the "
        "masks) or paper (the EM steps of the paper).",
    ] = "orthogonal"
    backbone: Annotated[
        str,
        "Backbone: dino-vits8, dino-vitb8, dinov2-vits14, dinov2-vitb14, a hub id, timm:NAME, a "
        "folder or a .pth file.",
    ] = "dinov2-vits14"
    size: Annotated[
        Size | None,
        "Shorter side of the images in pixels, a multiple of the patch size. "
        f"[default: the multiple nearest to {DEFAULT_SIZE}]",
    ] = None
    epochs: Annotated[
        Epochs, "Number of training epochs, for recipe paper and methods kmeans and probe."
    ] = 50
    init_epochs: Annotated[
        int, Interval(ge=0, le=10**6), "Epochs per k-means restart of the initialization."
    ] = 2
    min_steps: Annotated[
        int, Interval(ge=0, le=10**8), "Minimum number of training steps, for small collections."
    ] = 150
    min_init_steps: Annotated[
        int,
        Interval(ge=0, le=10**8),
        "Minimum number of steps per k-means restart, for small collections.",
    ] = 184
    batch_size: Annotated[
        int,
        Interval(ge=1, le=10**6),
        "Images per training step. An incomplete last batch is dropped.",
    ] = 32
    learning_rate: Annotated[
        float, Interval(gt=0, le=1000), "Learning rate of the Adam optimizer."
    ] = 0.005
    momentum: Annotated[
        float,
        Interval(ge=0, lt=1),
        "Decay of the moving average of the prototypes (Eq. 11), for recipe paper.",
    ] = 0.98
    momentum_every: Annotated[
        Steps, "Training steps between two updates of the moving average, for recipe paper."
    ] = 10
    momentum_ramp: Annotated[
        bool,
        "Ramp up the decay of the moving average: min(1 - 1/n, momentum) in the n-th update. For "
        "recipe paper.",
    ] = True
    cosine_scale: Annotated[
        CosineScale | None,
        "Scale (inverse temperature) of cosine logits before the CRF. "
        f"[default: {ORTHOGONAL_SCALE:g} for recipe orthogonal, 1 for method kmeans (Eq. 9)]",
    ] = None
    threshold: Annotated[
        Threshold, "Similarity threshold psi of Eq. 6. Smaller values give larger masks."
    ] = 0.4
    anchor: Annotated[
        bool,
        "Compare features with the anchor of Eq. 4 instead of with the principal component.",
    ] = True
    iterative: Annotated[
        bool, "Recompute the principal component from the remaining features for every mask."
    ] = True
    mask_crf: Annotated[bool, "Refine masks with the dense CRF."] = True
    views: Annotated[
        Views,
        "Number of augmented views per image, computed once, or fresh to compute new ones in "
        "every step. For recipe paper.",
    ] = 0
    loss_size: Annotated[
        LossSize, "Resolution of the majority votes and of the loss, for recipe paper."
    ] = "image"
    depth: Annotated[
        Depth | None,
        "Bits of the values of images of more than 8 bits, such as 12 for camera data in files of "
        "16 bits. [default: the smallest of 8, 10, 12, 14, 16, 24 or 32 that holds the images]",
    ] = None
    precision: Annotated[
        Precision,
        "Floating-point precision of the backbone. bfloat16 is about 1.5 times as fast on recent "
        "processors.",
    ] = "float32"
    seed: Annotated[Seed, "Random seed."] = 0

    def __post_init__(self) -> None:
        validate_fields(self)

    @property
    def cosine(self) -> bool:
        """Whether prototypes are compared with L2-normalized features."""
        return self.method == "kmeans" or self.orthogonal

    @property
    def orthogonal(self) -> bool:
        """Whether the fit uses recipe "orthogonal"."""
        return self.method == "em" and self.recipe == "orthogonal"

    @property
    def runs_em(self) -> bool:
        """Whether EM steps follow the k-means initialization."""
        return self.method == "em" and self.recipe == "paper"

    @property
    def unused(self) -> tuple[str, ...]:
        """Options that this method and recipe do not use."""
        return EM_STEPS if self.orthogonal else ()


@dataclass(frozen=True)
class InferenceOptions:
    """Options of inference with a fitted or taught model."""

    crf: Annotated[bool, "Refine class probabilities with the dense CRF."] = True
    flip: Annotated[bool, "Average features over the image and its horizontal flip."] = False
    size: Annotated[
        Size | None,
        "Shorter side of the images in pixels, or for scenes the tile size. "
        "[default: as in the fit]",
    ] = None
    precision: Annotated[
        PredictPrecision | None,
        "Floating-point precision of the backbone: float32, bfloat16 (about 1.5 times as fast on "
        "recent processors), or auto for bfloat16 if the processor has instructions for it. "
        "[default: as in the fit]",
    ] = None
    reject: Annotated[
        bool,
        "Give pixels of which a taught model is unsure the value 255, none of its classes. The "
        "threshold is calibrated on the annotations.",
    ] = False
    level: Annotated[
        Level | None,
        "Level of a taught model: tokens, which is faster, or pixels. [default: as taught]",
    ] = None

    def __post_init__(self) -> None:
        validate_fields(self)


@functools.cache
def option_types(options: type = Config) -> dict[str, Any]:
    """Return the annotated type of each option, which is a field of a dataclass."""
    hints = get_type_hints(options, include_extras=True)
    return {field.name: hints[field.name] for field in fields(options)}


def option_help(name: str, options: type = Config) -> str:
    """Return the help text of an option.

    Examples:
        >>> option_help("learning_rate")
        'Learning rate of the Adam optimizer.'
    """
    return next(part for part in get_args(option_types(options)[name]) if isinstance(part, str))


def check_used(config: Config) -> None:
    """Refuse options without effect.

    Raises:
        InputError: an option of the EM steps differs from its default, and the recipe has no EM
            steps.
    """
    defaults = Config(config.classes)
    for name in config.unused:
        if getattr(config, name) != getattr(defaults, name):
            raise InputError(
                f"{name} applies to the EM steps, which recipe {config.recipe!r} does not run: "
                "choose recipe 'paper' or omit the option"
            )


def check_names(options: dict[str, Any]) -> None:
    """Refuse options that do not exist.

    Raises:
        InputError: an option is unknown.
    """
    for name in options:
        if name not in option_types():
            raise InputError(f"unknown option {name!r}; options are {', '.join(option_types())}")


for _options in (Config, InferenceOptions):
    _options.__doc__ = f"{_options.__doc__}\n\nAttributes:\n" + "".join(
        f"    {name}: {option_help(name, _options)}\n" for name in option_types(_options)
    )
