"""The rows of the paper's tables, and of three tables of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from primaps.reproduction import paper
from primaps.reproduction.paper import PaperScores
from primaps.reproduction.rows import TableRow

COUNTINGS = {
    "assigned": "oracle, pixels in masks",
    "all_pixels": "oracle, all pixels, in no mask: no class",
    "all_wrong": "oracle, all pixels, in no mask: another class",
}
"""Of an oracle: which pixels are scored, and what those in no mask are."""
FOLDER = "folder"
"""Any folder with labels, for which the paper has no figures."""


def main(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Tables 1 to 3: baseline, PriMaPs-EM and linear probe, then STEGO and HP."""
    for backbone in backbones:
        baseline, em, probe = paper.MAIN[dataset].get(backbone, (None, None, None))
        yield TableRow("baseline", dataset, backbone, "baseline", crf=False, paper=baseline)
        yield TableRow("PriMaPs-EM", dataset, backbone, paper=em)
        yield TableRow("linear probe", dataset, backbone, "probe", crf=False, paper=probe)
    for method, backbone in paper.ON_TOP[dataset]:
        if backbone in backbones:
            yield from on_top(dataset, backbone, method)


def on_top(dataset: str, backbone: str, method: str, probe: bool = True) -> Iterator[TableRow]:
    """STEGO or HP alone, PriMaPs-EM on its codes where the paper has that, and a linear probe."""
    known = paper.ON_TOP.get(dataset, {}).get((method, backbone), (None, None, None))
    alone, boosted, supervised = known
    yield TableRow(
        method, dataset, backbone, "clusters",
        projection=method, paper=alone, quoted=alone is not None,
    )  # fmt: skip
    if boosted or not probe:
        yield TableRow(
            f"{method} + PriMaPs-EM", dataset, backbone, projection=method, paper=boosted
        )
    if probe:
        yield TableRow(
            f"{method}, linear probe", dataset, backbone, "probe", crf=False,
            projection=method, paper=supervised, quoted=supervised is not None,
        )  # fmt: skip


def main_of_folder(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """The same on a folder, also with and without the CRF, our recipe, and the oracle."""
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


def masks(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Table 4a: how pseudo labels are made. Nothing else changes from the second row on."""
    variants: dict[str, Mapping[str, Any]] = {
        "similarity masks": {"anchor": False, "mask_crf": False},
        "+ NN": {"mask_crf": False},
        "+ P-CRF": {},
        "non-iterative": {"iterative": False},
    }
    for backbone in backbones:
        known = _ablation(paper.MASKS, dataset, backbone)
        yield _baseline(dataset, backbone, known)
        for label, options in variants.items():
            yield TableRow(label, dataset, backbone, options=options, paper=known.get(label))


def em(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Table 4b: one part of PriMaPs-EM after the other, on the full masks.

    Augmentation is that of the run, or two views of each image on a folder, where there is none.
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
        known = _ablation(paper.EM, dataset, backbone)
        yield _baseline(dataset, backbone, known)
        for label, (options, crf) in variants.items():
            yield TableRow(
                label, dataset, backbone, options=options, crf=crf, paper=known.get(label)
            )


def oracle(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Table 5: masks that know their classes, on both splits, "all" pixels counted both ways."""
    for backbone in backbones:
        known = paper.ORACLE.get(dataset, (None, None)) if backbone == "dino-vitb8" else (None,) * 2
        for split in ("train", "val"):
            for pixels, label in COUNTINGS.items():
                figures = known[pixels != "assigned"]
                yield TableRow(
                    f"{label} ({split})", dataset, backbone, "oracle",
                    split=split, pixels=pixels, paper=figures,
                )  # fmt: skip


def on_dinov2(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Table 6: DINOv2 with and without HP, each with and without PriMaPs-EM."""
    for backbone in backbones:
        known = paper.ON_DINOV2.get(dataset)
        figures = known[1] if known and backbone == known[0] else (None,) * 4
        baseline, alone, plain, both = figures
        yield TableRow("baseline", dataset, backbone, "baseline", crf=False, paper=baseline)
        yield TableRow("HP", dataset, backbone, "clusters", projection="HP", paper=alone)
        yield TableRow("PriMaPs-EM", dataset, backbone, paper=plain)
        yield TableRow("HP + PriMaPs-EM", dataset, backbone, projection="HP", paper=both)


def projections(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Ours: STEGO and HP trained on the images, with and without PriMaPs-EM and the CRF."""
    for backbone in backbones:
        for method in ("", "STEGO", "HP"):
            for crf in (False, True):
                label = (method or "k-means") + " + CRF" * crf
                yield TableRow(label, dataset, backbone, "baseline", crf=crf, projection=method)
            for crf in (False, True):
                label = f"{method} + PriMaPs-EM".removeprefix(" + ") + " + CRF" * crf
                yield TableRow(label, dataset, backbone, crf=crf, projection=method)


def views(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Ours: what augmented views and the loss at feature size cost."""
    for backbone in backbones:
        variants: dict[str, dict[str, Any]] = {
            "0 views": {"views": 0},
            "2 views": {"views": 2},
            "2 views, loss at feature size": {"views": 2, "loss_size": "feature"},
            "8 views": {"views": 8},
        }
        for label, options in variants.items():
            yield TableRow(label, dataset, backbone, options=options, crf=False)


def _baseline(dataset: str, backbone: str, known: Mapping[str, PaperScores]) -> TableRow:
    return TableRow(
        "baseline", dataset, backbone, "baseline", crf=False, paper=known.get("baseline")
    )


def _ablation(
    figures: Mapping[str, PaperScores], dataset: str, backbone: str
) -> Mapping[str, PaperScores]:
    return figures if (dataset, backbone) == ("cocostuff", "dino-vitb8") else {}
