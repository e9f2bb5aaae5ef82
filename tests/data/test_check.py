"""`primaps data check`: every mistake that one would really make gets its sentence."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from typer.testing import CliRunner

from primaps.cli import app
from primaps.data import cityscapes, cocostuff, potsdam
from primaps.data.check import check_dataset
from primaps.utils.errors import InputError
from tests.trees import cityscapes_tree, cocostuff_tree, labeled_tree, potsdam_tree, write


@pytest.fixture
def mini(monkeypatch):
    """The protocol's counts and sizes as those of the miniature trees."""
    cities = {split: dict.fromkeys(names, 2) for split, names in cityscapes.CITIES.items()}
    monkeypatch.setattr(cityscapes, "CITIES", cities)
    for module, changes in (
        (cityscapes, {"splits": {"train": 36, "val": 6}, "size": (16, 8)}),
        (cocostuff, {"splits": {"train": 2, "val": 2}}),
        (potsdam, {"splits": {"train": 2, "val": 2, "unlabeled": 1}}),
    ):
        layout = type(module.LAYOUT)(**{**vars(module.LAYOUT), **changes})
        monkeypatch.setattr(module, "LAYOUT", layout)


def found(name, root, level="error", **options):
    return [f.text for f in check_dataset(name, root, **options) if f.level == level]


def only(sentences, *words):
    """That there is one sentence, and it has these words."""
    assert len(sentences) == 1, sentences
    for word in words:
        assert word in sentences[0]


TREES = {
    "cityscapes": cityscapes_tree,
    "cocostuff": cocostuff_tree,
    "potsdam": potsdam_tree,
    "folder": labeled_tree,
}


@pytest.mark.parametrize("name", TREES)
def test_a_complete_tree_is_ok(name, mini, tmp_path):
    root = TREES[name](tmp_path)
    assert found(name, root) == []
    ok = found(name, root, "ok")
    assert len(ok) == 3 if name == "potsdam" else 2
    assert any("of the pixels ignored" in text for text in ok)
    assert found(name, root, quick=True) == []


def test_counts_are_those_of_the_protocol(tmp_path):
    assert cityscapes.LAYOUT.splits == {"train": 2975, "val": 500}
    assert cocostuff.LAYOUT.splits == {"train": 49_629, "val": 2_175}
    assert (potsdam.LAYOUT.splits["train"], potsdam.LAYOUT.splits["val"]) == (4_545, 855)
    wrong = found("potsdam", potsdam_tree(tmp_path))
    assert wrong == [
        "train: 2 images; the protocol has 4,545",
        "val: 2 images; the protocol has 855",
    ]


def test_a_city_is_missing_or_incomplete(mini, tmp_path):
    root = cityscapes_tree(tmp_path)
    for folder in ("leftImg8bit", "gtFine"):
        shutil.rmtree(root / folder / "val" / "lindau")
    next((root / "leftImg8bit" / "train" / "ulm").iterdir()).unlink()
    wrong = found("cityscapes", root)
    assert "train: 35 images; the protocol has 36" in wrong
    assert any("ulm has 1 files *_leftImg8bit.png; the data set has 2" in text for text in wrong)
    assert any("no folder of the city lindau (2 images)" in text for text in wrong)
    assert len(wrong) == 5


def test_labels_of_another_size_than_their_image(mini, tmp_path):
    root = cityscapes_tree(tmp_path)
    label = root / "gtFine/val/munster/munster_000001_000019_gtFine_labelIds.png"
    write(label, np.full((4, 8), 7, np.uint8))
    wrong = found("cityscapes", root)
    only(wrong, "labels with another size than their image: 1 of 6", "8x4 pixels, its image 16x8")


def test_images_of_another_size_than_the_data_set(mini, tmp_path):
    wrong = found("cityscapes", cityscapes_tree(tmp_path, size=(8, 6)))
    assert len(wrong) == 2
    assert "train: images that are not 16x8: 36 of 36" in wrong[0]


