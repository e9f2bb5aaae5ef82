"""The data sets in the layouts of the field: what is listed, and what labels become."""

import numpy as np
import pytest
from scipy.io import savemat

from primaps.data import DataError, ImageError, load_dataset, load_image, load_pair, pair_up
from primaps.data.images import read_mat
from tests.trees import cityscapes_tree, cocostuff_tree, labeled_tree, potsdam_tree, write


def labels(data):
    return np.unique(np.concatenate([data.label(s).ravel() for s in data.samples])).tolist()


def test_cityscapes_ids_are_shifted_by_seven_and_the_others_ignored(tmp_path):
    data = load_dataset("cityscapes", cityscapes_tree(tmp_path), "val")
    assert [sample.key for sample in data.samples[:2]] == [
        "frankfurt/frankfurt_000000_000019",
        "frankfurt/frankfurt_000001_000019",
    ]
    assert len(data.samples) == 6
    label = data.label(data.samples[0]).ravel()
    assert label[:9].tolist() == [255] * 7 + [0, 1]  # ids 0..8
    assert label[33] == 26
    assert (data.classes[0], data.classes[19], data.classes[26]) == ("road", "car", "bicycle")
    assert len(data.classes) == len(data.colors) == 27


def test_every_fine_class_of_cocostuff_has_one_of_27(tmp_path):
    data = load_dataset("cocostuff", cocostuff_tree(tmp_path), "train")
    assert sorted(data.layout.values) == [*range(182), 255]
    assert set(data.layout.values.values()) == {*range(27), 255}
    for value, name in ((0, "person"), (16, "animal"), (105, "sky"), (181, "solid"), (255, None)):
        found = data.layout.values[value]
        assert (found == 255) if name is None else (data.classes[found] == name)


def test_official_sample_of_cocostuff(data_root):
    root = data_root / "cocostuff_sample"
    for split, there, listed in (("train", 5, 49_629), ("val", 3, 2_175)):
        data = load_dataset("cocostuff", root, split)
        assert len(data.samples) == there
        assert len(data.samples) + len(data.absent) == listed
        assert set(labels(data)) <= {*range(27), 255}


def test_the_table_of_cocostuff_is_the_published_one(data_root):
    """The published dictionary is one string of names, then fine and coarse numbers in a row."""
    path = data_root / "cocostuff_sample" / "curated" / "IIC_fine_to_coarse_dict.txt"
    values = load_dataset("cocostuff", data_root / "cocostuff_sample", "val").layout.values
    assert path.read_text().strip().endswith("".join(f"{i}\t{values[i]}" for i in range(182)))


def test_potsdam_joins_six_classes_to_three_and_leaves_infrared_out(tmp_path):
    root = potsdam_tree(tmp_path)
    data = load_dataset("potsdam", root, "val")
    assert [sample.key for sample in data.samples] == ["3", "90"]
    assert data.label(data.samples[0])[0, :6].tolist() == [0, 1, 2, 2, 0, 1]
    image = load_image(data.samples[1].source)
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (200, 200), (90, 90, 90))
    unlabeled = load_dataset("potsdam", root, "unlabeled")
    with pytest.raises(ImageError, match="has no label map in this data set"):
        unlabeled.label(unlabeled.samples[0])


def test_splits_of_a_folder(tmp_path):
    root = labeled_tree(tmp_path / "a")
    assert [s.key for s in load_dataset("folder", root, "val").samples] == ["a", "b"]
    assert len(load_dataset("folder", root, "all").samples) == 4
    assert labels(load_dataset("folder", root, "train")) == [0, 1, 2, 11]
    plain = labeled_tree(tmp_path / "b", splits=("",))
    assert len(load_dataset("folder", plain, "train").samples) == 2  # the whole folder
    with pytest.raises(ValueError, match="no split 'test'; choose one of train, val, all"):
        load_dataset("folder", root, "test")


def test_without_classes_json_classes_are_numbers(tmp_path):
    root = labeled_tree(tmp_path)
    (root / "classes.json").unlink()
    data = pair_up(root / "images", root / "labels", ignore_index=11)
    assert data.layout.unnamed
    assert data.classes[:2] == ("class 0", "class 1")
    assert labels(data) == [0, 1, 2, 11]


def test_values_outside_the_protocol_are_refused_by_name(tmp_path):
    data = load_dataset("cityscapes", cityscapes_tree(tmp_path), "val")
    write(data.samples[0].label, np.full((8, 16), 255, np.uint8))
    with pytest.raises(ImageError, match="has the value 255.*labelTrainIds"):
        data.label(data.samples[0])
    write(data.samples[0].label, np.full((8, 16), 34, np.uint8))
    with pytest.raises(ImageError, match="has the value 34, which is none of the 27 classes"):
        data.label(data.samples[0])


def test_negative_values_of_mat_files_are_refused(tmp_path):
    data = load_dataset("potsdam", potsdam_tree(tmp_path), "val")
    savemat(data.samples[0].label, {"gt": np.full((200, 200), -1, np.int32)})
    with pytest.raises(ImageError, match="has the value -1"):
        data.label(data.samples[0])


def test_mat_files_that_cannot_be_used_are_named(tmp_path):
    for name, content in (
        ("new.mat", b"MATLAB 7.3 MAT-file, Platform: GLNXA64" + bytes(600)),
        ("text.mat", b"no mat file"),
    ):
        (tmp_path / name).write_bytes(content)
    savemat(tmp_path / "other.mat", {"image": np.zeros((2, 2))})
    savemat(tmp_path / "float.mat", {"img": np.zeros((2, 2, 4))})
    for name, words in (
        ("new.mat", "version 7.3"),
        ("text.mat", "damaged or not a MATLAB file"),
        ("absent.mat", "does not exist"),
        ("other.mat", "has no array 'img'"),
    ):
        with pytest.raises(ImageError, match=words) as error:
            read_mat(tmp_path / name, "img")
        assert name in str(error.value)
    with pytest.raises(ImageError, match="shape \\(2, 2, 4\\) and type float64"):
        load_image(tmp_path / "float.mat")


def test_unknown_names_and_empty_trees_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="data set .coco. is unknown; choose one of cityscapes"):
        load_dataset("coco", tmp_path)
    with pytest.raises(DataError, match="has no folder leftImg8bit/; get"):
        load_dataset("cityscapes", tmp_path)
    root = cocostuff_tree(tmp_path / "coco")
    for path in (root / "images" / "val2017").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="none of the 2 images of cocostuff val"):
        load_dataset("cocostuff", root, "val")


def test_pairs_are_squares_or_whole_images(tmp_path):
    data = load_dataset("folder", labeled_tree(tmp_path), "val")
    image, label = load_pair(data, data.samples[0], 6)
    assert (image.shape, label.shape) == ((3, 6, 6), (6, 6))
    assert label[0].tolist() == [1, 2, 11, 0, 1, 2]  # columns 1..6 of 0, 1, 2, 11, ...
    assert set(load_pair(data, data.samples[0], 9)[1].unique().tolist()) <= {0, 1, 2, 11}
    image, label = load_pair(data, data.samples[0])
    assert (image.shape, label.shape) == ((3, 6, 8), (6, 8))
    assert label.tolist() == data.label(data.samples[0]).tolist()
