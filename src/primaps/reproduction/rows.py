"""A row of a table or figure: everything that it is, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from primaps.reproduction.paper import PaperScores

Kind = Literal["baseline", "em", "clusters", "probe", "oracle"]
"""What is fitted: k-means, PriMaPs-EM, nothing (the clusters of STEGO or HP), a linear probe on
labels, nothing (masks that know their classes)."""
Picture = Literal[
    "iou", "confusion", "examples", "pseudo labels", "oracle", "similarities", "thresholds",
    "psi", "iou table", "failures",
]  # fmt: skip

METHODS: dict[Kind, dict[str, Any]] = {
    "baseline": {"method": "kmeans"},
    "em": {},
    "clusters": {"method": "kmeans", "cosine_scale": 2.0},  # what STEGO and HP hand the CRF
    "probe": {"method": "probe"},
    "oracle": {},
}
"""Fields of :class:`primaps.Config`."""


@dataclass(frozen=True)
class TableRow:
    """A row of a table: what is fitted, how it is scored, and what the paper reports.

    Attributes:
        label: as printed.
        dataset: name of the data set.
        backbone: that makes the masks, and the features unless a checkpoint carries its own.
        kind: what is fitted.
        options: fields of :class:`primaps.Config` in which it differs from the run's.
        crf: whether predictions are refined by the dense CRF.
        projection: ``STEGO`` or ``HP``, if prototypes are fitted to its codes.
        split: that is scored.
        pixels: of an oracle: ``assigned``, ``all_pixels`` or ``all_wrong``.
        paper: accuracy and mean IoU in %, if the paper has the row.
        quoted: the paper has these figures from the paper of STEGO or HP.
    """

    label: str
    dataset: str
    backbone: str
    kind: Kind = "em"
    options: Mapping[str, Any] = field(default_factory=dict)
    crf: bool = True
    projection: str = ""
    split: str = "val"
    pixels: str = ""
    paper: PaperScores | None = None
    quoted: bool = False

    def scores(self, result: dict[str, Any]) -> dict[str, Any]:
        """The part of a run's result that the row is about."""
        return result[self.pixels] if self.kind == "oracle" else result


@dataclass(frozen=True)
class Experiment:
    """A table or figure.

    Attributes:
        name: ``table1``, ``figure5``, ...
        title: as printed.
        rows: in the order in which they are run and printed.
        pictures: what is drawn beside the table.
        notes: sentences of the report about it.
    """

    name: str
    title: str
    rows: tuple[TableRow, ...]
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()
