"""Every table and figure by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from primaps.reproduction import figures, paper, tables
from primaps.reproduction.rows import Experiment, Picture, TableRow
from primaps.reproduction.tables import FOLDER
from primaps.utils.errors import InputError

Rows = Callable[[str, Sequence[str]], Iterable[TableRow]]

SAME_BASELINE = (
    "The paper prints the same figures for the baseline here as in Table 2: it is the same run, "
    "whose predictions are not refined."
)
CAPTION_OF_TABLE6 = (
    "The caption of Table 6 names ViT-B/14, ViT-B/14 and ViT-S/14 for Cityscapes, COCO-Stuff and "
    "Potsdam-3, but its rows without HP have the figures that Tables 1 to 3 have for ViT-S/14, "
    "ViT-S/14 and ViT-B/14: the caption probably has them swapped. Rows here are on the backbones "
    "of the caption; --backbone takes others."
)
SPLIT_OF_TABLE5 = (
    "The paper does not say which split Table 5 is about, nor how pixels in no mask count among "
    '"all": here are both splits, and both ways. As predictions of no class they lower the IoU of '
    "their own class alone; as wrong predictions, shared evenly by the other classes that occur, "
    "they lower that of those as well."
)
IOU_OF_FIGURE8 = (
    "The means of the IoUs that Figure 8a prints are 15.8, 21.9, 27.4 and 29.7; Table 2 has 15.7, "
    "21.9, 28.2 and 29.7 for the same rows."
)
PSI_OF_FIGURE7 = (
    "The paper's curves are drawn, not printed; its figures here are those of Tables 1 to 3 at psi "
    "0.4, and those that the text gives relative to them at 0.5."
)


@dataclass(frozen=True)
class Entry:
    """What a table or figure is, for each of its data sets and backbones.

    Attributes:
        backbones: of the paper, for each data set.
        folder: the rows on a folder with labels, if they are others; confusion matrices and
            examples are drawn beside them.
    """

    title: str
    backbones: Mapping[str, tuple[str, ...]]
    rows: Rows
    folder: Rows | None = None
    pictures: tuple[Picture, ...] = ("iou",)
    notes: tuple[str, ...] = ()


S8, B8 = (dict.fromkeys(paper.DATASETS, (backbone,)) for backbone in paper.BACKBONES[:2])
COCO_B8 = {"cocostuff": B8["cocostuff"]}
ON_DINOV2 = {name: (known[0],) for name, known in paper.ON_DINOV2.items()}
AT_HAND = ("dinov2-vits14",)
"""For a folder, if none is named."""
ENTRIES: dict[str, Entry] = {
    "table1": Entry(
        "Table 1: Cityscapes", {"cityscapes": paper.BACKBONES}, tables.main, tables.main_of_folder
    ),
    "table2": Entry(
        "Table 2: COCO-Stuff", {"cocostuff": paper.BACKBONES}, tables.main, tables.main_of_folder
    ),
    "table3": Entry(
        "Table 3: Potsdam-3", {"potsdam": paper.BACKBONES}, tables.main, tables.main_of_folder
    ),
    "table4a": Entry(
        "Table 4a: parts of the masks", COCO_B8, tables.masks,
        notes=(SAME_BASELINE,),
    ),
    "table4b": Entry(
        "Table 4b: parts of PriMaPs-EM", COCO_B8, tables.em,
        notes=(SAME_BASELINE,),
    ),
    "table5": Entry(
        "Table 5: a class for each mask by labels", B8, tables.oracle,
        notes=(SPLIT_OF_TABLE5,),
    ),
    "table6": Entry(
        "Table 6: HP on DINOv2", ON_DINOV2, tables.on_dinov2, notes=(CAPTION_OF_TABLE6,)
    ),
    "figure1": Entry(
        "Figure 1: masks one after the other, and the pseudo label", B8, figures.em,
        pictures=("pseudo labels",),
    ),
    "figure3": Entry(
        "Figure 3: masks, and masks with the classes of their labels", B8, figures.masks,
        pictures=("oracle",),
    ),
    "figure4": Entry(
        "Figure 4: baseline, PriMaPs-EM, STEGO, STEGO + PriMaPs-EM", B8,
        figures.with_stego, pictures=("examples",),
    ),
    "figure5": Entry(
        "Figure 5: similarity to the principal direction and to its nearest neighbor", B8,
        figures.masks, pictures=("similarities",),
    ),
    "figure6": Entry(
        "Figure 6: masks by psi", B8, figures.masks, pictures=("thresholds",)
    ),
    "figure7": Entry(
        "Figure 7: mean IoU by psi", B8, figures.psi,
        pictures=("psi",), notes=(PSI_OF_FIGURE7,),
    ),
    "figure8": Entry(
        "Figure 8: IoU by class and confusion matrices", COCO_B8, figures.with_stego,
        pictures=("iou table", "confusion"), notes=(IOU_OF_FIGURE8,),
    ),
    "figure9": Entry(
        "Figure 9: baseline, PriMaPs-EM, HP, HP + PriMaPs-EM", S8, figures.with_hp,
        pictures=("examples",),
    ),
    "figure10": Entry(
        "Figure 10: failures of segmentations and of pseudo labels", B8, figures.em,
        pictures=("failures",),
    ),
}  # fmt: skip
OWN: dict[str, Entry] = {
    "projections": Entry("STEGO and HP trained on the images", {}, tables.projections),
    "views": Entry("What shortcuts cost", {}, tables.views, pictures=()),
}
"""Ours, for folders with labels alone."""
NAMES = (*ENTRIES, *OWN)
PAPER = tuple(ENTRIES)
TABLES = tuple(name for name in PAPER if name.startswith("table"))


def experiment(name: str, dataset: str | None = None, backbones: Sequence[str] = ()) -> Experiment:
    """The rows of a table or figure.

    Args:
        name: one of :data:`NAMES`.
        dataset: one of those of the table, or ``folder``: a folder with labels, for which the
            paper has no figures. None takes all those of the table.
        backbones: None takes those of the paper, or ``dinov2-vits14`` for a folder.

    Raises:
        InputError: there is no such table or figure, or it has no such data set.

    Examples:
        >>> found = experiment("table1", backbones=["dino-vits8"]).rows
        >>> [(row.label, row.paper) for row in found][:2]
        [('baseline', (61.4, 15.8)), ('PriMaPs-EM', (81.2, 19.4))]
        >>> [row.label for row in experiment("table4b", "folder").rows]
        ['baseline', '+ PriMaPs pseudo label', '+ EMA', '+ augment', '+ CRF']
    """
    entry = {**ENTRIES, **OWN}.get(name)
    if entry is None:
        raise InputError(f"there is no {name!r} to reproduce; there are {', '.join(NAMES)}")
    if dataset != FOLDER and not entry.backbones:
        raise InputError(f"{name} is about a folder with labels: give --dataset folder")
    if dataset not in (None, FOLDER, *entry.backbones):
        known = ", ".join(entry.backbones)
        raise InputError(f"{name} is about {known}, not {dataset!r}; or give --dataset folder")
    title, make, pictures = entry.title, entry.rows, entry.pictures
    if dataset == FOLDER:
        number, _, about = title.partition(": ")
        title = f"{number} on a folder with labels"
        if entry.folder:
            make, pictures = entry.folder, ("iou", "confusion", "examples")
        elif about:
            title += f": {about}"
    rows: list[TableRow] = []
    for each in entry.backbones if dataset is None else (dataset,):
        rows += make(each, tuple(backbones) or entry.backbones.get(each, AT_HAND))
    return Experiment(name, title, tuple(rows), pictures, entry.notes)


def papers(dataset: str | None = None) -> list[str]:
    """The paper's tables and figures about a data set; all of them if none is named.

    Examples:
        >>> papers("potsdam")[:3]
        ['table3', 'table5', 'table6']
    """
    about = [name for name, entry in ENTRIES.items() if dataset in entry.backbones]
    return about or list(ENTRIES)
