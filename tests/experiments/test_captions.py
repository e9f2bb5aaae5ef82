"""Every row and figure of ``primaps reproduce all --plan``, held against the captions of the paper.

The table below is written from the captions and section 4.1, not from the package. A line is data
set, backbone, row, split, steps, masks, predictions, codes.
"""

import itertools
import re

import pytest

from tests.cli.test_cli import call

START = {"cityscapes": "184", "cocostuff": "3,100", "potsdam": "284"}  # 2 epochs of batches of 32
STEPS = {"cityscapes": "4,600", "cocostuff": "7,750", "potsdam": "7,100"}  # 50, 5, 50 epochs
S8, B8, V2S14, V2B14 = "dino-vits8", "dino-vitb8", "dinov2-vits14", "dinov2-vitb14"
THREE = ("cityscapes", "cocostuff", "potsdam")
ORACLE = (
    "oracle, pixels in masks", "oracle, all pixels, in no mask: no class",
    "oracle, all pixels, in no mask: another class",
)  # fmt: skip


def baseline(data, backbone):
    return (data, backbone, "baseline", "val", f"{STEPS[data]} steps", "no masks",
            "predictions without CRF", "features")  # fmt: skip


def em(data, backbone, label="PriMaPs-EM", masks="with", predictions="with"):
    return (data, backbone, label, "val", f"{START[data]} + {STEPS[data]} steps",
            f"masks {masks} CRF", f"predictions {predictions} CRF", "features")  # fmt: skip


def probe(data, backbone):
    return (data, backbone, "linear probe", "val", f"{STEPS[data]} steps", "no masks",
            "predictions without CRF", "features")  # fmt: skip


def alone(data, backbone, method):
    return (data, backbone, method, "val", "no steps", "no masks", "predictions with CRF",
            f"codes of {method}'s checkpoint")  # fmt: skip


def on_top(data, backbone, method):
    """From the clusters of the checkpoint: no k-means."""
    return (data, backbone, f"{method} + PriMaPs-EM", "val", f"{STEPS[data]} steps",
            "masks with CRF", "predictions with CRF",
            f"codes of {method}'s checkpoint")  # fmt: skip


def supervised(data, backbone, method):
    return (data, backbone, f"{method}, linear probe", "val", f"{STEPS[data]} steps", "no masks",
            "predictions without CRF", f"codes of {method}'s checkpoint")  # fmt: skip


def oracle(data, label, split="val"):
    return (data, B8, label, split, "no steps", "masks with CRF", "no predictions", "features")


def main(data, *others):
    rows = []
    for backbone in (S8, B8, V2S14, V2B14):
        rows += [baseline(data, backbone), em(data, backbone), probe(data, backbone)]
    for backbone, method, boosted in others:
        rows += [alone(data, backbone, method)]
        rows += [on_top(data, backbone, method)] if boosted else []
        rows += [supervised(data, backbone, method)]
    return rows


def four(data, backbone, method):
    return [
        baseline(data, backbone), em(data, backbone), alone(data, backbone, method),
        on_top(data, backbone, method),
    ]  # fmt: skip


COCO = ("cocostuff", B8)
CAPTIONS = {
    "table1": main("cityscapes", (S8, "HP", True), (B8, "STEGO", True), (B8, "HP", False)),
    "table2": main(
        "cocostuff", (S8, "STEGO", False), (S8, "HP", True), (B8, "STEGO", True)
    ),
    "table3": main("potsdam", (S8, "STEGO", True), (B8, "HP", True)),
    "table4a": [
        baseline(*COCO),
        em(*COCO, "similarity masks", masks="without"),
        em(*COCO, "+ NN", masks="without"),
        em(*COCO, "+ P-CRF"),
        em(*COCO, "non-iterative"),
    ],
    "table4b": [
        baseline(*COCO),
        em(*COCO, "+ PriMaPs pseudo label", predictions="without"),
        em(*COCO, "+ EMA", predictions="without"),
        em(*COCO, "+ augment", predictions="without"),
        em(*COCO, "+ CRF"),
    ],
    "table5": [
        oracle(data, f"{label} ({split})", split)
        for data, split, label in itertools.product(THREE, ("train", "val"), ORACLE)
    ],
    "table6": [
        row
        for data, backbone in zip(THREE, (V2B14, V2B14, V2S14), strict=True)
        for row in (
            baseline(data, backbone), alone(data, backbone, "HP"), em(data, backbone),
            on_top(data, backbone, "HP"),
        )
    ],
    "figure1": [em(data, B8) for data in THREE],
    "figure3": [oracle(data, ORACLE[0]) for data in THREE],
    "figure4": [row for data in THREE for row in four(data, B8, "STEGO")],
    "figure5": [oracle(data, ORACLE[0]) for data in THREE],
    "figure6": [oracle(data, ORACLE[0]) for data in THREE],
    "figure7": [
        row
        for data in THREE
        for row in (
            *(em(data, B8, f"PriMaPs-EM, psi 0.{i}") for i in range(2, 7)),
            *(oracle(data, f"oracle, all pixels, psi 0.{i}") for i in range(2, 7)),
        )
    ],
    "figure8": four(*COCO, "STEGO"),
    "figure9": [row for data in THREE for row in four(data, S8, "HP")],
    "figure10": [em(data, B8) for data in THREE],
}  # fmt: skip


@pytest.fixture(scope="module")
def planned():
    done = call("reproduce", "all", "--plan")
    assert done.exit_code == 0, done.output
    found = {}
    for line in done.output.splitlines():
        if heading := re.match(r"(table|figure)\d+[ab]?: ", line):
            rows = found[heading.group().rstrip(": ")] = []
        elif line.startswith("  "):
            rows.append(tuple(re.split(r"\s{2,}", line.strip())[:8]))
    return found


def test_all_tables_and_figures_of_the_paper_are_planned(planned):
    assert list(planned) == list(CAPTIONS)


@pytest.mark.parametrize("name", CAPTIONS)
def test_every_row_is_that_of_the_caption(planned, name):
    assert planned[name] == CAPTIONS[name]
