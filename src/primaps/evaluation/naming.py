"""Name classes by a few label maps: each class gets the most frequent label of its pixels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from annotated_types import Interval
from jaxtyping import Int
from torch import Tensor

from primaps.classes.legend import RESERVED, Legend
from primaps.data import Dataset, LogCallback
from primaps.evaluation.protocol import (
    EvaluationOptions,
    Prediction,
    count_pixels,
    predict_samples,
)
from primaps.model import PriMaPsEM
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validated

logger = logging.getLogger("primaps")


@validated
def naming(
    counts: Int[Tensor, "labels classes"],
    legend: Legend,
    names: Sequence[str],
    min_agreement: Annotated[float, Interval(ge=0, le=1)] = 0.5,
) -> list[dict[str, Any]]:
    """Return edits that name the shown classes by labels. A few labeled pixels suffice.

    Classes that have a name keep it. If several classes get the same label, a number is appended
    to all names but that of the class with the most pixels.

    Args:
        counts: pixels by label (rows) and shown class (columns).
        legend: current classes.
        names: names of the labels. Names that are reserved for ids get the word "label": "class 3"
            and "3" are "label 3".
        min_agreement: minimum share of the labeled pixels of a class that have the label.

    Examples:
        >>> import torch
        >>> from primaps.classes.legend import legend
        >>> from primaps.classes.tree import Tree
        >>> tree = Tree(torch.eye(3), torch.tensor([5, 2, 4]), torch.tensor([[0, 1], [3, 2]]),
        ...             torch.tensor([0.1, 0.2]), classes=3)
        >>> counts = torch.tensor([[9, 2, 0], [1, 0, 0]])
        >>> naming(counts, legend(tree), ["car", "sky"])
        [{'rename': '0', 'to': 'car'}, {'rename': '1', 'to': 'car 2'}]
    """
    taken = {one.name for one in legend.classes if one.named}
    best, winner = counts.max(0)
    share = best / counts.sum(0).clamp_min(1)
    found = []
    for place in best.argsort(descending=True, stable=True).tolist():
        one = legend.shown[place]
        if one.named or best[place] == 0 or share[place] < min_agreement:
            continue
        name = wanted = _allowed_name(names[int(winner[place])])
        number = 2
        while name in taken:
            name, number = f"{wanted} {number}", number + 1
        taken.add(name)
        found.append({"rename": one.id, "to": name})
    return found


def _allowed_name(name: str) -> str:
    """Return the name of a label as a name that a class can have.

    Examples:
        >>> _allowed_name("class 3"), _allowed_name("0"), _allowed_name("class room")
        ('label 3', 'label 0', 'class room')
    """
    return f"label {name.removeprefix('class ')}" if RESERVED.fullmatch(name) else name


def count_labels(
    model: PriMaPsEM,
    data: Dataset,
    *,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> Int[Tensor, "labels classes"]:
    """Count the pixels of whole images by label and predicted class, without hidden classes.

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
