"""The tables and figures of the paper as plain data: the rows of each, and what is drawn.

:func:`experiment` returns a table or figure by its name. The functions before
:data:`PAPER_EXPERIMENTS` each yield the rows of one table or figure for a data set and backbones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from primaps.reproduction import paper
from primaps.reproduction.paper import PaperScores
from primaps.utils.errors import InputError

Kind = Literal["baseline", "em", "clusters", "probe", "oracle"]
"""What a row fits: k-means, PriMaPs-EM, nothing (the clusters of STEGO or HP), a linear probe on
labels, or nothing (masks with the classes of their labels)."""
Figure = Literal[
    "iou", "confusion", "examples", "pseudo labels", "oracle", "similarities", "thresholds",
    "psi", "iou table", "failures",
]  # fmt: skip

METHODS: dict[Kind, dict[str, Any]] = {
    "baseline": {"method": "kmeans"},
    "em": {},
    "clusters": {
        "method": "kmeans",
        "cosine_scale": 2.0,
    },  # as in STEGO and HP
    "probe": {"method": "probe"},
    "oracle": {},
}
"""Fields of :class:`primaps.Config` of each kind of row."""
COUNTINGS = {
    "assigned": "oracle, pixels in masks",
    "all_pixels": "oracle, all pixels, in no mask: no class",
    "all_wrong": "oracle, all pixels, in no mask: another class",
}
"""How an oracle counts pixels outside of masks: not at all, as no class, or as a wrong class."""
FOLDER = "folder"
"""Name of any labeled folder. The paper has no scores for it."""
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6)
"""Values of psi in Figure 7."""


@dataclass(frozen=True)
class TableRow:
    """A row of a table: what is fitted, how it is scored, and the paper's scores.

    Attributes:
        label: name of the row in the table.
        dataset: name of the data set.
        backbone: backbone of the masks, and of the features unless a checkpoint has its own.
        kind: what is fitted.
        options: fields of :class:`primaps.Config` that differ from those of the run.
        crf: whether the dense CRF refines predictions.
        projection: ``STEGO`` or ``HP`` if prototypes are fitted to its codes.
        split: split that is scored.
        pixels: counting of an oracle: ``assigned``, ``all_pixels`` or ``all_wrong``.
        paper: accuracy and mean IoU in % if the paper has the row.
        quoted: whether the paper quotes these scores from the paper of STEGO or HP.
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
        """Return the entry of a result that belongs to this row."""
        return result[self.pixels] if self.kind == "oracle" else result


@dataclass(frozen=True)
class Experiment:
    """A table or figure.

    Attributes:
        name: ``table1``, ``figure5``, ...
        title: title of the report.
        rows: rows in the order in which they run and are printed.
        figures: what is drawn below the table.
        notes: sentences for the report.
    """

    name: str
    title: str
    rows: tuple[TableRow, ...]
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()


