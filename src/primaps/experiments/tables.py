"""What each table and figure of the paper consists of: rows, as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from primaps.experiments import paper
from primaps.experiments.paper import PaperScores
from primaps.support.errors import InputError

Kind = Literal["fit", "probe", "oracle"]
Picture = Literal["iou", "confusion", "examples", "worst"]
KMEANS = {"method": "kmeans"}
NO_EMA = {"momentum": 0.0, "momentum_every": 1}
ORACLE_LABELS = {
    "assigned": "oracle, pixels in masks",
    "all_pixels": "oracle, all pixels",
}


@dataclass(frozen=True)
class TableRow:
    """A row of a table: what is fitted, how it is scored, and what the paper reports.

    Attributes:
        label: of the method, as printed.
        dataset: name of the data set.
        backbone: name of the backbone.
        kind: ``fit`` (PriMaPs-EM or k-means), ``probe`` (linear probe) or ``oracle`` (the masks
            with the class that is most frequent in each).
        options: fields of :class:`primaps.Config` in which this row differs from the run's.
        crf: whether predictions are refined by the dense CRF.
        projection: ``STEGO`` or ``HP``, if the row is on top of one.
        pixels: of an oracle, ``assigned`` or ``all_pixels``.
        paper: accuracy and mean IoU in %, if the paper has the row.
    """

    label: str
    dataset: str
    backbone: str
    kind: Kind = "fit"
    options: dict[str, Any] = field(default_factory=dict)
    crf: bool = True
    projection: str = ""
    pixels: str = ""
    paper: PaperScores | None = None

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
        images: number of images in sheets of examples.
    """

    name: str
    title: str
    rows: tuple[TableRow, ...]
    pictures: tuple[Picture, ...] = ()
    images: int = 6


@dataclass(frozen=True)
class _Definition:
    title: str
    datasets: tuple[str, ...]
    backbones: tuple[str, ...]
    make: Any
    pictures: tuple[Picture, ...] = ("iou", "confusion", "examples")
    images: int = 6


def experiment(
    name: str, dataset: str | None = None, backbones: Sequence[str] = (), views: int | str = 0
) -> Experiment:
    """The rows of a table or figure.

    Args:
        name: one of :data:`NAMES`.
        dataset: one of those of the table, or ``folder``: a folder with labels, for which the
            paper has no figures. None takes all those of the table.
        backbones: None takes those of the paper, or ``dinov2-vits14`` for a folder.
        views: of the run, as in :class:`primaps.Config`; the row of Table 4b that adds augmentation
            takes 2 if the others have none.

    Raises:
        InputError: there is no such table or figure, or it has no such data set.

    Examples:
        >>> found = experiment("table1", backbones=["dino-vits8"]).rows
        >>> [(row.label, row.paper) for row in found][:2]
        [('baseline', (61.4, 15.8)), ('PriMaPs-EM', (81.2, 19.4))]
        >>> [row.label for row in experiment("table4b", "folder").rows]
        ['baseline', '+ pseudo label', '+ EMA', '+ augment', '+ CRF']
    """
    if name not in DEFINITIONS:
        raise InputError(f"there is no {name!r} to reproduce; there are {', '.join(NAMES)}")
    definition = DEFINITIONS[name]
    if dataset not in (None, "folder", *definition.datasets):
        known = ", ".join(definition.datasets)
        raise InputError(f"{name} is about {known}, not {dataset!r}; or give --dataset folder")
    names = definition.datasets if dataset is None else (dataset,)
    usual = ("dinov2-vits14",) if dataset == "folder" else definition.backbones
    rows = tuple(
        row
        for each in names
        for row in definition.make(each, tuple(backbones) or usual, bool(backbones), views)
    )
    title = definition.title
    if dataset == "folder":
        number, _, about = title.partition(": ")
        title = f"{number} on a folder with labels"
        title += "" if definition.make is _main else f": {about}"  # which names a data set
    return Experiment(name, title, rows, definition.pictures, definition.images)


def _main(dataset: str, backbones: Sequence[str], chosen: bool, views: Any) -> Iterator[TableRow]:
    """Baseline, PriMaPs-EM and linear probe; for a folder also without or with the CRF, our recipe
    and the oracle.

    On top of STEGO and HP on the paper's backbones, unless others were chosen.
    """
    for backbone in backbones:
        figures = paper.MAIN.get(dataset, {}).get(backbone, (None, None, None))
        base = TableRow("baseline", dataset, backbone, options=KMEANS, crf=False, paper=figures[0])
        em = TableRow("PriMaPs-EM", dataset, backbone, paper=figures[1])
        if dataset == "folder":
            yield from (base, replace(base, label="baseline + CRF", crf=True))
            yield replace(em, label="PriMaPs-EM without CRF", crf=False)
        else:
            yield base
        yield em
        if dataset == "folder":
            yield replace(em, label="recipe orthogonal", options={"recipe": "orthogonal"})
        yield TableRow("linear probe", dataset, backbone, "probe", crf=False, paper=figures[2])
        if dataset == "folder":
            yield from _oracle(dataset, [backbone], chosen, views)
    for row in _on_top(paper.ON_TOP)(dataset, backbones, chosen, views):
        if not chosen or row.backbone in backbones:
            yield row


