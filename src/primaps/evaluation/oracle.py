"""How good are masks as such: each gets the class that is most frequent inside it (Table 5)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from annotated_types import Interval
from jaxtyping import Int, Integer, UInt8
from torch import Tensor

from primaps.backbones.backbone import Backbone, image_features, image_side
from primaps.config import Resize, Size
from primaps.data import Dataset, LogCallback, as_dataset
from primaps.data.folder import IgnoreIndex
from primaps.evaluation.metrics import Scores, confusion_matrix, scores
from primaps.evaluation.protocol import Prediction, accumulate, predict_crops
from primaps.proposals.image_size import image_masks
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validate, validated

logger = logging.getLogger("primaps")


@dataclass(frozen=True)
class OracleScores:
    """Scores of masks that know their classes; all figures over labeled pixels only.

    Attributes:
        assigned: scores over the pixels that lie in a mask.
        all_pixels: scores over all pixels, those in no mask predictions of no class.
        all_wrong: the same, but those in no mask count as wrong predictions of the other classes
            that occur, evenly, and lower the IoU of these as well; as of no class if there is one
            class alone.
        masks_per_image: mean number of masks.
        ignored: share of the pixels that lie in no mask, in [0, 1].
    """

    assigned: Scores
    all_pixels: Scores
    all_wrong: Scores
    masks_per_image: float
    ignored: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def oracle_classes(
    mask: Integer[Tensor, "h w"],
    label: Integer[Tensor, "h w"],
    classes: int,
    ignore_index: int | None = 255,
) -> Int[Tensor, " z1"]:
    """The most frequent label inside each mask of an image.

    Args:
        mask: 0 = in no mask, 1..Z.
        label: classes 0..classes-1 or ``ignore_index``.

    Returns:
        ``1 + Z`` classes, the entry 0 (no mask) being ``classes``. On a tie the smaller class, and
        class 0 for a mask without a labeled pixel.

    Raises:
        InputError: the shapes differ or a label is outside its range.

    Example:
        >>> mask, label = torch.tensor([[0, 1, 1, 2]]), torch.tensor([[0, 2, 2, 1]])
        >>> oracle_classes(mask, label, classes=3)
        tensor([3, 2, 1])
    """
    counts = confusion_matrix(mask, label, int(mask.max()) + 1, classes, ignore_index)
    best = counts.argmax(0)
    best[0] = classes
    return best


def oracle_confusion(
    masks: Integer[Tensor, "b h w"],
    labels: Integer[Tensor, "b h w"],
    classes: int,
    ignore_index: int | None = 255,
) -> Int[Tensor, "classes classes1"]:
    """Labeled pixels by class (rows) and by the class of their mask (columns, last: no mask).

    Args:
        masks: per image 0 = in no mask, 1..Z.
        labels: classes 0..classes-1 or ``ignore_index``.

    Raises:
        InputError: the shapes differ or a label is outside its range.

    Example:
        >>> masks, labels = torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[0, 1, 1, 0]]])
        >>> oracle_confusion(masks, labels, classes=2)
        tensor([[0, 1, 1],
                [0, 2, 0]])
    """
    total = torch.zeros(classes, classes + 1, dtype=torch.int64, device=masks.device)
    for mask, label in zip(masks, labels, strict=True):
        prediction = oracle_classes(mask, label, classes, ignore_index)[mask.long()]
        total += confusion_matrix(prediction, label, classes + 1, classes, ignore_index)
    return total


def oracle_scores(
    confusion: Int[Tensor, "classes classes1"], masks: int, images: int
) -> OracleScores:
    """Scores of :func:`oracle_confusion` summed over a set of ``images`` with ``masks`` in all.

    Raises:
        InputError: no labeled pixel lies in a mask.

    Example:
        >>> found = oracle_scores(torch.tensor([[0, 1, 1], [0, 2, 0]]), masks=1, images=1)
        >>> round(found.assigned.accuracy, 3), found.all_pixels.accuracy, found.ignored
        (0.667, 0.5, 0.25)
    """
    classes = len(confusion)
    known: list[int | None] = list(range(classes))
    all_pixels = scores(confusion, [*known, None])
    several = int((confusion.sum(1) > 0).sum()) > 1
    return OracleScores(
        assigned=scores(confusion[:, :classes], known),
        all_pixels=all_pixels,
        all_wrong=scores(spread_ignored(confusion), known) if several else all_pixels,
        masks_per_image=masks / images,
        ignored=int(confusion[:, -1].sum()) / int(confusion.sum()),
    )


def spread_ignored(
    confusion: Int[Tensor, "classes classes1"],
) -> Int[Tensor, "classes classes"]:
    """Give the pixels in no mask (last column) to the other classes that occur, in equal parts.

    Args:
        confusion: at least two classes occur.

    Returns:
        Counts times the number of those classes, so that they stay whole.

    Example:
        >>> spread_ignored(torch.tensor([[3, 0, 0, 1], [0, 2, 0, 0], [0, 0, 4, 2]])).tolist()
        [[6, 1, 1], [0, 4, 0], [2, 2, 8]]
    """
    counts, ignored = confusion[:, :-1], confusion[:, -1:]
    present = confusion.sum(1) > 0
    others = present & ~torch.eye(len(confusion), dtype=torch.bool, device=confusion.device)
    parts = int(present.sum()) - 1
    return counts * parts + ignored * others


def count_masks(masks: Integer[Tensor, "b h w"]) -> int:
    """Number of masks with at least one pixel, over all images.

    Example:
        >>> count_masks(torch.tensor([[[0, 1, 3]], [[0, 0, 0]]]))
        2
    """
    return sum(int((mask.unique() > 0).sum()) for mask in masks)


@dataclass(frozen=True)
class ClassScores:
    """Accuracy, mean IoU and IoU by class name, in [0, 1]; None for a class that is nowhere."""

    accuracy: float
    mean_iou: float
    iou: dict[str, float | None]


@dataclass(frozen=True)
class OracleEvaluation:
    """What :func:`evaluate_oracle` found.

    Attributes:
        assigned: scores over the pixels that lie in a mask.
        all_pixels: scores over all pixels, those in no mask predictions of no class.
        all_wrong: the same, but those in no mask wrong predictions of other classes.
        masks_per_image: mean number of masks.
        ignored: share of the pixels that lie in no mask, in [0, 1].
        images: number of images that were scored.
        skipped: a sentence about each image that was not.
    """

    assigned: ClassScores
    all_pixels: ClassScores
    all_wrong: ClassScores
    masks_per_image: float
    ignored: float
    images: int
    skipped: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@validated
def evaluate_oracle(
    images: str | Path | Dataset,
    labels: str | Path | None = None,
    *,
    backbone: Backbone,
    ignore_index: IgnoreIndex | None = None,
    size: Size | None = None,
    resize: str = "pillow",
    batch_size: Annotated[int, Interval(ge=1, le=10**6)] = 8,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
    **options: Any,
) -> OracleEvaluation:
    """Oracle scores of the masks of labeled images (Table 5): ``primaps oracle``.

    Protocol: shorter side of image and label to ``size`` (bilinear, nearest), center crop.

    Args:
        images: a data set, or a folder (searched recursively) or a glob, which need ``labels``.
        labels: folder of label maps under the relative paths of the images; a ``classes.json``
            there or up to two folders above gives names and ignore index.
        backbone: from :func:`primaps.load_backbone`.
        ignore_index: label that is not counted; the one of ``classes.json`` if None, else 255.
        size: pixels; None is the multiple of the patch size nearest to 320.
        resize: ``pillow``, or ``tensor``: as the authors' program does at evaluation.
        batch_size: images at a time.
        options: of :func:`primaps.image_masks` (``crf``, ``threshold``, ...).

    Returns:
        Scores over the pixels in masks, and over all of them.

    Raises:
        ImageError: no image has a usable label.
        NotFoundError: there is no image, or the folder of labels is missing.
    """
    validate(resize, Resize, "resize")
    side = image_side(backbone, size, batch_size)
    data = as_dataset(images, labels, ignore_index)
    ignore, classes = data.ignore_index, len(data.classes)
    masks_per_image: list[int] = []

    def masks(pictures: UInt8[Tensor, "b 3 h w"]) -> Integer[Tensor, "b h w"]:
        pictures = pictures.to(backbone.device)
        return image_masks(image_features(backbone, pictures), pictures, **options)

    def predict(skip: LogCallback) -> Iterator[Prediction]:
        return predict_crops(
            data, data.samples, masks, side, batch_size, skip, cast(Resize, resize)
        )

    def count(one: Prediction) -> Int[Tensor, "classes classes1"]:
        masks_per_image.append(count_masks(one.clusters[None]))
        return oracle_confusion(one.clusters[None], one.label[None], classes, ignore)

    counted = accumulate(data, classes + 1, predict, count, "oracle", progress, log)
    result = oracle_scores(counted.confusion, sum(masks_per_image), len(masks_per_image))

    def named(part: Scores) -> ClassScores:
        iou = zip(data.classes, part.iou, strict=True)
        shown = {name: v for name, v in iou if not data.layout.guessed or v is not None}
        return ClassScores(part.accuracy, part.mean_iou, shown)

    return OracleEvaluation(
        assigned=named(result.assigned),
        all_pixels=named(result.all_pixels),
        all_wrong=named(result.all_wrong),
        masks_per_image=result.masks_per_image,
        ignored=result.ignored,
        images=len(masks_per_image),
        skipped=counted.skipped,
    )
