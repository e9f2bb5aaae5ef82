"""Oracle evaluation of mask proposals: each mask gets its most frequent label (Table 5)."""

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
from primaps.config import Depth, Resize, Size
from primaps.data import Dataset, LogCallback, as_dataset, at_depth
from primaps.data.collection import IgnoreIndex
from primaps.evaluation.metrics import Scores, confusion_matrix, scores
from primaps.evaluation.protocol import Prediction, accumulate, predict_crops
from primaps.proposals.image_size import image_masks
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validate, validated

logger = logging.getLogger("primaps")


@dataclass(frozen=True)
class OracleScores:
    """Scores of masks with oracle classes, over labeled pixels.

    Attributes:
        assigned: scores over the pixels in masks.
        all_pixels: scores over all pixels; those outside of masks are predictions of no class.
        all_wrong: scores over all pixels; those outside of masks are wrong predictions, evenly
            distributed over the other classes that occur, whose IoU they lower. Equal to
            ``all_pixels`` if only one class occurs.
        masks_per_image: mean number of masks.
        ignored: share of the pixels outside of masks, in [0, 1].
    """

    assigned: Scores
    all_pixels: Scores
    all_wrong: Scores
    masks_per_image: float
    ignored: float


def oracle_classes(
    mask: Integer[Tensor, "h w"],
    label: Integer[Tensor, "h w"],
    classes: int,
    ignore_index: int | None = 255,
) -> Int[Tensor, " z1"]:
    """Return the most frequent label inside each mask of an image.

    Args:
        mask: masks 1..Z, 0 outside of masks.
        label: classes 0..classes-1 or ``ignore_index``.
        classes: number of classes.
        ignore_index: label of pixels that are not counted.

    Returns:
        Class of each mask 0..Z: ``classes`` for 0, the smaller class on a tie, and class 0 for a
        mask without a labeled pixel.

    Raises:
        InputError: the shapes differ, or a label is out of range.

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
    """Count labeled pixels by label (rows) and class of their mask (columns, last: no mask).

    Args:
        masks: masks 1..Z of each image, 0 outside of masks.
        labels: classes 0..classes-1 or ``ignore_index``.
        classes: number of classes.
        ignore_index: label of pixels that are not counted.

    Raises:
        InputError: the shapes differ, or a label is out of range.

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
    """Compute the scores of a confusion matrix of :func:`oracle_confusion`.

    Args:
        confusion: counts over the whole set.
        masks: number of masks of the set.
        images: number of images of the set.

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
    """Distribute the pixels outside of masks (last column) evenly over the other classes.

    Args:
        confusion: counts in which at least two classes occur.

    Returns:
        Counts multiplied by the number of other classes, which keeps them integers.

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
    """Count the masks with at least one pixel over all images.

    Example:
        >>> count_masks(torch.tensor([[[0, 1, 3]], [[0, 0, 0]]]))
        2
    """
    return sum(int((mask.unique() > 0).sum()) for mask in masks)


@dataclass(frozen=True)
class ClassScores:
    """Accuracy, mean IoU and IoU by class name, in [0, 1]; None for classes that do not occur."""

    accuracy: float
    mean_iou: float
    iou: dict[str, float | None]


@dataclass(frozen=True)
class OracleEvaluation:
    """Result of :func:`evaluate_oracle`.

    Attributes:
        assigned, all_pixels, all_wrong, masks_per_image, ignored: see :class:`OracleScores`.
        images: number of images scored.
        skipped: one sentence per image that was skipped.
    """

    assigned: ClassScores
    all_pixels: ClassScores
    all_wrong: ClassScores
    masks_per_image: float
    ignored: float
    images: int
    skipped: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types."""
        return asdict(self)


@validated
def evaluate_oracle(
    images: str | Path | Dataset,
    labels: str | Path | None = None,
    *,
    backbone: Backbone,
    ignore_index: IgnoreIndex | None = None,
    size: Size | None = None,
    depth: Depth | None = None,
    resize: str = "pillow",
    batch_size: Annotated[int, Interval(ge=1, le=10**6)] = 8,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
    **options: Any,
) -> OracleEvaluation:
    """Score the mask proposals of labeled images with oracle classes: ``primaps oracle``.

    The shorter side of image and label is scaled to ``size`` (bilinear, nearest neighbor), and the
    center square is cropped.

    Args:
        images: data set, or files, folders or globs, which need ``labels``.
        labels: folder of label maps, see :func:`primaps.evaluate`.
        backbone: backbone from :func:`primaps.load_backbone`.
        ignore_index: label value that is not counted; None takes that of ``classes.json``, or 255.
        size: side of the crops in pixels; None is the multiple of the patch size nearest to 320.
        depth: bits of the values of images of more than 8 bits; None decides it from the images.
        resize: see :func:`primaps.evaluate`.
        batch_size: number of images that are processed together.
        progress: progress callback.
        log: called with one sentence about each image that is skipped.
        **options: options of :func:`primaps.image_masks` (``crf``, ``threshold``, ...).

    Raises:
        ImageError: no image has a usable label.
        NotFoundError: no image was found, or the folder of labels does not exist.
    """
    validate(resize, Resize, "resize")
    side = image_side(backbone, size, batch_size)
    data = as_dataset(images, labels, ignore_index)
    ignore, classes = data.ignore_index, len(data.classes)
    masks_per_image: list[int] = []

    def masks(crops: UInt8[Tensor, "b 3 h w"]) -> Integer[Tensor, "b h w"]:
        crops = crops.to(backbone.device)
        return image_masks(image_features(backbone, crops), crops, **options)

    def predict(skip: LogCallback) -> Iterator[Prediction]:
        return predict_crops(
            data,
            at_depth(data.samples, depth),
            masks,
            side,
            batch_size,
            skip,
            cast(Resize, resize),
        )

    def count(one: Prediction) -> Int[Tensor, "classes classes1"]:
        masks_per_image.append(count_masks(one.clusters[None]))
        return oracle_confusion(one.clusters[None], one.label[None], classes, ignore)

    counted = accumulate(data, classes + 1, predict, count, "oracle", progress, log)
    result = oracle_scores(counted.confusion, sum(masks_per_image), len(masks_per_image))

    def named(part: Scores) -> ClassScores:
        iou = zip(data.classes, part.iou, strict=True)
        shown = {name: v for name, v in iou if not data.layout.unnamed or v is not None}
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
