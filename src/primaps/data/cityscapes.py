"""Cityscapes with 27 classes: label ids 7 to 33, minus 7; all other ids are ignored.

Layout: ``leftImg8bit/{split}/{city}/*_leftImg8bit.png`` and
``gtFine/{split}/{city}/*_gtFine_labelIds.png``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from primaps.data.dataset import Color, Finding, Layout, Sample, need_folder

SOURCE = (
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from "
    "https://www.cityscapes-dataset.com/downloads"
)
CITIES = {
    "train": {
        "aachen": 174, "bochum": 96, "bremen": 316, "cologne": 154, "darmstadt": 85,
        "dusseldorf": 221, "erfurt": 109, "hamburg": 248, "hanover": 196, "jena": 119,
        "krefeld": 99, "monchengladbach": 94, "strasbourg": 365, "stuttgart": 196, "tubingen":
        144, "ulm": 95, "weimar": 142, "zurich": 122,
    },
    "val": {
        "frankfurt": 267, "lindau": 59, "munster": 174,
    },
}  # fmt: skip
"""Number of images of each city."""
CLASSES: dict[str, Color] = {  # in the order of ids, with the colors of the data set
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "parking": (250, 170, 160),
    "rail track": (230, 150, 140),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "guard rail": (180, 165, 180),
    "bridge": (150, 100, 100),
    "tunnel": (150, 120, 90),
    "pole": (153, 153, 153),
    "polegroup": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "caravan": (0, 0, 90),
    "trailer": (0, 0, 110),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}


_LABEL = "_gtFine_labelIds.png"


def _list_samples(root: Path, split: str) -> list[Sample]:
    images = need_folder(root, f"leftImg8bit/{split}", SOURCE)
    labels = need_folder(root, f"gtFine/{split}", SOURCE)
    samples = []
    for path in sorted(images.glob("*/*_leftImg8bit.png")):
        city, name = path.parent.name, path.name.removesuffix("_leftImg8bit.png")
        samples.append(Sample(path, f"{city}/{name}", labels / city / f"{name}{_LABEL}"))
    return samples


def _check_names(root: Path, split: str) -> Iterator[Finding]:
    """Look for missing, incomplete and unknown cities."""
    for folder, end in (("leftImg8bit", "_leftImg8bit.png"), ("gtFine", _LABEL)):
        base = root / folder / split
        for city, expected in CITIES[split].items():
            found = len(list((base / city).glob(f"*{end}")))
            if not (base / city).is_dir():
                text = f"{base} has no folder of the city {city} ({expected} images)"
                yield Finding("error", text)
            elif found != expected:
                text = f"{base / city} has {found} files *{end}; the data set has {expected}"
                yield Finding("error", text)
        unknown = {path.name for path in base.iterdir() if path.is_dir()} - CITIES[split].keys()
        for city in sorted(unknown):
            yield Finding("error", f"{base} has a folder {city}, which is not a city of this split")


def _label_hint(label: Path) -> str:
    for end, what in (
        ("labelTrainIds.png", "labelTrainIds (19 classes) exist"),
        ("color.png", "labels in color exist"),
        ("polygons.json", "polygons exist"),
    ):
        if label.with_name(label.name.replace("labelIds.png", end)).is_file():
            return f"{what}, but the protocol needs *_labelIds.png of gtFine_trainvaltest.zip"
    return ""


LAYOUT = Layout(
    name="cityscapes",
    classes=tuple(CLASSES),
    values={i: i - 7 if i >= 7 else 255 for i in range(34)},
    splits={split: sum(cities.values()) for split, cities in CITIES.items()},
    list_samples=_list_samples,
    source=SOURCE,
    colors=tuple(CLASSES.values()),
    size=(2048, 1024),
    check_names=_check_names,
    label_hint=_label_hint,
    value_hints={255: "255 is a value of labelTrainIds, the protocol needs labelIds"},
)
