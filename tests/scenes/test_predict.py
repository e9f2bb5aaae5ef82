"""Class maps of scenes, compared with predictions of whole images."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import primaps
from primaps import inference
from primaps.classes.legend import legend
from primaps.classes.tree import Tree
from primaps.crf import CLASS_CRF
from tests.conftest import painted
from tests.scenes.conftest import bands, geotiff


@pytest.fixture(scope="module")
def large(model):
    """The model as it is for an image whose shorter side is 192."""
    other = copy.copy(model)
    other.config = replace(model.config, size=192)
    return other


@pytest.fixture(scope="module")
def even():
    return painted(5, 256, 192)[0]


@pytest.mark.parametrize("crf", [True, False])
def test_one_tile_over_the_image_equals_predict(large, even, crf):
    whole = large.segment(even, crf=crf)
    found = primaps.predict_image(large, even, crf=crf, size=256, tile_overlap=0)
    tie = (whole.margin < 1e-3).numpy()  # logits of scenes are stored in half precision
    assert (found == whole.labels.numpy())[~tie].all()
    assert tie.mean() < 1e-3


def test_smaller_crf_tiles_give_the_same_classes(large, even, monkeypatch):
    refined = []

    def watched(images, logits):
        refined.append(tuple(images.shape[2:]))
        return CLASS_CRF(images, logits=logits)

    whole = primaps.predict_image(large, even, size=256)
    monkeypatch.setattr(inference, "CLASS_CRF", watched)
    parts = primaps.predict_image(large, even, size=256, crf_tile=168)
    assert len(refined) == 6
    assert max(map(max, refined)) <= 168
    assert (parts != whole).mean() < 0.001


def test_another_tile_size_gives_nearly_the_same_classes(model, picture):
    one = primaps.predict_image(model, picture, size=64)
    other = primaps.predict_image(model, picture, size=96, tile_overlap=40)
    assert (one != other).mean() < 0.005


@pytest.mark.parametrize("scale", [2, 1.7, 0.5])
def test_a_scale_keeps_the_size_and_nearly_all_classes(model, picture, scale):
    plain = primaps.predict_image(model, picture)
    scaled = primaps.predict_image(model, picture, scale=scale)
    assert scaled.shape == plain.shape == (picture.height, picture.width)
    assert (scaled == plain).mean() > 0.9


def test_cuts_hidden_and_divided_classes_are_those_of_predict(large, even):
    # A tree in which class 0 has two leaves, split along its largest principal component.
    features = large.segment(even, crf=False).features
    classes = large.segmenter.logits(features[None])[0].argmax(0)
    own = features[:, classes == 0].T
    along = torch.linalg.svd(own - own.mean(0))[2][0] * (own - own.mean(0)).norm(dim=1).mean() * 9
    rest = [features[:, classes == k].mean(1) for k in (1, 2)]
    parts = torch.stack([own.mean(0) + along, own.mean(0) - along, *rest])
    merges = torch.tensor([[0, 1], [4, 2], [5, 3]])
    tree = Tree(F.normalize(parts, dim=1).half(), torch.ones(4).long(), merges, torch.ones(3), 3)
    split = copy.copy(large)
    split.class_summary_ = replace(large.class_summary_, tree=tree)
    for edits, count in (([{"hide": "1"}], 3), ([{"split": "0"}], 4), ([{"merge": ["0", "2"]}], 2)):
        split.legend_ = legend(tree, edits)
        found = primaps.predict_image(split, even, size=256, tile_overlap=0)
        assert (found == split.predict(even).numpy()).mean() > 0.999
        assert len(np.unique(found)) == count
    by_tiles = primaps.predict_image(split.cut(4), even, size=64)
    assert (by_tiles == split.cut(4).predict(even).numpy()).mean() > 0.99


def test_pixels_without_a_value_are_255_and_do_not_change_their_surroundings(
    model, picture, tmp_path
):
    whole = primaps.predict_image(model, picture)
    values = bands(picture).astype(np.int16)
    values[:, 70:120, 80:150] = -999
    path = geotiff(tmp_path / "gap.tif", values, nodata=-999)
    primaps.predict_scene(model, path, tmp_path / "out.tif", stretch=(0, 255))
    found = np.asarray(Image.open(tmp_path / "out.tif"))
    gap = np.zeros(found.shape, bool)
    gap[70:120, 80:150] = True
    assert (found[gap] == 255).all()
    assert (found[~gap] != 255).all()
    assert (found[~gap] == whole[~gap]).mean() > 0.98


def test_transparent_pixels_of_an_image_are_255(model, picture, tmp_path):
    clear = picture.copy()
    alpha = np.full((picture.height, picture.width), 255, np.uint8)
    alpha[:100] = 0
    clear.putalpha(Image.fromarray(alpha))
    found = primaps.predict_image(model, clear)
    assert ((found == 255) == (alpha == 0)).all()


def test_an_image_in_tiles_keeps_its_resolution(model, tmp_path):
    picture, label = painted(11, 256, 192)
    picture.save(tmp_path / "a.png")
    done = primaps.predict_files(
        model, tmp_path / "a.png", tmp_path / "out", tiles={"tile_overlap": 16}, crf=False
    )
    found = np.asarray(Image.open(done.written[0]))
    assert found.shape == label.shape
    for k in range(3):  # each color is one class, but for a pixel or two at its rim
        values, counts = np.unique(found[label == k], return_counts=True)
        assert counts.max() / counts.sum() > 0.9, values
    kept = primaps.predict_files(
        model, tmp_path / "a.png", tmp_path / "out", tiles={"tile_overlap": 16}, crf=False
    )
    assert kept.kept
    assert not kept.written
