"""Every row and figure of ``primaps reproduce all --plan``, held against the captions of the paper.

The tables below are written from the paper's captions, tables and section 4.1, not from the
package. A line of the first is data set, backbone, row, split, steps, masks, predictions, codes;
the second has the accuracy and mean IoU that the paper prints for each of these lines, in order.
"""

import itertools
import re

import pytest

from primaps.reproduction import experiment
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


def printed(text):
    """Accuracy / mean IoU of rows; ``-`` for a row without, ``?`` for an accuracy without."""
    pairs = [None if part == "-" else part.split("/") for part in text.split()]
    return [p and tuple(None if each == "?" else float(each) for each in p) for p in pairs]


FIGURES = {
    "table1": "61.4/15.8 81.2/19.4 91.0/35.4 49.2/15.5 59.6/17.6 91.6/35.9 49.5/15.3 71.5/19.0 "
    "90.8/41.9 36.1/14.9 82.9/21.3 91.0/44.8 "
    "80.1/18.4 76.6/19.2 91.2/30.6 73.2/21.0 78.6/21.6 89.6/28.0 79.5/18.4 90.9/33.0",
    "table2": "34.2/9.5 46.5/16.4 72.0/41.3 38.8/15.7 48.5/21.9 74.0/44.6 44.5/22.9 46.5/23.8 "
    "77.9/52.8 35.0/17.9 52.8/23.6 77.3/53.7 "
    "48.3/24.5 74.4/38.3 57.2/24.6 57.8/25.1 75.6/42.7 56.9/28.2 57.9/29.7 76.1/41.0",
    "table3": "56.6/33.6 62.5/38.9 82.0/69.0 66.1/49.4 80.5/67.0 84.3/72.8 75.9/61.0 78.5/64.3 "
    "86.6/76.2 82.4/69.9 83.2/71.1 87.9/78.3 "
    "77.0/62.6 78.4/64.2 85.9/74.8 82.4/69.1 83.3/71.0 88.0/78.4",
    "table4a": "38.8/15.7 46.3/19.8 44.9/20.0 48.4/21.9 47.9/21.7",
    "table4b": "38.8/15.7 38.8/18.0 45.0/20.2 46.0/20.4 48.4/21.9",
    "table5": 2 * "92.4/54.0 73.2/32.4 73.2/32.4 " + 2 * "93.4/82.4 74.1/55.9 74.1/55.9 "
    + 2 * "95.2/90.9 67.4/48.9 67.4/48.9 ",
    "table6": "49.5/15.3 67.9/15.9 71.6/19.0 74.3/16.6 44.5/22.9 48.9/19.8 46.4/23.8 49.3/20.2 "
    "82.4/69.9 79.4/65.7 83.1/71.0 79.6/66.0",
    "figure1": "59.6/17.6 48.5/21.9 80.5/67.0",
    "figure3": "92.4/54.0 93.4/82.4 95.2/90.9",
    "figure4": "49.2/15.5 59.6/17.6 73.2/21.0 78.6/21.6 38.8/15.7 48.5/21.9 56.9/28.2 57.9/29.7 "
    "66.1/49.4 80.5/67.0 - -",
    "figure5": "92.4/54.0 93.4/82.4 95.2/90.9",
    "figure6": "92.4/54.0 93.4/82.4 95.2/90.9",
    "figure7": "- - 59.6/17.6 ?/19.0 - - - - - - - - 48.5/21.9 ?/21.1 - - - - - - "
    "- - 80.5/67.0 - - - - - - -",
    "figure8": "38.8/15.7 48.5/21.9 56.9/28.2 57.9/29.7",
    "figure9": "61.4/15.8 81.2/19.4 80.1/18.4 76.6/19.2 34.2/9.5 46.5/16.4 57.2/24.6 57.8/25.1 "
    "56.6/33.6 62.5/38.9 - -",
    "figure10": "59.6/17.6 48.5/21.9 80.5/67.0",
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


@pytest.mark.parametrize("name", CAPTIONS)
def test_every_row_has_the_figures_that_the_paper_prints(name):
    for row, figures in zip(experiment(name).rows, printed(FIGURES[name]), strict=True):
        found = row.paper and tuple(value and round(value, 1) for value in row.paper)
        assert found == figures, row