@pytest.mark.parametrize(
    ("end", "words"),
    [("color.png", "labels in color exist"), ("labelTrainIds.png", "labelTrainIds")],
)
def test_label_ids_are_missing_but_other_labels_there(mini, tmp_path, end, words):
    root = cityscapes_tree(tmp_path)
    for path in (root / "gtFine" / "val").rglob("*_labelIds.png"):
        path.rename(path.with_name(path.name.replace("labelIds.png", end)))
    wrong = found("cityscapes", root)
    assert "*_gtFine_labelIds.png; the data set has 2" in wrong[0]
    assert "labels not on disk" in wrong[-1]
    assert words in wrong[-1]
    assert "6 of 6" in wrong[-1]


def test_train_ids_under_the_name_of_label_ids(mini, tmp_path):
    root = cityscapes_tree(tmp_path)
    for path in (root / "gtFine" / "val").rglob("*_labelIds.png"):
        write(path, np.full((8, 16), 255, np.uint8))
    only(found("cityscapes", root), "outside the protocol", "255 is a value of labelTrainIds")
    assert found("cityscapes", root, quick=True) == []


@pytest.mark.parametrize("name", ["cityscapes", "cocostuff", "folder"])
def test_labels_still_in_color(name, mini, tmp_path):
    root = TREES[name](tmp_path)
    places = {"cityscapes": "gtFine/val", "cocostuff": "annotations/val2017"}
    places = {
        "cityscapes": "gtFine/val",
        "cocostuff": "annotations/val2017",
        "folder": "labels/val",
    }
    for path in (root / places[name]).rglob("*.png"):
        Image.open(path).convert("RGB").save(path)
    only(found(name, root), "val: labels in color instead of class indices", ".png (RGB)")


def test_ids_on_the_list_but_not_on_disk(mini, tmp_path):
    root = cocostuff_tree(tmp_path)
    (root / "images" / "val2017" / "000000000139.jpg").unlink()
    (root / "annotations" / "train2017" / "000000000285.png").unlink()
    train, val = found("cocostuff", root)
    assert "train: labels not on disk: 1 of 2, first" in train
    assert "val: images not on disk: 1 of 2, first" in val
    assert "get train2017.zip" in val


def test_the_curated_list_is_missing_or_names_ids_twice(mini, tmp_path):
    root = cocostuff_tree(tmp_path)
    cocostuff.list_path(root, "train").unlink()
    with cocostuff.list_path(root, "val").open("a") as file:
        file.write("000000000139\n")
    missing, count, twice = found("cocostuff", root)
    assert "does not exist" in missing
    assert "--make-lists" in missing
    assert "val: 3 images; the protocol has 2" in count
    assert "names 1 ids twice" in twice


def test_maps_of_another_kind_of_cocostuff(mini, tmp_path):
    root = cocostuff_tree(tmp_path)
    write(root / "annotations/val2017/000000000139.png", np.full((12, 16), 183, np.uint8))
    only(found("cocostuff", root), "stuff pixelmaps", "with 183")
    path = root / "annotations/val2017/000000000139.png"
    path.rename(path.with_name("000000000139_labelTrainIds.png"))
    only(found("cocostuff", root), "needs ID.png of the stuffthingmaps")


def test_mat_files_without_their_key_or_of_version_73(mini, tmp_path):
    root = potsdam_tree(tmp_path)
    savemat(root / "imgs" / "7.mat", {"image": np.zeros((200, 200, 4), np.uint8)})
    (root / "gt" / "3.mat").write_bytes(b"MATLAB 7.3 MAT-file" + bytes(600))
    savemat(root / "gt" / "90.mat", {"gt": np.zeros((200, 200, 3), np.uint8)})
    train, *val = found("potsdam", root)
    assert "has no array 'img'" in train
    assert any("version 7.3" in text for text in val)
    assert any("labels in color" in text and "(200, 200, 3)" in text for text in val)


def test_a_patch_on_two_lists(mini, tmp_path):
    root = potsdam_tree(tmp_path)
    (root / "labelled_test.txt").write_text("3\n7\n")
    only(found("potsdam", root), "1 ids are in labelled_train.txt and in labelled_test.txt")


