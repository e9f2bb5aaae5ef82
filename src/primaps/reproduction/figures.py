"""The rows that the paper's figures are drawn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from primaps.reproduction import paper
from primaps.reproduction.rows import TableRow
from primaps.reproduction.tables import FOLDER, on_top

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6)
"""psi of Figure 7."""


def pair(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Baseline and PriMaPs-EM."""
    for backbone in backbones:
        known = paper.MAIN.get(dataset, {}).get(backbone, (None, None, None))
        yield TableRow("baseline", dataset, backbone, "baseline", crf=False, paper=known[0])
        yield TableRow("PriMaPs-EM", dataset, backbone, paper=known[1])


def with_stego(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Figures 4 and 8: baseline, PriMaPs-EM, STEGO, STEGO + PriMaPs-EM."""
    yield from _with("STEGO", dataset, backbones)


def with_hp(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Figure 9: baseline, PriMaPs-EM, HP, HP + PriMaPs-EM."""
    yield from _with("HP", dataset, backbones)


def masks(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Figures 3, 5 and 6: masks as such, scored with the classes of their labels."""
    for backbone in backbones:
        known = paper.ORACLE.get(dataset) if backbone == "dino-vitb8" else None
        yield TableRow(
            "oracle, pixels in masks", dataset, backbone, "oracle",
            pixels="assigned", paper=known[0] if known else None,
        )  # fmt: skip


def em(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Figures 1 and 10: PriMaPs-EM and its pseudo labels."""
    yield from (row for row in pair(dataset, backbones) if row.kind == "em")


def psi(dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    """Figure 7: PriMaPs-EM by psi, and ours: the oracle's beside it."""
    for backbone in backbones:
        known = paper.PSI.get(dataset, {}) if backbone == "dino-vitb8" else {}
        for threshold in THRESHOLDS:
            yield TableRow(
                f"PriMaPs-EM, psi {threshold:g}", dataset, backbone,
                options={"threshold": threshold}, paper=known.get(threshold),
            )  # fmt: skip
        for threshold in THRESHOLDS:
            yield TableRow(
                f"oracle, all pixels, psi {threshold:g}", dataset, backbone, "oracle",
                options={"threshold": threshold}, pixels="all_pixels",
            )  # fmt: skip


def _with(method: str, dataset: str, backbones: Sequence[str]) -> Iterator[TableRow]:
    for backbone in backbones:
        yield from pair(dataset, [backbone])
        if dataset == FOLDER:  # no checkpoint of the authors' is about it: trained on the images
            yield TableRow(method, dataset, backbone, "baseline", projection=method)
            yield TableRow(f"{method} + PriMaPs-EM", dataset, backbone, projection=method)
        else:
            yield from on_top(dataset, backbone, method, probe=False)
