"""One pass over labeled images: what is predicted for each, counted by class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int, Integer, UInt8
from torch import Tensor

from primaps.config import Resize
from primaps.data import (
    Dataset,
    ImageError,
    ImageFile,
    LogCallback,
    Sample,
    chunks,
    load_pair,
    read,
)
from primaps.utils.progress import ProgressCallback


@dataclass(frozen=True)
class Prediction:
    """One image of a data set as the protocol sees it.

    Attributes:
        sample: its files.
        image: scaled, and cut to the centered square unless whole images are asked for.
        label: classes 0..classes-1, or the ignore index.
        clusters: what is predicted: clusters 0..K-1, or masks.
    """

    sample: Sample
    image: UInt8[Tensor, "3 h w"]
    label: Integer[Tensor, "h w"]
    clusters: Integer[Tensor, "h w"]


@dataclass
class Counts:
    """What was counted over a data set.

    Attributes:
        confusion: pixels by class and prediction.
        by_image: the same of each image, by its key.
        skipped: a sentence about each image that has no usable label.
    """

    confusion: Int[Tensor, "classes columns"]
    by_image: dict[str, Int[Tensor, "classes columns"]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def predictions(
    data: Dataset,
    samples: Sequence[Sample],
    predict: Callable[[UInt8[Tensor, "b 3 h w"]], Integer[Tensor, "b h w"]],
    size: int,
    patch_size: int | None,
    batch_size: int,
    log: LogCallback,
    resize: Resize = "pillow",
) -> Iterator[Prediction]:
    """Predict samples of a data set, in their order; those without a usable label are left out.

    Args:
        predict: 8-bit images to predictions of their size.
        size: shorter side in pixels.
        patch_size: None cuts the centered square; a number keeps whole images, one at a time.
        resize: of squares; see :func:`primaps.data.load_pair`.
    """

    def load(file: ImageFile) -> tuple[Tensor, Tensor]:
        assert isinstance(file, Sample)
        return load_pair(data, file, size, patch_size, resize)

    together = batch_size if patch_size is None else 1  # whole images differ in size
    for chunk in chunks(read(samples, load, log), together):
        predicted = predict(torch.stack([image for _, (image, _) in chunk])).cpu()
        for (sample, (image, label)), clusters in zip(chunk, predicted, strict=True):
            assert isinstance(sample, Sample)
            yield Prediction(sample, image, label, clusters)


def accumulate(
    data: Dataset,
    columns: int,
    predict: Callable[[LogCallback], Iterable[Prediction]],
    count: Callable[[Prediction], Int[Tensor, "classes columns"]],
    stage: str,
    progress: ProgressCallback,
    log: LogCallback,
) -> Counts:
    """Count the pixels of all images.

    Args:
        columns: of the confusion matrix.
        predict: from a function that is told about unusable images, to the predictions.
        count: the confusion matrix of one image.

    Raises:
        ImageError: no image has a usable label.
    """
    total = len(data.samples)
    counts = Counts(torch.zeros(len(data.classes), columns, dtype=torch.int64))

    def skip(sentence: str) -> None:
        counts.skipped.append(sentence)
        log(sentence)

    if data.incomplete:
        skip(data.incomplete)
    for done, one in enumerate(predict(skip), 1):
        own = counts.by_image[one.sample.key] = count(one)
        counts.confusion += own
        progress(stage, done, total, {})
    if not counts.by_image:
        raise ImageError(
            f"none of the {total} images has a usable label; first: {counts.skipped[0]}"
        )
    progress(stage, total, total, {})
    return counts