def main_rows(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Tables 1 to 3: baseline, PriMaPs-EM and linear probe, then STEGO and HP."""
    for backbone in backbones:
        baseline, em, probe = paper.MAIN[dataset].get(backbone, (None, None, None))
        yield TableRow("baseline", dataset, backbone, "baseline", crf=False, paper=baseline)
        yield TableRow("PriMaPs-EM", dataset, backbone, paper=em)
        yield TableRow("linear probe", dataset, backbone, "probe", crf=False, paper=probe)
    for method, backbone in paper.ON_TOP[dataset]:
        if backbone in backbones:
            yield from projection_rows(dataset, backbone, method)


def projection_rows(
    dataset: str, backbone: str, method: str, probe: bool = True
) -> Iterator[TableRow]:
    """STEGO or HP alone, PriMaPs-EM on its codes if the paper has this row, and a linear probe."""
    scores = paper.ON_TOP.get(dataset, {}).get((method, backbone), (None, None, None))
    alone, combined, supervised = scores
    yield TableRow(
        method, dataset, backbone, "clusters",
        projection=method, paper=alone, quoted=alone is not None,
    )  # fmt: skip
    if combined or not probe:
        yield TableRow(
            f"{method} + PriMaPs-EM", dataset, backbone, projection=method, paper=combined
        )
    if probe:
        yield TableRow(
            f"{method}, linear probe", dataset, backbone, "probe", crf=False,
            projection=method, paper=supervised, quoted=supervised is not None,
        )  # fmt: skip


def main_rows_of_folder(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Table 1 on a labeled folder, with more rows: CRF on and off, our recipe, the oracle."""
    for backbone in backbones:
        yield TableRow("baseline", dataset, backbone, "baseline", crf=False)
        yield TableRow("baseline + CRF", dataset, backbone, "baseline")
        yield TableRow("PriMaPs-EM without CRF", dataset, backbone, crf=False)
        yield TableRow("PriMaPs-EM", dataset, backbone)
        orthogonal = {"recipe": "orthogonal"}
        yield TableRow(
            "recipe orthogonal without CRF", dataset, backbone, options=orthogonal, crf=False
        )
        yield TableRow("recipe orthogonal", dataset, backbone, options=orthogonal)
        yield TableRow("linear probe", dataset, backbone, "probe", crf=False)
        for pixels, label in COUNTINGS.items():
            yield TableRow(label, dataset, backbone, "oracle", pixels=pixels)


def mask_ablation(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Table 4a: variants of the pseudo labels. Nothing else changes after the baseline."""
    variants: dict[str, Mapping[str, Any]] = {
        "similarity masks": {"anchor": False, "mask_crf": False},
        "+ NN": {"mask_crf": False},
        "+ P-CRF": {},
        "non-iterative": {"iterative": False},
    }
    for backbone in backbones:
        scores = _ablation_scores(paper.MASKS, dataset, backbone)
        yield _baseline(dataset, backbone, scores)
        for label, options in variants.items():
            yield TableRow(label, dataset, backbone, options=options, paper=scores.get(label))


def em_ablation(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Table 4b: parts of PriMaPs-EM, added one after the other to the full masks.

    The data sets of the paper use the augmentation of the run, and a labeled folder two views per
    image.
    """
    clean: dict[str, Any] = {"views": 0}
    augmented: dict[str, Any] = {"views": 2} if dataset == FOLDER else {}
    variants: dict[str, tuple[Mapping[str, Any], bool]] = {
        "+ PriMaPs pseudo label": ({**clean, "momentum": 0.0, "momentum_every": 1}, False),
        "+ EMA": (clean, False),
        "+ augment": (augmented, False),
        "+ CRF": (augmented, True),
    }
    for backbone in backbones:
        scores = _ablation_scores(paper.EM, dataset, backbone)
        yield _baseline(dataset, backbone, scores)
        for label, (options, crf) in variants.items():
            yield TableRow(
                label, dataset, backbone, options=options, crf=crf, paper=scores.get(label)
            )


def oracle_rows(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Table 5: masks with the classes of their labels, both splits, "all" counted both ways."""
    for backbone in backbones:
        scores = paper.ORACLE.get(dataset) if backbone == "dino-vitb8" else None
        for split in ("train", "val"):
            for pixels, label in COUNTINGS.items():
                yield TableRow(
                    f"{label} ({split})", dataset, backbone, "oracle", split=split,
                    pixels=pixels, paper=scores[pixels != "assigned"] if scores else None,
                )  # fmt: skip


def dinov2_rows(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Table 6: DINOv2 with and without HP, each with and without PriMaPs-EM."""
    for backbone in backbones:
        known = paper.ON_DINOV2.get(dataset)
        scores = known[1] if known and backbone == known[0] else (None,) * 4
        yield TableRow("baseline", dataset, backbone, "baseline", crf=False, paper=scores[0])
        yield TableRow("HP", dataset, backbone, "clusters", projection="HP", paper=scores[1])
        yield TableRow("PriMaPs-EM", dataset, backbone, paper=scores[2])
        yield TableRow("HP + PriMaPs-EM", dataset, backbone, projection="HP", paper=scores[3])


def pair_rows(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Baseline and PriMaPs-EM."""
    for backbone in backbones:
        scores = paper.MAIN.get(dataset, {}).get(backbone, (None, None, None))
        yield TableRow("baseline", dataset, backbone, "baseline", crf=False, paper=scores[0])
        yield TableRow("PriMaPs-EM", dataset, backbone, paper=scores[1])


def stego_rows(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Figures 4 and 8: baseline, PriMaPs-EM, STEGO, STEGO + PriMaPs-EM."""
    yield from _pair_and_projection("STEGO", dataset, backbones)


def hp_rows(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Figure 9: baseline, PriMaPs-EM, HP, HP + PriMaPs-EM."""
    yield from _pair_and_projection("HP", dataset, backbones)


def mask_rows(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Figures 3, 5 and 6: masks alone, scored with the classes of their labels."""
    for backbone in backbones:
        scores = paper.ORACLE.get(dataset) if backbone == "dino-vitb8" else None
        yield TableRow(
            "oracle, pixels in masks", dataset, backbone, "oracle",
            pixels="assigned", paper=scores[0] if scores else None,
        )  # fmt: skip


def em_rows(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Figures 1 and 10: PriMaPs-EM and its pseudo labels."""
    yield from (row for row in pair_rows(dataset, backbones) if row.kind == "em")


def psi_rows(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Figure 7: PriMaPs-EM for each psi. The rows of the oracle are ours."""
    for backbone in backbones:
        scores = paper.PSI.get(dataset, {}) if backbone == "dino-vitb8" else {}
        for threshold in THRESHOLDS:
            yield TableRow(
                f"PriMaPs-EM, psi {threshold:g}", dataset, backbone,
                options={"threshold": threshold}, paper=scores.get(threshold),
            )  # fmt: skip
        for threshold in THRESHOLDS:
            yield TableRow(
                f"oracle, all pixels, psi {threshold:g}", dataset, backbone, "oracle",
                options={"threshold": threshold}, pixels="all_pixels",
            )  # fmt: skip


def trained_projections(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Ours: STEGO and HP trained on the images, with and without PriMaPs-EM and the CRF."""
    for backbone in backbones:
        for method in ("", "STEGO", "HP"):
            for crf in (False, True):
                label = (method or "k-means") + " + CRF" * crf
                yield TableRow(label, dataset, backbone, "baseline", crf=crf, projection=method)
            for crf in (False, True):
                label = f"{method} + PriMaPs-EM".removeprefix(" + ") + " + CRF" * crf
                yield TableRow(label, dataset, backbone, crf=crf, projection=method)


def view_rows(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Ours: the cost of fewer augmented views and of a loss at feature size."""
    variants: dict[str, dict[str, Any]] = {
        "0 views": {"views": 0},
        "2 views": {"views": 2},
        "2 views, loss at feature size": {"views": 2, "loss_size": "feature"},
        "8 views": {"views": 8},
    }
    for backbone in backbones:
        for label, options in variants.items():
            yield TableRow(label, dataset, backbone, options=options, crf=False)


def _baseline(dataset: str, backbone: str, scores: Mapping[str, PaperScores]) -> TableRow:
    return TableRow(
        "baseline", dataset, backbone, "baseline", crf=False, paper=scores.get("baseline")
    )


def _ablation_scores(
    scores: Mapping[str, PaperScores], dataset: str, backbone: str
) -> Mapping[str, PaperScores]:
    """Scores of Table 4, which the paper has for one data set and one backbone."""
    return scores if (dataset, backbone) == ("cocostuff", "dino-vitb8") else {}


def _pair_and_projection(method: str, dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    for backbone in backbones:
        yield from pair_rows(dataset, [backbone])
        if dataset == FOLDER:  # the authors have no checkpoint for it: train on its images
            yield TableRow(method, dataset, backbone, "baseline", projection=method)
            yield TableRow(f"{method} + PriMaPs-EM", dataset, backbone, projection=method)
        else:
            yield from projection_rows(dataset, backbone, method, probe=False)


SAME_BASELINE = (
    "The paper prints the same scores for the baseline here as in Table 2. It is the same run, "
    "whose predictions are not refined."
)
CAPTION_OF_TABLE6 = (
    "The caption of Table 6 names ViT-B/14, ViT-B/14 and ViT-S/14 for Cityscapes, COCO-Stuff and "
    "Potsdam-3, but its rows without HP have the scores of ViT-S/14, ViT-S/14 and ViT-B/14 in "
    "Tables 1 to 3. The caption probably has them swapped. Our rows use the backbones of the "
    "caption; --backbone selects others."
)
SPLIT_OF_TABLE5 = (
    "The paper does not state the split of Table 5, nor how pixels outside of all masks count "
    'among "all". Our rows have both splits and both ways. A prediction of no class lowers only '
    "the IoU of the pixel's own class. A wrong prediction, distributed evenly over the other "
    "classes that occur, lowers their IoU as well."
)
IOU_OF_FIGURE8 = (
    "The means of the IoUs printed in Figure 8a are 15.8, 21.9, 27.4 and 29.7. Table 2 has 15.7, "
    "21.9, 28.2 and 29.7 for the same rows."
)
PSI_OF_FIGURE7 = (
    "The paper draws its curves without printing numbers. The scores here are those of Tables 1 to "
    "3 for psi 0.4, and those that the text states relative to them for psi 0.5."
)


@dataclass(frozen=True)
class Entry:
    """A table or figure before a data set and backbones are chosen.

    Attributes:
        title: title of the report.
        backbones: backbones of the paper for each data set.
        rows: function that yields the rows.
        folder_rows: function that yields the rows on a labeled folder, if they differ; confusion
            matrices and examples are then drawn.
        figures: what is drawn below the table.
        notes: sentences for the report.
    """

    title: str
    backbones: Mapping[str, tuple[str, ...]]
    rows: Callable[[str, Sequence[str]], Iterable[TableRow]]
    folder_rows: Callable[[str, Sequence[str]], Iterable[TableRow]] | None = None
    figures: tuple[Figure, ...] = ("iou",)
    notes: tuple[str, ...] = ()


S8, B8 = (dict.fromkeys(paper.DATASETS, (backbone,)) for backbone in paper.BACKBONES[:2])
COCO_B8 = {"cocostuff": B8["cocostuff"]}
ON_DINOV2 = {name: (known[0],) for name, known in paper.ON_DINOV2.items()}
FOLDER_BACKBONES = ("dinov2-vits14",)
"""Backbones of a labeled folder unless others are given."""
PAPER_EXPERIMENTS: dict[str, Entry] = {
    "table1": Entry(
        "Table 1: Cityscapes", {"cityscapes": paper.BACKBONES}, main_rows, main_rows_of_folder
    ),
    "table2": Entry(
        "Table 2: COCO-Stuff", {"cocostuff": paper.BACKBONES}, main_rows, main_rows_of_folder
    ),
    "table3": Entry(
        "Table 3: Potsdam-3", {"potsdam": paper.BACKBONES}, main_rows, main_rows_of_folder
    ),
    "table4a": Entry(
        "Table 4a: variants of the masks", COCO_B8, mask_ablation, notes=(SAME_BASELINE,)
    ),
    "table4b": Entry(
        "Table 4b: parts of PriMaPs-EM", COCO_B8, em_ablation, notes=(SAME_BASELINE,)
    ),
    "table5": Entry(
        "Table 5: masks with the classes of their labels", B8, oracle_rows,
        notes=(SPLIT_OF_TABLE5,),
    ),
    "table6": Entry(
        "Table 6: HP on DINOv2", ON_DINOV2, dinov2_rows, notes=(CAPTION_OF_TABLE6,)
    ),
    "figure1": Entry(
        "Figure 1: masks one after the other, and the pseudo label", B8, em_rows,
        figures=("pseudo labels",),
    ),
    "figure3": Entry(
        "Figure 3: masks, and masks with the classes of their labels", B8, mask_rows,
        figures=("oracle",),
    ),
    "figure4": Entry(
        "Figure 4: baseline, PriMaPs-EM, STEGO, STEGO + PriMaPs-EM", B8, stego_rows,
        figures=("examples",),
    ),
    "figure5": Entry(
        "Figure 5: similarity to the principal direction and to its nearest neighbor", B8,
        mask_rows, figures=("similarities",),
    ),
    "figure6": Entry("Figure 6: masks for each psi", B8, mask_rows, figures=("thresholds",)),
    "figure7": Entry(
        "Figure 7: mean IoU for each psi", B8, psi_rows, figures=("psi",), notes=(PSI_OF_FIGURE7,)
    ),
    "figure8": Entry(
        "Figure 8: IoU per class and confusion matrices", COCO_B8, stego_rows,
        figures=("iou table", "confusion"), notes=(IOU_OF_FIGURE8,),
    ),
    "figure9": Entry(
        "Figure 9: baseline, PriMaPs-EM, HP, HP + PriMaPs-EM", S8, hp_rows, figures=("examples",)
    ),
    "figure10": Entry(
        "Figure 10: failures of segmentations and of pseudo labels", B8, em_rows,
        figures=("failures",),
    ),
}  # fmt: skip
OWN_EXPERIMENTS: dict[str, Entry] = {
    "projections": Entry("STEGO and HP trained on the images", {}, trained_projections),
    "views": Entry("The cost of shortcuts", {}, view_rows, figures=()),
}
"""Experiments that are not in the paper. They run on labeled folders only."""
NAMES = (*PAPER_EXPERIMENTS, *OWN_EXPERIMENTS)
PAPER = tuple(PAPER_EXPERIMENTS)
TABLES = tuple(name for name in PAPER if name.startswith("table"))


def experiment(name: str, dataset: str | None = None, backbones: Sequence[str] = ()) -> Experiment:
    """Return a table or figure with its rows.

    Args:
        name: one of :data:`NAMES`.
        dataset: a data set of the table, or ``folder`` for a labeled folder. None selects
            all data sets of the table.
        backbones: backbones of the rows. Empty selects those of the paper, or ``dinov2-vits14`` for
            a folder.

    Raises:
        InputError: the name is unknown, or the table does not use this data set.

    Examples:
        >>> rows = experiment("table1", backbones=["dino-vits8"]).rows
        >>> [(row.label, row.paper) for row in rows][:2]
        [('baseline', (61.4, 15.8)), ('PriMaPs-EM', (81.2, 19.4))]
        >>> [row.label for row in experiment("table4b", "folder").rows]
        ['baseline', '+ PriMaPs pseudo label', '+ EMA', '+ augment', '+ CRF']
    """
    entry = {**PAPER_EXPERIMENTS, **OWN_EXPERIMENTS}.get(name)
    if entry is None:
        raise InputError(f"{name!r} is not a table or figure; choose one of {', '.join(NAMES)}")
    if dataset != FOLDER and not entry.backbones:
        raise InputError(f"{name} needs a labeled folder; add --dataset folder")
    if dataset not in (None, FOLDER, *entry.backbones):
        known = ", ".join(entry.backbones)
        raise InputError(
            f"{name} does not use the data set {dataset!r}; choose {known}, or --dataset folder"
        )
    title, make_rows, figures = entry.title, entry.rows, entry.figures
    if dataset == FOLDER:
        number, _, content = title.partition(": ")
        title = f"{number} on a labeled folder"
        if entry.folder_rows:
            make_rows, figures = entry.folder_rows, ("iou", "confusion", "examples")
        elif content:
            title += f": {content}"
    rows: list[TableRow] = []
    for each in entry.backbones if dataset is None else (dataset,):
        rows += make_rows(each, tuple(backbones) or entry.backbones.get(each, FOLDER_BACKBONES))
    return Experiment(name, title, tuple(rows), figures, entry.notes)


def papers(dataset: str | None = None) -> list[str]:
    """Return the names of the paper's tables and figures that use a data set, or of all of them.

    Examples:
        >>> papers("potsdam")[:3]
        ['table3', 'table5', 'table6']
    """
    names = [name for name, entry in PAPER_EXPERIMENTS.items() if dataset in entry.backbones]
    return names or list(PAPER_EXPERIMENTS)
