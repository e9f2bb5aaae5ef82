"""The evaluation protocol of the field: a fitted model on labeled images, and its scores."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int, Integer, UInt8
from torch import Tensor

from primaps.backbones.backbone import flip_average, image_features, image_side
from primaps.classes.legend import hidden_last
from primaps.config import Resize, Size
from primaps.data import Dataset, LogCallback, Sample, as_dataset
from primaps.data.folder import IgnoreIndex
from primaps.evaluation.accumulate import Prediction, accumulate, predictions
from primaps.evaluation.metrics import confusion_matrix, majority, match, scores
from primaps.model import PriMaPsEM
from primaps.utils.errors import InputError
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validate, validated

logger = logging.getLogger("primaps")
Matching = Literal["hungarian", "majority"]
MATCHINGS = {"hungarian": match, "majority": majority}
BATCH_SIZE = 4
"""Squares that are predicted together."""
ImageFeatures = Callable[[UInt8[Tensor, "b 3 H W"]], Float[Tensor, "b c h w"]]


@dataclass(frozen=True)
class EvaluationOptions:
    """How an evaluation was made; see :func:`evaluate`."""

    size: int
    crop: bool
    flip: bool
    crf: bool
    resize: str
    matching: str
    ignore_index: int
    dataset: str
    split: str
    root: str


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        accuracy: share of the labeled pixels that are right, in [0, 1].
        mean_iou: mean of the IoU of the classes that occur.
        iou: by class name, in [0, 1]; None for a class that occurs nowhere.
        assignment: per cluster the name of its class, or None.
        confusion: pixels, a row per class and a column per cluster.
        by_image: accuracy of each image with a labeled pixel, by its key.
        images: number of images that were scored.
        skipped: a sentence about each image that was not.
        options: how it was done.
    """

    accuracy: float
    mean_iou: float
    iou: dict[str, float | None]
    assignment: list[str | None]
    confusion: list[list[int]]
    by_image: dict[str, float]
    images: int
    skipped: list[str]
    options: EvaluationOptions

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def model_predictions(
    model: PriMaPsEM,
    data: Dataset,
    samples: Sequence[Sample],
    *,
    size: int | None = None,
    crop: bool = True,
    flip: bool = True,
    crf: bool = True,
    resize: Resize = "pillow",
    features: ImageFeatures | None = None,
    log: LogCallback = logger.warning,
) -> Iterator[Prediction]:
    """Predict samples of a data set, in their order; see :func:`evaluate` for the options.

    Images without a usable label are reported and left out.
    """
    side, patch = size or model.size, model.backbone.patch_size
    if side % patch:
        raise InputError(f"size {side} is not a multiple of the patch size {patch}")
    encoded = flip_average if flip else image_features

    def predict(images: UInt8[Tensor, "b 3 h w"]) -> Integer[Tensor, "b h w"]:
        maps = features(images) if features else encoded(model.encoder, images)
        labels = model.probabilities(maps, images, crf).argmax(1)
        return torch.stack([model.relabel(*one) for one in zip(labels, maps, strict=True)])

    whole = None if crop else patch
    return predictions(data, samples, predict, side, whole, BATCH_SIZE, log, resize)


@validated
def evaluate(
    model: PriMaPsEM,
    images: str | Path | Sequence[str | Path] | Dataset,
    labels: str | Path | None = None,
    *,
    ignore_index: IgnoreIndex | None = None,
    size: Size | None = None,
    crop: bool = True,
    flip: bool = True,
    crf: bool = True,
    resize: str = "pillow",
    matching: str = "hungarian",
    features: ImageFeatures | None = None,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> Evaluation:
    """Scores of a fitted model on labeled images: ``primaps evaluate``.

    The defaults are the paper's protocol: shorter side of image and label to the model's size
    (bilinear, nearest), center crop, features averaged over the image and its flipped image, dense
    CRF, one Hungarian assignment over the whole set.

    Args:
        images: a data set, or files, folders or globs, which need ``labels``.
        labels: folder of label maps under the relative paths of the images; a ``classes.json``
            there or up to two folders above gives names and ignore index.
        ignore_index: label that is not counted; the one of ``classes.json`` if None, else 255.
        size: shorter side in pixels; None is the size that the model was fitted at.
        crop: cut the centered square; otherwise the whole image is predicted.
        flip: average features over each image and its flipped image, which ``predict`` does not.
        crf: refine predictions by the dense CRF.
        resize: ``pillow`` (antialiased, as in training), or ``tensor``: as the authors' program
            does at evaluation.
        matching: ``hungarian`` (each class gets one cluster) or ``majority`` (each cluster gets
            its most frequent class, so that several may share one: for more clusters than classes).
            A linear probe needs none.
        features: instead of the model's encoder and ``flip``: the features of the images, for
            several models on the same ones.

    Returns:
        Scores, and how they came about.

    Raises:
        ImageError: no image has a usable label.
        NotFoundError: there is no image, or the folder of labels is missing.
        InputError: an option is out of its range.
    """
    validate(matching, Matching, "matching")
    validate(resize, Resize, "resize")
    if resize == "tensor" and not crop:
        raise InputError("resize 'tensor' is of the centered square, not of whole images")
    data = as_dataset(images, labels, ignore_index)
    clusters, ignore = model.classes, data.ignore_index
    hides = model.legend_ is not None and model.legend_.hides
    columns = clusters + hides  # hidden classes are a last cluster that is never matched
    size = image_side(model.backbone, size or model.size, BATCH_SIZE, model.config.classes)

    def predict(skip: LogCallback) -> Iterator[Prediction]:
        return model_predictions(
            model, data, data.samples, size=size, crop=crop, flip=flip, crf=crf,
            resize=cast(Resize, resize), features=features, log=skip,
        )  # fmt: skip

    def count(one: Prediction) -> Int[Tensor, "classes clusters"]:
        shown = hidden_last(one.clusters, model.legend_)
        return confusion_matrix(shown, one.label, columns, len(data.classes), ignore)

    counted = accumulate(data, columns, predict, count, "evaluation", progress, log)
    confusion = counted.confusion
    if data.layout.guessed:
        confusion = confusion[: _last_class(confusion) + 1]
    names, method = data.classes[: len(confusion)], matching
    if model.config.method == "probe":  # its classes are those of the labels
        method = "none"
        known: list[int | None] = [k if k < len(confusion) else None for k in range(clusters)]
    else:
        known = MATCHINGS[matching](confusion[:, :clusters]) + [None] * hides
    result = scores(confusion, known)
    return Evaluation(
        accuracy=result.accuracy,
        mean_iou=result.mean_iou,
        iou=dict(zip(names, result.iou, strict=True)),
        assignment=[None if c is None else names[c] for c in result.assignment],
        confusion=confusion.tolist(),
        by_image={
            key: scores(own[: len(confusion)], result.assignment).accuracy
            for key, own in counted.by_image.items()
            if own.any()
        },
        images=len(counted.by_image),
        skipped=counted.skipped,
        options=EvaluationOptions(
            size=size,
            crop=crop,
            flip=flip,
            crf=crf,
            resize=resize,
            matching=method,
            ignore_index=ignore,
            dataset=data.layout.name,
            split=data.split,
            root=str(data.root),
        ),
    )


def _last_class(confusion: Int[Tensor, "classes clusters"]) -> int:
    """Index of the last class with a labeled pixel; 0 if there is none."""
    present = confusion.sum(1).nonzero()
    return int(present[-1]) if len(present) else 0