def _on_top(figures: Any) -> Any:
    """Rows on top of STEGO and HP: the projection alone, and with PriMaPs-EM."""

    def rows(
        dataset: str, backbones: Sequence[str], chosen: bool, views: Any
    ) -> Iterator[TableRow]:
        known = figures.get(dataset, {})
        if dataset == "folder" and figures is paper.ON_DINOV2:
            known = {("HP", backbone): (None, None) for backbone in backbones}
        for (method, backbone), (alone, boosted) in known.items():
            own = TableRow(method, dataset, backbone, projection=method, options=KMEANS)
            yield replace(own, paper=alone)
            label = f"{method} + PriMaPs-EM"
            yield replace(own, label=label, options={}, paper=boosted)

    return rows


def _masks(dataset: str, backbones: Sequence[str], chosen: bool, views: Any) -> Iterator[TableRow]:
    """Table 4a. Without the CRF neither masks nor predictions are refined."""
    plain: dict[str, Any] = {"mask_crf": False}
    variants: dict[str, tuple[dict[str, Any], bool]] = {
        "similarity masks": ({**plain, "anchor": False}, False),
        "+ nearest neighbour": (plain, False),
        "+ CRF": ({}, True),
        "non-iterative": ({"iterative": False}, True),
    }
    yield from _ablation(variants, paper.MASKS, dataset, backbones)


def _em(dataset: str, backbones: Sequence[str], chosen: bool, views: Any) -> Iterator[TableRow]:
    """Table 4b: one part of PriMaPs-EM after the other."""
    augmented = {"views": 2 if views == 0 else views}
    variants: dict[str, tuple[dict[str, Any], bool]] = {
        "baseline": (KMEANS, False),
        "+ pseudo label": ({"views": 0, "mask_crf": False, **NO_EMA}, False),
        "+ EMA": ({"views": 0, "mask_crf": False}, False),
        "+ augment": ({"mask_crf": False, **augmented}, False),
        "+ CRF": (augmented, True),
    }
    yield from _ablation(variants, paper.EM, dataset, backbones)


def _ablation(
    variants: dict[str, tuple[dict[str, Any], bool]],
    figures: dict[str, PaperScores],
    dataset: str,
    backbones: Sequence[str],
) -> Iterator[TableRow]:
    for backbone in backbones:
        for label, (options, crf) in variants.items():
            known = figures[label] if (dataset, backbone) == paper.ABLATION else None
            yield TableRow(label, dataset, backbone, options=dict(options), crf=crf, paper=known)


def _oracle(dataset: str, backbones: Sequence[str], chosen: bool, views: Any) -> Iterator[TableRow]:
    """Table 5: masks that know their classes."""
    for backbone in backbones:
        known = paper.ORACLE.get(dataset) if backbone == "dino-vitb8" else None
        for i, (pixels, label) in enumerate(ORACLE_LABELS.items()):
            figures = known[i] if known else None
            yield TableRow(label, dataset, backbone, "oracle", pixels=pixels, paper=figures)


def _pair(dataset: str, backbones: Sequence[str], chosen: bool, views: Any) -> Iterator[TableRow]:
    """Baseline and PriMaPs-EM, which the figures compare."""
    for row in _main(dataset, backbones, True, views):
        if row.label in ("baseline", "PriMaPs-EM"):
            yield row


_THREE = ("cityscapes", "cocostuff", "potsdam")
_B8 = ("dino-vitb8",)
DEFINITIONS: dict[str, _Definition] = {
    "table1": _Definition("Table 1: Cityscapes", ("cityscapes",), paper.BACKBONES, _main),
    "table2": _Definition("Table 2: COCO-Stuff", ("cocostuff",), paper.BACKBONES, _main),
    "table3": _Definition("Table 3: Potsdam-3", ("potsdam",), paper.BACKBONES, _main),
    "table4a": _Definition("Table 4a: parts of the masks", ("cocostuff",), _B8, _masks, ("iou",)),
    "table4b": _Definition("Table 4b: parts of PriMaPs-EM", ("cocostuff",), _B8, _em, ("iou",)),
    "table5": _Definition(
        "Table 5: a class for each mask by labels", _THREE, _B8, _oracle, ("iou",)
    ),
    "table6": _Definition("Table 6: HP on DINOv2", _THREE, (), _on_top(paper.ON_DINOV2)),
    "figure3": _Definition("Figure 3: examples", _THREE, _B8, _pair, ("examples",)),
    "figure4": _Definition("Figure 4: examples", _THREE, ("dinov2-vitb14",), _pair, ("examples",)),
    "figure5": _Definition("Figure 5: IoU per class", ("cityscapes",), _B8, _pair, ("iou",)),
    "figure6": _Definition("Figure 6: IoU per class", ("cocostuff",), _B8, _pair, ("iou",)),
    "figure7": _Definition(
        "Figure 7: confusion matrix", ("cityscapes",), _B8, _pair, ("confusion",)
    ),
    "figure8": _Definition(
        "Figure 8: confusion matrix", ("cocostuff",), _B8, _pair, ("confusion",)
    ),
    "figure9": _Definition("Figure 9: more examples", _THREE, _B8, _pair, ("examples",), 12),
    "figure10": _Definition("Figure 10: the worst images", _THREE, _B8, _pair, ("worst",)),
}
NAMES = tuple(DEFINITIONS)
TABLES = tuple(name for name in NAMES if name.startswith("table"))
