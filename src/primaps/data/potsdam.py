"""Potsdam-3: 8,550 aerial patches of 200x200 as MATLAB files, six classes joined to three.

Layout: ``imgs/ID.mat`` (key ``img``, 200x200x4, infrared last), ``gt/ID.mat`` (key ``gt``, 0..5)
and the lists ``labelled_train.txt``, ``labelled_test.txt`` and ``unlabelled_train.txt``.

Splits: ``train`` and ``val`` are the two labeled lists; ``unlabeled`` is the third.
Images are red, green and blue: backbones take three channels, so infrared is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from primaps.data.dataset import Finding, Layout, Sample
from primaps.data.dataset_paths import need_folder, read_list

SOURCE = (
    "4_Ortho_RGBIR.zip and 5_Labels_for_participants.zip (or 5_Labels_all.zip) from "
    "https://www.isprs.org/education/benchmarks/UrbanSemLab; `primaps data prepare potsdam` cuts "
    "them"
)
LISTS = {
    "train": "labelled_train.txt",
    "val": "labelled_test.txt",
    "unlabeled": "unlabelled_train.txt",
}
FINE = ("impervious surface", "building", "low vegetation", "tree", "car", "clutter")
"""What the values 0..5 of the label maps mean."""


def _listed(root: Path, split: str) -> list[Sample]:
    images = need_folder(root, "imgs", SOURCE)
    labels = need_folder(root, "gt", SOURCE)
    names = read_list(root / LISTS[split], f"get {SOURCE}")
    return [
        Sample(images / f"{n}.mat", n, None if split == "unlabeled" else labels / f"{n}.mat")
        for n in names
    ]


def _look(root: Path, split: str) -> Iterator[Finding]:
    """Patches on two lists."""
    names = set(read_list(root / LISTS[split], ""))
    for other, name in LISTS.items():
        if other < split and (root / name).is_file():
            both = names & set(read_list(root / name, f"get {SOURCE}"))
            if both:
                text = f"{len(both)} ids are in {name} and in {LISTS[split]}; first: {min(both)}"
                yield Finding("wrong", text)


def _instead(label: Path) -> str:
    image = label.with_suffix(".tif")
    return "a TIFF is there: cut the tiles by `primaps data prepare potsdam`" * image.is_file()


LAYOUT = Layout(
    name="potsdam",
    classes=("road and car", "building and clutter", "vegetation and tree"),
    values={0: 0, 4: 0, 1: 1, 5: 1, 2: 2, 3: 2, 255: 255},
    splits={"train": 4_545, "val": 855, "unlabeled": 3_150},
    listed=_listed,
    source=SOURCE,
    colors=((255, 255, 255), (0, 0, 255), (0, 255, 0)),
    size=(200, 200),
    look=_look,
    instead=_instead,
)
