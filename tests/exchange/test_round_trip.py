"""An import returns the exported label maps and class names."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from primaps.exchange.classes import Classes, read_classes
from primaps.exchange.formats import FORMATS
from primaps.exchange.transfer import export_labels, import_labels
from primaps.utils.errors import InputError
from tests.exchange.samples import Collection, collection, key_of, read_maps

READABLE = [name for name, row in FORMATS.items() if row.read]
COLORED = ["coco", "coco-panoptic", "cvat", "cvat-mask", "labelstudio", "voc", "hf"]
"""Formats that keep colors; these are distinct here."""


def export_and_import(data: Collection, name: str, **options) -> Path:
    out, back = data.root / "out", data.root / "back"
    export_labels(data.result, data.images, name, out, **options)
    progress = []
    import_labels(out, name, back, progress=lambda *state: progress.append(state[1:3]))
    assert progress == [(i + 1, len(data.maps)) for i in range(len(data.maps))]
    return back


def assert_same_maps(data: Collection, back: Path) -> None:
    found = read_maps(back)
    assert found.keys() == {key_of(name, data.maps) for name in data.maps}
    for name, labels in data.maps.items():
        np.testing.assert_array_equal(found[key_of(name, data.maps)], labels)


@pytest.mark.parametrize("name", READABLE)
def test_labels_names_and_colors_come_back(street, name):
    back = export_and_import(street, name)
    assert_same_maps(street, back)
    classes = read_classes(back)
    assert classes.names == street.classes.names
    if name in COLORED:
        np.testing.assert_array_equal(classes.colors, street.classes.colors)


@pytest.mark.parametrize("per", ["class", "region"])
@pytest.mark.parametrize("name", [one for one in READABLE if FORMATS[one].per])
def test_labels_come_back_per_class_and_per_region(street, name, per):
    assert_same_maps(street, export_and_import(street, name, per=per))


@pytest.mark.parametrize("name", READABLE)
def test_images_with_equal_names_and_other_suffixes_stay_distinct(tmp_path, name):
    maps = {"a.png": np.zeros((12, 12), np.uint8), "a.bmp": np.ones((12, 12), np.uint8)}
    data = collection(tmp_path, maps, Classes(("x", "y")))
    assert_same_maps(data, export_and_import(data, name))


@pytest.mark.parametrize("name", READABLE)
def test_an_import_can_be_exported_again(street, name):
    back = export_and_import(street, name)
    again = export_labels(back, street.images, "hf", street.root / "again")
    assert again.images == len(street.maps)


AWKWARD = (
    "tree, tall",
    '"quoted"',
    "it's",
    "a/b",
    ".hidden",
    "..",
    "255",
    "-1",
    "Größe",
    "樹",
    "no",
)


@pytest.mark.parametrize("name", READABLE)
def test_awkward_names_holes_single_pixels_and_unused_classes_come_back(tmp_path, name):
    labels = np.full((9, 12), 255, np.uint8)
    labels[1:8, 1:8] = 0  # a ring of 0 around 1 around 2, which touches itself at a corner
    labels[2:7, 2:7] = 1
    labels[3, 3], labels[4, 4], labels[3, 4] = 2, 2, 255
    labels[0, 11], labels[8, 0] = 10, 9  # single pixels; the classes 3 to 8 have no pixel
    maps = {"a.png": labels, "b.png": np.full((1, 1), 10, np.uint8)}
    data = collection(tmp_path, maps, Classes(AWKWARD))
    back = export_and_import(data, name)
    assert_same_maps(data, back)
    assert read_classes(back).names == AWKWARD


letters = st.characters(exclude_categories=("Cc", "Cs", "Cn", "Zl", "Zp", "Co"))
words = st.text(letters, min_size=1, max_size=8)
names = words.map(str.strip).filter(lambda text: text and text != "background")
plain = names.map(lambda text: text.replace(":", "").lstrip("#").strip()).filter(
    lambda text: text and text not in ("background", "__ignore__", "_background_")
)
files = words.map(lambda text: text.replace("/", "").replace("\\", "")).filter(
    lambda text: text.strip(". ") and not text.startswith(".")
)


@st.composite
def collections(draw):
    """A few small images: any names, 1 to 255 classes, holes, images without labels."""
    chosen = draw(st.lists(plain, min_size=1, max_size=4, unique=True))
    count = draw(st.sampled_from([len(chosen), len(chosen), 7, 254, 255]))
    rest = (f"class {k}" for k in range(255))
    chosen += [one for one in rest if one not in chosen][: max(0, count - len(chosen))]
    maps = {}
    for file in draw(st.lists(files, min_size=1, max_size=2, unique_by=str.casefold)):
        size = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        values = [*draw(st.lists(st.integers(0, len(chosen) - 1), min_size=1, max_size=3)), 255]
        place = draw(st.sampled_from(["", "train/", "images/", "a b/"]))
        maps[f"{place}{file}.png"] = draw(arrays(np.uint8, size, elements=st.sampled_from(values)))
    return maps, Classes(tuple(chosen))


@pytest.mark.parametrize("name", READABLE)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=collections())
def test_random_collections_come_back(name, drawn):
    with tempfile.TemporaryDirectory() as folder:
        data = collection(Path(folder), *drawn)
        assert_same_maps(data, export_and_import(data, name))


@pytest.mark.parametrize("name", READABLE)
def test_proposals_come_back_as_pixels_of_one_class(masks, name):
    if not FORMATS[name].proposals:
        with pytest.raises(InputError, match=f"{name} has only classes"):
            export_and_import(masks, name)
        return
    found = read_maps(export_and_import(masks, name))
    for file, numbers in masks.maps.items():
        expected = np.where(numbers > 0, 0, 255)
        np.testing.assert_array_equal(found[key_of(file, masks.maps)], expected)


def test_reserved_class_names_are_rejected(tmp_path):
    maps = {"a.png": np.zeros((2, 2), np.uint8)}
    for name, word in [("voc", "background"), ("cvat-mask", "a:b"), ("labelme", "__ignore__")]:
        data = collection(tmp_path / name, maps, Classes((word,)))
        with pytest.raises(InputError, match=word):
            export_labels(data.result, data.images, name, data.root / "out")
        assert not (data.root / "out").exists()
