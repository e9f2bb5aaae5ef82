"""Names for classes from a few labels: each class gets the label that most of its pixels have."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from primaps.classes.legend import Legend
from primaps.data import Dataset, LogCallback
from primaps.evaluation.protocol import (
    EvaluationOptions,
    Prediction,
    count_pixels,
    predict_samples,
)
from primaps.model import PriMaPsEM
from primaps.utils.errors import InputError
from primaps.utils.progress import ProgressCallback, silent

logger = logging.getLogger("primaps")


def naming(
    counts: Int[Tensor, "labels classes"],
    legend: Legend,
    names: Sequence[str],
    least: float = 0.5,
) -> list[dict[str, Any]]:
    """Edits that name the shown classes by labels; a handful of pixels suffices.

    Classes with a name keep it. Where several classes have one label, all but the one with the
    most pixels of it get a number behind the name.

    Args:
        counts: pixels by label (row) and shown class (column).
        legend: the classes as they are.
        names: of the labels.
        least: share of a class's labeled pixels that must have the label, in [0, 1].

    Raises:
        InputError: ``least`` is out of its range.

    Examples:
        >>> from primaps.classes.legend import legend
        >>> from primaps.classes.tree import Tree
        >>> tree = Tree(torch.eye(3), torch.tensor([5, 2, 4]), torch.tensor([[0, 1], [3, 2]]),
        ...             torch.tensor([0.1, 0.2]), classes=3)
        >>> counts = torch.tensor([[9, 2, 0], [1, 0, 0]])
        >>> naming(counts, legend(tree), ["car", "sky"])
        [{'rename': '0', 'to': 'car'}, {'rename': '1', 'to': 'car 2'}]
    """
    if not 0 <= least <= 1:
        raise InputError(f"least is {least}; it must be 0 to 1")
    taken = {one.name for one in legend.classes if one.named}
    best, winner = counts.max(0)
    share = best / counts.sum(0).clamp_min(1)
    found = []
    for place in best.argsort(descending=True, stable=True).tolist():
        one = legend.shown[place]
        if one.named or best[place] == 0 or share[place] < least:
            continue
        name = wanted = names[int(winner[place])]
        number = 2
        while name in taken:
            name, number = f"{wanted} {number}", number + 1
        taken.add(name)
        found.append({"rename": one.id, "to": name})
    return found


def count_labels(
    model: PriMaPsEM,
    data: Dataset,
    *,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> Int[Tensor, "labels classes"]:
    """Pixels of a data set by label and predicted class; whole images, hidden classes left out.

    Raises:
        ImageError: no image has a usable label.
    """
    options = EvaluationOptions(
        crop=False, flip=False, crf=True, matching="none", ignore_index=data.ignore_index,
        dataset=data.layout.name, split=data.split, root=str(data.root),
    )  # fmt: skip

    def predict(skip: LogCallback) -> Iterator[Prediction]:
        return predict_samples(model, data, data.samples, options, log=skip)

    counts = count_pixels(data, model.classes, predict, "labels", progress, log)
    return counts.confusion[:, : model.classes]
