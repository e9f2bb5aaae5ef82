"""Metrics of unsupervised segmentation: confusion matrix, matching, accuracy and IoU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, Integer
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from primaps.utils.errors import InputError


@dataclass(frozen=True)
class Scores:
    """Accuracy and intersection over union (IoU) after matching clusters to classes.

    Attributes:
        accuracy: share of labeled pixels whose cluster is matched to their class, in [0, 1].
        mean_iou: mean IoU of the classes that occur in prediction or label, in [0, 1].
        iou: IoU of each class in [0, 1]; None for a class that occurs in neither.
        assignment: class that each cluster is matched to, or None.
        pixels: number of labeled pixels.
    """

    accuracy: float
    mean_iou: float
    iou: list[float | None]
    assignment: list[int | None]
    pixels: int


def confusion_matrix(
    prediction: Integer[Tensor, "*shape"],
    label: Integer[Tensor, "*shape"],
    clusters: int,
    classes: int,
    ignore_index: int | None = 255,
) -> Int[Tensor, "classes clusters"]:
    """Count pixels by class (rows) and predicted cluster (columns).

    Args:
        prediction: clusters 0..clusters-1.
        label: classes 0..classes-1 or ``ignore_index``.
        clusters: number of columns.
        classes: number of rows.
        ignore_index: label of pixels that are not counted.

    Raises:
        InputError: the shapes differ, or a label or prediction is out of range.

    Examples:
        >>> label = torch.tensor([0, 0, 1, 255])
        >>> confusion_matrix(torch.tensor([1, 1, 0, 0]), label, clusters=2, classes=2)
        tensor([[0, 2],
                [1, 0]])
    """
    if prediction.shape != label.shape:
        raise InputError(
            f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} differ in shape"
        )
    if ignore_index is not None:
        counted = label != ignore_index
        prediction, label = prediction[counted], label[counted]
    prediction, label = prediction.flatten().long(), label.flatten().long()
    for name, values, limit in (("label", label, classes), ("prediction", prediction, clusters)):
        if values.numel() and not (int(values.min()) >= 0 and int(values.max()) < limit):
            wrong = int(values.max()) if int(values.max()) >= limit else int(values.min())
            raise InputError(
                f"{name}: value {wrong} is not 0 to {limit - 1}"
                + (f" or the ignore index {ignore_index}" if name == "label" else "")
            )
    counts = torch.bincount(label * clusters + prediction, minlength=classes * clusters)
    return counts.view(classes, clusters)


def match(confusion: Int[Tensor, "classes clusters"]) -> list[int | None]:
    """Compute the Hungarian matching of clusters and classes with the largest total overlap.

    Returns:
        Class of each cluster; None for clusters without a class, if there are more clusters.

    Examples:
        >>> match(torch.tensor([[0, 2], [1, 0]]))
        [1, 0]
    """
    rows, columns = linear_sum_assignment(confusion.cpu().numpy(), maximize=True)
    found = {int(column): int(row) for row, column in zip(rows, columns, strict=True)}
    return [found.get(cluster) for cluster in range(confusion.shape[1])]


def majority(confusion: Int[Tensor, "classes clusters"]) -> list[int | None]:
    """Assign each cluster its most frequent class, for more clusters than classes.

    Returns:
        Class of each cluster, the smaller one on a tie; None for clusters without a pixel.

    Examples:
        >>> majority(torch.tensor([[3, 0, 0, 2], [1, 4, 0, 2]]))
        [0, 1, None, 0]
    """
    counts = confusion.cpu().numpy()
    best = counts.argmax(0).tolist()
    return [c if counts[c, cluster] else None for cluster, c in enumerate(best)]


def by_class(
    confusion: Int[Tensor, "classes clusters"], assignment: list[int | None]
) -> Int[Tensor, "classes classes1"]:
    """Sum the columns of the clusters of each class; the last column is that of no class.

    Examples:
        >>> by_class(torch.tensor([[3, 0, 2], [1, 4, 2]]), [0, 1, None])
        tensor([[3, 0, 2],
                [1, 4, 2]])
        >>> by_class(torch.tensor([[3, 0, 2], [1, 4, 2]]), [0, 1, 0])
        tensor([[5, 0, 0],
                [3, 4, 0]])
    """
    classes = len(confusion)
    target = [classes if c is None else c for c in assignment]
    joined = confusion.new_zeros(classes, classes + 1)
    return joined.index_add_(1, torch.tensor(target, device=confusion.device), confusion)


def scores(
    confusion: Int[Tensor, "classes clusters"], assignment: list[int | None] | None = None
) -> Scores:
    """Compute the scores of a confusion matrix by the protocol of the paper.

    Args:
        confusion: counts over the whole set without ignored pixels.
        assignment: class of each cluster; None computes the Hungarian matching. Clusters may share
            a class. All pixels of a cluster with class None are wrong.

    Raises:
        InputError: the counts are all 0.

    Examples:
        >>> scores(torch.tensor([[0, 2], [1, 1]])).accuracy
        0.75
    """
    total = int(confusion.sum())
    if total == 0:
        raise InputError("no labeled pixel was counted; check ignore_index and the label maps")
    assignment = match(confusion) if assignment is None else assignment
    counts = confusion.cpu().numpy().astype(np.float64)
    matched = by_class(confusion, assignment)[:, :-1].cpu().numpy().astype(np.float64)
    correct = np.diag(matched)
    union = counts.sum(1) + matched.sum(0) - correct
    iou = [float(c / u) if u > 0 else None for c, u in zip(correct, union, strict=True)]
    present = [value for value in iou if value is not None]
    return Scores(
        accuracy=float(correct.sum() / total),
        mean_iou=float(np.mean(present)),
        iou=iou,
        assignment=assignment,
        pixels=total,
    )
