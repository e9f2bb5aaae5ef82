"""The options of a model: the fields are the CLI's options and the JSON beside the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Method = Literal["em", "kmeans", "probe"]
Recipe = Literal["paper", "orthogonal"]
LossSize = Literal["image", "feature"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Config:
    """How a :class:`primaps.PriMaPsEM` is fitted; the defaults are the paper's.

    Attributes:
        classes: K, the number of classes to find.
        method: ``em`` is PriMaPs-EM; ``kmeans`` the baseline that it starts from; ``probe`` a
            linear probe, which is trained on labels.
        recipe: ``paper`` is PriMaPs-EM; ``orthogonal`` fits orthonormal prototypes to mask features
            instead, see :mod:`primaps.orthogonal`.
        backbone: name, hub id, folder or file; see :func:`primaps.load_backbone`.
        size: shorter side of the images in pixels; None is the multiple of the patch size nearest
            to 320 (320 for patch 8, 322 for patch 14).
        epochs: passes of EM over the images.
        init_epochs: passes of k-means.
        min_steps: least number of steps of EM, whatever ``epochs`` gives.
        min_init_steps: least number of steps of k-means. The paper's 2 epochs of Cityscapes are
            184 steps; on 100 images they would be 6.
        batch_size: images per step.
        learning_rate: of Adam.
        momentum: decay of the moving average (Eq. 11), which follows every ``momentum_every``
            steps.
        momentum_every: steps between two updates of the moving average.
        momentum_ramp: ramp the decay up as the authors' program does; see
            :class:`primaps.em.Settings`.
        cosine_scale: of logits that are cosines (k-means and the recipe "orthogonal"), which makes
            the probabilities that the CRF sees surer; None is 1 for k-means, as in Eq. 9, and 10
            for the recipe.
        threshold: psi of Eq. 6, in [0, 1).
        anchor: compare features with the anchor (Eq. 4); without it with the principal component
            itself ("similarity masks" of Table 4a).
        iterative: decompose the remaining features anew for each mask ("non-iterative" of Table 4a
            does not).
        crf: refine the masks by the dense CRF.
        views: photometrically augmented feature maps per image, computed once; 0 trains on clean
            features; None augments anew in every step, as the paper does.
        loss_size: ``image`` takes votes and the loss at image size, as the paper; ``feature`` at
            the size of the feature map.
        precision: of the backbone's arithmetic; ``bfloat16`` is about twice as fast where the
            processor has instructions for it.
        seed: everything random follows from it.
    """

    classes: int
    method: Method = "em"
    recipe: Recipe = "paper"
    backbone: str = "dinov2-vits14"
    size: int | None = None
    epochs: int = 50
    init_epochs: int = 2
    min_steps: int = 150
    min_init_steps: int = 184
    batch_size: int = 32
    learning_rate: float = 0.005
    momentum: float = 0.98
    momentum_every: int = 10
    momentum_ramp: bool = True
    cosine_scale: float | None = None
    threshold: float = 0.4
    anchor: bool = True
    iterative: bool = True
    crf: bool = True
    views: int | None = 0
    loss_size: LossSize = "image"
    precision: Precision = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= 256:
            raise ValueError(
                f"classes is {self.classes}; it must be 2 to 256 (one class needs no model, and "
                "label maps have 8 bits)"
            )
        for name, choices in (
            ("method", Method),
            ("loss_size", LossSize),
            ("precision", Precision),
        ):
            if (value := getattr(self, name)) not in get_args(choices):
                raise ValueError(f"{name} {value!r} must be one of {', '.join(get_args(choices))}")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}; it must be in [0, 1)")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it must be in [0, 1)")
        for name in ("learning_rate", "cosine_scale"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} is {value}; it must be positive")
        for name in ("epochs", "batch_size", "momentum_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("init_epochs", "min_steps", "min_init_steps", "views"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")

    @property
    def cosine(self) -> bool:
        """Whether prototypes are compared with features of length 1."""
        return self.method == "kmeans" or (self.method == "em" and self.recipe == "orthogonal")

    @property
    def runs_em(self) -> bool:
        """Whether the steps of EM follow the k-means start."""
        return self.method == "em" and self.recipe == "paper"

    def steps(self, images: int) -> tuple[int, int]:
        """Steps of a k-means start, and of EM or the probe; 0 of what the method does not take.

        Examples:
            >>> Config(classes=27).steps(2975)
            (184, 4600)
            >>> Config(classes=11).steps(100)
            (184, 150)
            >>> Config(classes=11, method="kmeans").steps(100)
            (184, 0)
        """
        per_epoch = max(1, images // self.batch_size)
        start = max(self.init_epochs * per_epoch, self.min_init_steps)
        steps = max(self.epochs * per_epoch, self.min_steps)
        probe = self.method == "probe"
        return 0 if probe else start, steps if probe or self.runs_em else 0
