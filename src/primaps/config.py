"""The options of a model: once, for Python, the command line and the JSON beside the weights."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_type_hints

from primaps.utils.errors import InputError
from primaps.utils.typed import Range, check_fields

Method = Literal["em", "kmeans", "probe"]
Recipe = Literal["paper", "orthogonal"]
LossSize = Literal["image", "feature"]
Precision = Literal["float32", "bfloat16"]
PredictPrecision = Literal["auto", "float32", "bfloat16"]
Engine = Literal["torch", "openvino"]
Resize = Literal["pillow", "tensor"]
Positions = Literal["exact", "scaled"]
CachedContent = Literal["features", "masks"]  # of every image
CacheContent = Literal["auto", "features", "masks"]
Views = Annotated[int, Range(0, 1000)] | Literal["fresh"]
Threshold = Annotated[float, Range(0, below=1)]
Size = Annotated[int, Range(1, 16384)]
CrfTile = Annotated[int, Range(168, 16384)]
Seed = Annotated[int, Range(-(10**18), 10**18)]
Steps = Annotated[int, Range(1, 10**8)]
Classes = Annotated[int, Range(2, 256)]

RENAMED = {"crf": "mask_crf"}
"""Options by the names that they had."""


EM_STEPS = (
    "epochs", "min_steps", "momentum", "momentum_every", "momentum_ramp", "views", "loss_size",
)  # fmt: skip
"""Options that recipe "orthogonal" has no use for; the first two are also of other methods."""


@dataclass(frozen=True)
class Config:
    """How a :class:`primaps.PriMaPsEM` is fitted; recipe "paper" is the steps of the paper."""

    classes: Annotated[Classes, "K, the number of classes to find."]
    method: Annotated[
        Method, "em (PriMaPs-EM), kmeans (its baseline), or probe (linear, trained on labels)."
    ] = "em"
    recipe: Annotated[
        Recipe, "orthogonal: orthonormal prototypes on mask features; paper: the steps of EM."
    ] = "orthogonal"
    backbone: Annotated[
        str,
        "dino-vits8, dino-vitb8, dinov2-vits14, dinov2-vitb14, a hub id, a folder or a .pth.",
    ] = "dinov2-vits14"
    size: Annotated[Size | None, "Shorter side in pixels [default: 320, or 322 for patch 14]."] = (
        None
    )
    epochs: Annotated[
        int, Range(1, 10**6), "Passes of recipe paper, baseline or probe over the images."
    ] = 50
    init_epochs: Annotated[int, Range(0, 10**6), "Passes of each k-means start."] = 2
    min_steps: Annotated[int, Range(0, 10**8), "Least steps of epochs, for few images."] = 150
    min_init_steps: Annotated[
        int,
        Range(0, 10**8),
        "Least steps of k-means: the paper's 2 epochs of Cityscapes are 184, of 100 images 6.",
    ] = 184
    batch_size: Annotated[
        int, Range(1, 10**6), "Images per step; the last incomplete batch is dropped."
    ] = 32
    learning_rate: Annotated[float, Range(above=0, most=1000), "Of Adam."] = 0.005
    momentum: Annotated[
        float, Range(0, below=1), "Decay of the moving average (Eq. 11); recipe paper."
    ] = 0.98
    momentum_every: Annotated[
        int, Range(1, 10**8), "Steps between two updates of the moving average; recipe paper."
    ] = 10
    momentum_ramp: Annotated[
        bool,
        "Let the decay of the n-th update be min(1 - 1/n, momentum), not constant; recipe paper.",
    ] = True
    cosine_scale: Annotated[
        Annotated[float, Range(above=0, most=10**6)] | None,
        "Of logits that are cosines: how sure the CRF takes them [default: 1 for k-means, as in "
        "Eq. 9, and 10 for orthogonal].",
    ] = None
    threshold: Annotated[Threshold, "psi of Eq. 6: smaller gives larger masks."] = 0.4
    anchor: Annotated[
        bool, "Compare with the anchor of Eq. 4, not with the principal component itself."
    ] = True
    iterative: Annotated[bool, "Decompose the remaining features anew for each mask."] = True
    mask_crf: Annotated[bool, "Refine the masks by the dense CRF."] = True
    views: Annotated[
        Views,
        "Augmented views per image, computed once; fresh: new ones in every step; recipe paper.",
    ] = 0
    loss_size: Annotated[
        LossSize, "Votes and loss at image size, or at feature size; recipe paper."
    ] = "image"
    precision: Annotated[
        Precision, "Of the backbone: float32, or bfloat16, 1.5 times as fast on recent processors."
    ] = "float32"
    seed: Annotated[Seed, "Everything random follows from it."] = 0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def cosine(self) -> bool:
        """Whether prototypes are compared with features of length 1."""
        return self.method == "kmeans" or self.orthogonal

    @property
    def orthogonal(self) -> bool:
        """Whether the recipe orthogonal takes the place of the steps of EM."""
        return self.method == "em" and self.recipe == "orthogonal"

    @property
    def runs_em(self) -> bool:
        """Whether the steps of EM follow the k-means start."""
        return self.method == "em" and self.recipe == "paper"

    @property
    def unused(self) -> tuple[str, ...]:
        """Options that are about steps of EM, where there are none."""
        return EM_STEPS if self.orthogonal else ()


def option_types() -> dict[str, Any]:
    """The annotated type of each option."""
    hints = get_type_hints(Config, include_extras=True)
    return {field.name: hints[field.name] for field in fields(Config)}


def option_help(name: str) -> str:
    """What an option does, in a sentence.

    Examples:
        >>> option_help("learning_rate")
        'Of Adam.'
    """
    return next(part for part in get_args(option_types()[name]) if isinstance(part, str))


def check_used(config: Config) -> None:
    """Refuse options that would change nothing.

    Raises:
        InputError: an option of the steps of EM is given, and the recipe has none.
    """
    usual = Config(config.classes)
    for name in config.unused:
        if getattr(config, name) != getattr(usual, name):
            raise InputError(
                f"{name} is about the steps of EM, and recipe {config.recipe!r} has none: "
                "choose recipe 'paper', or leave it out"
            )


def check_names(options: dict[str, Any]) -> None:
    """Refuse options that do not exist.

    Raises:
        InputError: there is no such option, or it has another name now.
    """
    for name in options:
        if name in RENAMED:
            raise InputError(f"the option {name!r} is now {RENAMED[name]!r}")
        if name not in option_types():
            known = ", ".join(sorted(option_types()))
            raise InputError(f"unknown option {name!r}; there are {known}")


Config.__doc__ = f"{Config.__doc__}\n\nAttributes:\n" + "".join(
    f"    {name}: {option_help(name)}\n" for name in option_types()
)