def test_wrong_roots(mini, tmp_path):
    root = cityscapes_tree(tmp_path / "data" / "cityscapes")
    for given, words in (
        (root.parent, f"one folder too high: give {root}"),
        (root / "leftImg8bit", f"one folder too deep: give {root}"),
        (root / "leftImg8bit" / "val", f"one folder too deep: give {root}"),
        (root / "nowhere", "does not exist; give the folder that holds leftImg8bit/"),
    ):
        wrong = found("cityscapes", given)
        assert len(wrong) == 2  # train and val
        assert words in wrong[0]
    shutil.rmtree(root / "gtFine" / "train")
    assert "gtFine/train does not exist; it is part of" in found("cityscapes", root)[0]
    shutil.rmtree(root / "gtFine")
    assert "has no folder gtFine/; get" in found("cityscapes", root)[0]
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "leftImg8bit_trainvaltest.zip").touch()
    assert "unpack leftImg8bit_trainvaltest.zip" in found("cityscapes", empty)[0]
    only(found("folder", empty), "images/")


def test_damaged_files_are_named(mini, tmp_path):
    root = cocostuff_tree(tmp_path)
    (root / "images/val2017/000000000139.jpg").write_bytes(b"")
    label = root / "annotations/train2017/000000000139.png"
    label.write_bytes(label.read_bytes()[:-40])
    train, val = found("cocostuff", root)
    assert "cannot be read: 1 of 2" in train
    assert "cannot be read: 1 of 2" in val


def test_findings_of_a_folder_that_are_warnings(tmp_path):
    root = labeled_tree(tmp_path)
    (root / "images" / "val" / "b.jpg").unlink()
    (root / "classes.json").write_text('{"classes": ["x", "y", "z", "w"], "ignore_index": 11}')
    assert found("folder", root) == []
    warnings = found("folder", root, "warning")
    assert "train: no pixel of w" in warnings
    assert any("1 label maps without an image" in text for text in warnings)


def test_real_folders_are_fine(data_root):
    for name in ("camvid", "coco200", "aerial260"):
        assert found("folder", data_root / name, quick=True) == []


def test_the_command_has_a_status(tmp_path):
    root = labeled_tree(tmp_path)
    runner = CliRunner()
    done = runner.invoke(app, ["data", "check", "folder", str(root)])
    assert done.exit_code == 0, done.output
    assert "ok: val: 2 images" in done.output
    (root / "labels" / "val" / "a.png").unlink()
    done = runner.invoke(app, ["data", "check", "folder", str(root)])
    assert done.exit_code == 1
    assert "error: val: labels not on disk: 1 of 2" in done.output
    done = runner.invoke(app, ["data", "check", "imagenet", str(root)])
    assert done.exit_code == 1
    assert "data set 'imagenet' is unknown" in done.output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"classes": []}', "has the length 0"),
        ('{"classes": "abc"}', "must be a list"),
        ('{"classes": ["x", "x"]}', "two classes have the name 'x'"),
        ('{"classes": ["x"], "ignore_index": 2000000000}', '"ignore_index" is 2000000000'),
        ('{"classes": ["x", 3]}', r'field "classes\[1\]" is 3; it must be a string'),
        ("{", "is not JSON"),
    ],
)
def test_a_list_of_classes_that_evaluate_cannot_use_is_wrong(tmp_path, text, words):
    root = labeled_tree(tmp_path)
    (root / "classes.json").write_text(text)
    (sentence,) = found("folder", root)
    assert re.search(words, sentence)
    assert str(root / "classes.json") in sentence
    assert found("folder", root, "ok") == []
    (root / "classes.json").unlink()
    (root / "labels" / "val" / "classes.json").write_text(text)  # of one split alone
    assert any(re.search(words, one) for one in found("folder", root))


def test_an_ignore_index_that_is_a_class_is_odd(tmp_path):
    root = labeled_tree(tmp_path)
    (root / "classes.json").write_text('{"classes": ["x", "y", "z"], "ignore_index": 1}')
    assert "val: the ignore index 1 is also class 'y', which is not evaluated" in found(
        "folder", root, "warning"
    )
    with pytest.raises(InputError, match="data set 'folders' is unknown"):
        list(check_dataset("folders", root))


def test_values_as_large_as_a_file_can_have_take_no_table(tmp_path):
    root = labeled_tree(tmp_path)
    (root / "labels" / "val" / "a.png").unlink()
    write(root / "labels" / "val" / "a.tif", np.full((6, 8), 2_000_000_000, np.int32))
    (sentence,) = found("folder", root)
    assert "values outside the protocol" in sentence
