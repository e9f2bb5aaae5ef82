"""How good are masks as such: each gets the class that is most frequent inside it (Table 5)."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int, Integer
from torch import Tensor

from primaps.data import Dataset, ImageError, Problem, as_dataset, chunks, load_pair, read
from primaps.evaluation import Scores, confusion_matrix, scores
from primaps.progress import Report, silent
from primaps.proposals import image_masks

if TYPE_CHECKING:
    from primaps.backbones import Backbone

logger = logging.getLogger("primaps")


@dataclass(frozen=True)
class OracleScores:
    """Scores of masks that know their classes; all figures over labelled pixels only.

    Attributes:
        assigned: scores over the pixels that lie in a mask.
        all_pixels: scores over all pixels, those in no mask counted wrong.
        masks_per_image: mean number of masks.
        ignored: share of the pixels that lie in no mask, in [0, 1].
    """

    assigned: Scores
    all_pixels: Scores
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
        class 0 for a mask without a labelled pixel.

    Raises:
        ValueError: the shapes differ or a label is outside its range.

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
    """Labelled pixels by class (rows) and by the class of their mask (columns, last: no mask).

    Args:
        masks: per image 0 = in no mask, 1..Z.
        labels: classes 0..classes-1 or ``ignore_index``.

    Raises:
        ValueError: the shapes differ or a label is outside its range.

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
        ValueError: no labelled pixel lies in a mask.

    Example:
        >>> found = oracle_scores(torch.tensor([[0, 1, 1], [0, 2, 0]]), masks=1, images=1)
        >>> round(found.assigned.accuracy, 3), found.all_pixels.accuracy, found.ignored
        (0.667, 0.5, 0.25)
    """
    classes = len(confusion)
    known: list[int | None] = list(range(classes))
    return OracleScores(
        assigned=scores(confusion[:, :classes], known),
        all_pixels=scores(confusion, [*known, None]),
        masks_per_image=masks / images,
        ignored=int(confusion[:, -1].sum()) / int(confusion.sum()),
    )


def count_masks(masks: Integer[Tensor, "b h w"]) -> int:
    """Number of masks with at least one pixel, over all images.

    Example:
        >>> count_masks(torch.tensor([[[0, 1, 3]], [[0, 0, 0]]]))
        2
    """
    return sum(int((mask.unique() > 0).sum()) for mask in masks)


def evaluate_oracle(
    images: str | Path | Dataset,
    labels: str | Path | None = None,
    *,
    backbone: Backbone,
    ignore_index: int | None = None,
    size: int | None = None,
    batch_size: int = 8,
    report: Report = silent,
    problem: Problem = logger.warning,
    **options: Any,
) -> dict[str, Any]:
    """Oracle scores of the masks of labelled images (Table 5): ``primaps oracle``.

    Protocol: shorter side of image and label to ``size`` (bilinear, nearest), centre crop.

    Args:
        images: a data set, or a folder (searched recursively) or a glob, which need ``labels``.
        labels: folder of label maps under the relative paths of the images; a ``classes.json``
            there or up to two folders above gives names and ignore index.
        backbone: from :func:`primaps.load_backbone`.
        ignore_index: label that is not counted; the one of ``classes.json`` if None, else 255.
        size: pixels; None is the multiple of the patch size nearest to 320.
        batch_size: images at a time.
        options: of :func:`primaps.image_masks` (``crf``, ``threshold``, ...).

    Returns:
        ``assigned`` and ``all_pixels`` (each ``accuracy``, ``mean_iou`` and ``iou`` by class
        name), ``masks_per_image``, ``ignored``, ``images`` and ``skipped`` (sentences).

    Raises:
        ImageError: no image has a usable label.
        FileNotFoundError: there is no image, or the folder of labels is missing.
    """
    data = as_dataset(images, labels, ignore_index)
    files, side, ignore = data.samples, size or backbone.default_size, data.ignore_index
    classes = len(data.classes)
    skipped: list[str] = []

    def skip(sentence: str) -> None:
        skipped.append(sentence)
        problem(sentence)

    def load(sample: Any) -> tuple[Tensor, Tensor]:
        return load_pair(data, sample, side)

    if data.incomplete:
        skip(data.incomplete)

    counts, masks_found, done = torch.zeros(classes, classes + 1, dtype=torch.int64), 0, 0
    for chunk in chunks(read(files, load, skip), batch_size):
        pictures = torch.stack([image for _, (image, _) in chunk]).to(backbone.device)
        target = torch.stack([label for _, (_, label) in chunk])
        masks = image_masks(backbone(pictures.float() / 255), pictures, **options).cpu()
        counts += oracle_confusion(masks, target, classes, ignore)
        masks_found += count_masks(masks)
        done += len(chunk)
        report("oracle", done, len(files), {})
    if not done:
        raise ImageError(f"none of the {len(files)} images has a usable label; first: {skipped[0]}")
    found = oracle_scores(counts, masks_found, done)
    return {
        **{
            kind: {
                "accuracy": each.accuracy,
                "mean_iou": each.mean_iou,
                "iou": {
                    title: value
                    for title, value in zip(data.classes, each.iou, strict=True)
                    if not data.layout.guessed or value is not None
                },
            }
            for kind, each in (("assigned", found.assigned), ("all_pixels", found.all_pixels))
        },
        "masks_per_image": found.masks_per_image,
        "ignored": found.ignored,
        "images": done,
        "skipped": skipped,
    }
