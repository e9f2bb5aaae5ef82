"""The evaluation protocol of the field: a fitted model on labelled images, and its scores."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, Integer, UInt8
from torch import Tensor

from primaps.classes.legend import HIDDEN
from primaps.data import (
    Dataset,
    ImageError,
    Problem,
    Sample,
    as_dataset,
    chunks,
    load_pair,
    read,
)
from primaps.evaluation import confusion_matrix, majority, match, scores
from primaps.extraction import mirrored_mean
from primaps.progress import Report, silent
from primaps.segmenter import PriMaPsEM

logger = logging.getLogger("primaps")
MATCHINGS = {"hungarian": match, "majority": majority}
Features = Callable[[Tensor], Tensor]
"""8-bit images (B, 3, H, W) to feature maps (B, C, h, w)."""


@dataclass(frozen=True)
class Prediction:
    """One image of a data set as the protocol sees it.

    Attributes:
        sample: its files.
        image: scaled, and cut to the centred square unless whole images are asked for.
        label: classes 0..classes-1, or the ignore index.
        clusters: predicted, 0..K-1.
    """

    sample: Sample
    image: UInt8[Tensor, "3 h w"]
    label: Integer[Tensor, "h w"]
    clusters: Integer[Tensor, "h w"]


def predictions(
    model: PriMaPsEM,
    data: Dataset,
    samples: Sequence[Sample],
    *,
    size: int | None = None,
    crop: bool = True,
    mirror: bool = True,
    crf: bool = True,
    features: Features | None = None,
    problem: Problem = logger.warning,
) -> Iterator[Prediction]:
    """Predict samples of a data set, in their order; see :func:`evaluate` for the options.

    Images without a usable label are reported and left out.
    """
    side, patch = size or model.size, model.backbone.patch_size
    if side % patch:
        raise ValueError(f"size {side} is not a multiple of the patch size {patch}")

    def load(sample: Any) -> tuple[Tensor, Tensor]:
        return load_pair(data, sample, side, None if crop else patch)

    for chunk in chunks(read(samples, load, problem), 4 if crop else 1):  # whole ones differ
        images = torch.stack([image for _, (image, _) in chunk])
        if features:
            maps = features(images)
        elif mirror:
            maps = mirrored_mean(model.backbone, images)
        else:
            maps = model.backbone(images.to(model.backbone.device).float() / 255)
        found = model.probabilities(maps, images, crf).argmax(1).cpu()
        for (sample, (image, label)), clusters, own in zip(chunk, found, maps, strict=True):
            assert isinstance(sample, Sample)
            clusters = model.relabel(clusters, own).cpu()
            yield Prediction(sample, image, label, clusters)


def evaluate(
    model: PriMaPsEM,
    images: str | Path | Sequence[str | Path] | Dataset,
    labels: str | Path | None = None,
    *,
    ignore_index: int | None = None,
    size: int | None = None,
    crop: bool = True,
    mirror: bool = True,
    crf: bool = True,
    matching: str = "hungarian",
    features: Features | None = None,
    report: Report = silent,
    problem: Problem = logger.warning,
) -> dict[str, Any]:
    """Scores of a fitted model on labelled images: ``primaps evaluate``.

    The defaults are the paper's protocol: shorter side of image and label to the model's size
    (bilinear, nearest), centre crop, features averaged over the image and its mirror image, dense
    CRF, one Hungarian assignment over the whole set.

    Args:
        images: a data set, or files, folders or globs, which need ``labels``.
        labels: folder of label maps under the relative paths of the images; a ``classes.json``
            there or up to two folders above gives names and ignore index.
        ignore_index: label that is not counted; the one of ``classes.json`` if None, else 255.
        size: shorter side in pixels; None is the size that the model was fitted at.
        crop: cut the centred square; otherwise the whole image is predicted.
        mirror: average features over each image and its mirror image.
        crf: refine predictions by the dense CRF.
        matching: ``hungarian`` (each class gets one cluster) or ``majority`` (each cluster gets
            its most frequent class, so that several may share one: for more clusters than classes).
            A linear probe needs none.
        features: instead of the model's backbone and ``mirror``: the features of the images, for
            several models on the same ones.

    Returns:
        ``accuracy``, ``mean_iou``, ``iou`` by class name, ``assignment`` (class name per cluster),
        ``confusion`` (classes x clusters), ``by_image`` (accuracy of each image with a labelled
        pixel, by its key), ``images``, ``skipped`` (sentences) and the options.

    Raises:
        ImageError: no image has a usable label.
        FileNotFoundError: there is no image, or the folder of labels is missing.
        ValueError: an option is out of its range.
    """
    if matching not in MATCHINGS:
        raise ValueError(f"matching is {matching!r}; it must be one of {', '.join(MATCHINGS)}")
    data = as_dataset(images, labels, ignore_index)
    clusters, ignore, total = model.classes, data.ignore_index, len(data.samples)
    hides = model.legend_ is not None and clusters < len(model.legend_.classes)
    skipped: list[str] = []

    def skip(sentence: str) -> None:
        skipped.append(sentence)
        problem(sentence)

    if data.incomplete:
        skip(data.incomplete)
    columns = clusters + hides  # hidden classes are a last cluster that is never matched
    counts = torch.zeros(len(data.classes), columns, dtype=torch.int64)
    each: dict[str, Tensor] = {}
    done = 0
    size = size or model.size
    found = predictions(
        model, data, data.samples, size=size, crop=crop, mirror=mirror, crf=crf, features=features,
        problem=skip,
    )  # fmt: skip
    for one in found:
        found_here = one.clusters.where(one.clusters != HIDDEN, clusters) if hides else one.clusters
        own = confusion_matrix(found_here, one.label, columns, len(counts), ignore)
        counts += own
        each[one.sample.key] = own
        done += 1
        report("evaluation", done, total, {})
    if not done:
        raise ImageError(f"none of the {total} images has a usable label; first: {skipped[0]}")
    report("evaluation", total, total, {})
    if data.layout.guessed:
        counts = counts[: _last_class(counts) + 1]
    names = data.classes[: len(counts)]
    if model.config.method == "probe":  # its classes are those of the labels
        matching = "none"
        known: list[int | None] = [k if k < len(counts) else None for k in range(clusters)]
    else:
        known = MATCHINGS[matching](counts[:, :clusters]) + [None] * hides
    result = scores(counts, known)
    return {
        "accuracy": result.accuracy,
        "mean_iou": result.mean_iou,
        "iou": dict(zip(names, result.iou, strict=True)),
        "assignment": [None if c is None else names[c] for c in result.assignment],
        "confusion": counts.tolist(),
        "by_image": {
            key: scores(own[: len(counts)], result.assignment).accuracy
            for key, own in each.items()
            if own.any()
        },
        "images": done,
        "skipped": skipped,
        "options": {
            "size": size,
            "crop": crop,
            "mirror": mirror,
            "crf": crf,
            "matching": matching,
            "ignore_index": ignore,
            "dataset": data.layout.name,
            "split": data.split,
            "root": str(data.root),
        },
    }


def _last_class(counts: Int[Tensor, "classes clusters"]) -> int:
    """Index of the last class with a labelled pixel; 0 if there is none."""
    present = counts.sum(1).nonzero()
    return int(present[-1]) if len(present) else 0
