"""COCO-Stuff with 27 classes, made from 182, on the curated lists of the field.

Layout: ``images/{train2017,val2017}/ID.jpg``, ``annotations/{train2017,val2017}/ID.png`` (the
stuffthingmaps: 0..181, 255 = void) and ``curated/{train2017,val2017}/`` with the lists of ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from primaps.data.dataset import Finding, Layout, Sample
from primaps.data.dataset_paths import need_folder, read_list

SOURCE = (
    "train2017.zip and val2017.zip from https://cocodataset.org/#download, "
    "stuffthingmaps_trainval2017.zip from https://github.com/nightrome/cocostuff and the folder "
    "curated of https://github.com/janghyuncho/PiCIE; `primaps data prepare cocostuff` lays them "
    "out"
)
LIST = "Coco164kFull_Stuff_Coarse_7.txt"
FOLDERS = {"train": "train2017", "val": "val2017"}
FINE: dict[str, range | tuple[int, ...]] = {  # the values of the stuffthingmaps in each class
    "electronic": range(71, 77),
    "appliance": range(77, 83),
    "food-things": range(51, 61),
    "furniture-things": range(61, 71),
    "indoor": range(83, 91),
    "kitchen": range(43, 51),
    "accessory": range(25, 33),
    "animal": range(15, 25),
    "outdoor": range(9, 15),
    "person": (0,),
    "sports": range(33, 43),
    "vehicle": range(1, 9),
    "ceiling": (101, 102),
    "floor": (100, 113, 114, 115, 116, 117),
    "food-stuff": (120, 121, 152, 169),
    "furniture-stuff": (97, 106, 107, 109, 111, 122, 129, 132, 155, 160, 164),
    "rawmaterial": (99, 131, 138, 142),
    "textile": (91, 92, 103, 104, 108, 130, 136, 140, 151, 166, 167),
    "wall": range(170, 177),
    "window": (179, 180),
    "building": (94, 95, 127, 150, 157, 165),
    "ground": (110, 124, 125, 135, 139, 143, 144, 146, 148, 153, 158),
    "plant": (93, 96, 118, 123, 128, 133, 141, 162, 168),
    "sky": (105, 156),
    "solid": (126, 134, 149, 159, 161, 181),
    "structural": (98, 112, 137, 145, 163),
    "water": (119, 147, 154, 177, 178),
}
LEAST_STUFF, LEAST_SIDE = 0.75, 360
"""The rule of the curated lists, which IIC introduced: see :func:`is_curated`."""


def is_curated(label: Integer[np.ndarray, "h w"]) -> bool:
    """Whether an image belongs on the curated list: at least 75 % of all its pixels are stuff
    (values 91..181; void counts as none) and both sides have at least 360 pixels.

    Examples:
        >>> is_curated(np.full((360, 480), 157)), is_curated(np.full((359, 480), 157))
        (True, False)
    """
    stuff = ((label >= 91) & (label <= 181)).mean()
    return bool(min(label.shape) >= LEAST_SIDE and stuff >= LEAST_STUFF)


def list_path(root: Path, split: str) -> Path:
    """The curated list of ``train`` or ``val``."""
    return root / "curated" / FOLDERS[split] / LIST


def _listed(root: Path, split: str) -> list[Sample]:
    images = need_folder(root, f"images/{FOLDERS[split]}", SOURCE)
    labels = need_folder(root, f"annotations/{FOLDERS[split]}", SOURCE)
    how = (
        "take it from https://github.com/janghyuncho/PiCIE (folder curated), or make it by its "
        "rule (75 % of the pixels stuff, both sides at least 360 px) with `primaps data prepare "
        "cocostuff RAW OUT --make-lists`"
    )
    names = read_list(list_path(root, split), how)
    return [Sample(images / f"{n}.jpg", n, labels / f"{n}.png") for n in names]


def _look(root: Path, split: str) -> Iterator[Finding]:
    names = read_list(list_path(root, split), "")
    if len(set(names)) < len(names):
        twice = f"{list_path(root, split)} names {len(names) - len(set(names))} ids twice"
        yield Finding("wrong", twice)


def _instead(label: Path) -> str:
    for end in ("_labelTrainIds.png", "_pixelmap.png"):
        if label.with_name(label.stem + end).is_file():
            return f"files *{end} are there, but the protocol needs ID.png of the stuffthingmaps"
    return ""


LAYOUT = Layout(
    name="cocostuff",
    classes=tuple(FINE),
    values={**{v: k for k, fine in enumerate(FINE.values()) for v in fine}, 255: 255},
    splits={"train": 49_629, "val": 2_175},
    listed=_listed,
    source=SOURCE,
    look=_look,
    instead=_instead,
    telltales=dict.fromkeys(
        (182, 183), "values above 181 are of the stuff pixelmaps, the protocol needs stuffthingmaps"
    ),
)
