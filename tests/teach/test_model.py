"""Taught models: learn, save, load and everything that predicts."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from primaps.batch import predict_files
from primaps.classes.legend import HIDDEN
from primaps.config import InferenceOptions
from primaps.data import find_images
from primaps.engines import Predictor
from primaps.exchange.classes import read_classes
from primaps.model import PriMaPsEM
from primaps.persistence import ModelError, change_edits, model_card, read_class_summary
from primaps.pictures.report import write_report
from primaps.scenes.predict import predict_image
from primaps.teach.annotations import Annotation, mask_geometry, read_annotations
from primaps.utils.errors import InputError
from tests.conftest import painted

NAMES = ("brick", "grass", "water")
OPTIONS = {"size": 64, "patch_size": 8, "min_init_steps": 10, "mask_crf": False, "device": "cpu"}


@pytest.fixture
def images(painted_folder):
    return painted_folder / "images"


@pytest.fixture
def fitted(colors, images):
    return PriMaPsEM(3, backbone=colors, **OPTIONS).fit(images)


def point(key: str, name: str, x: float, y: float, **fields) -> Annotation:
    return Annotation(key, None, "point", name, [x, y], (64, 64), **fields)


def clicks(seeds=range(3)) -> list[Annotation]:
    """One point in the middle of a block of each color, in each image."""
    found = []
    for seed in seeds:
        _, label = painted(seed)
        for k, name in enumerate(NAMES):
            places = np.argwhere(label[8::16, 8::16] == k)
            if len(places):
                row, column = places[0]
                found.append(point(str(seed), name, 16.0 * column + 8, 16.0 * row + 8))
    return found


def label_maps(seeds) -> list[Annotation]:
    found = []
    for seed in seeds:
        _, label = painted(seed)
        masks = {NAMES[k]: mask_geometry(label == k) for k in np.unique(label)}
        found.append(Annotation(str(seed), None, "label_map", None, masks, (64, 64)))
    return found


def accuracy(model, seed=100, **options) -> float:
    image, label = painted(seed)
    names = [one.name for one in model.shown_classes]
    order = np.array([NAMES.index(name) for name in names] + [9])
    found = np.minimum(model.predict(image, **options).numpy(), len(names))
    return float((order[found] == label).mean())


def test_a_few_points_teach_names_and_classes_and_leave_the_model_unchanged(fitted, images):
    before, digest = fitted.predict(painted(100)[0]), fitted.prediction_digest()
    taught = fitted.teach(images, clicks(), level="tokens")
    assert [one.name for one in taught.shown_classes] == sorted(NAMES)
    assert accuracy(taught) > 0.97  # by names, without matching
    assert taught.taught_.counts == dict.fromkeys(NAMES, 3)
    assert list(taught.taught_.images) == ["0", "1", "2"]
    assert fitted.taught_ is None
    assert torch.equal(fitted.predict(painted(100)[0]), before)
    assert fitted.prediction_digest() == digest != taught.prediction_digest()


def test_two_teachings_are_bit_identical(fitted, images):
    one, other = (fitted.teach(images, clicks(), level="tokens") for _ in range(2))
    assert one.prediction_digest() == other.prediction_digest()


def test_a_new_class_splits_what_was_one(colors, images):
    model = PriMaPsEM(2, backbone=colors, **OPTIONS).fit(images)
    taught = model.teach(images, clicks(), level="tokens")
    assert taught.classes == 3
    assert accuracy(taught) > 0.97


def test_named_classes_stay_and_others_are_dropped(fitted, images, tmp_path, colors):
    image, label = painted(100)
    found = fitted.predict(image).numpy()
    by_class = {k: int(np.bincount(label[found == k], minlength=3).argmax()) for k in range(3)}
    fitted.save_pretrained(tmp_path / "m")
    k = next(k for k, truth in by_class.items() if truth == 2)
    edits = [{"rename": str(k), "to": "water"}, {"color": str(k), "to": "#010203"}]
    change_edits(tmp_path / "m", fitted.class_summary_.tree, lambda _: edits)
    named = PriMaPsEM.from_pretrained(tmp_path / "m", backbone=colors, device="cpu")
    taught = named.teach(images, [one for one in clicks() if one.name != "water"], level="tokens")
    assert [one.name for one in taught.shown_classes] == ["water", "brick", "grass"]
    assert taught.shown_classes[0].color == (1, 2, 3)
    assert accuracy(taught) > 0.97


def test_saved_and_loaded_models_predict_alike(fitted, images, colors, tmp_path):
    taught = fitted.teach(images, clicks(), level="tokens")
    taught.save_pretrained(tmp_path / "taught")
    loaded = PriMaPsEM.from_pretrained(tmp_path / "taught", backbone=colors, device="cpu")
    image = painted(100)[0]
    for options in ({}, {"crf": False}, {"reject": True}):
        assert torch.equal(taught.predict(image, **options), loaded.predict(image, **options))
    assert loaded.prediction_digest() == taught.prediction_digest()
    assert loaded.shown_classes == taught.shown_classes
    assert read_annotations(tmp_path / "taught") == clicks()
    record = json.loads((tmp_path / "taught" / "config.json").read_text())
    assert record["taught"] == {"annotations": dict.fromkeys(NAMES, 3), "images": 3}
    assert record["training"]["labels_read"] is False
    fitted.save_pretrained(tmp_path / "untaught")
    assert json.loads((tmp_path / "untaught/config.json").read_text())["taught"] is None
    loaded.save_pretrained(tmp_path / "again")
    for name in ("taught.safetensors", "edits.json", "annotations.jsonl", "tree.safetensors"):
        one, other = ((tmp_path / folder / name).read_bytes() for folder in ("taught", "again"))
        assert one == other, name


def test_taught_again_with_more_annotations_after_a_rename(fitted, images, colors, tmp_path):
    first = fitted.teach(images, [c for c in clicks() if c.name != "water"], level="tokens")
    first.save_pretrained(tmp_path)
    change_edits(
        tmp_path, read_class_summary(tmp_path).tree,
        lambda edits: [*edits, {"rename": "brick", "to": "wall"}],
    )  # fmt: skip
    loaded = PriMaPsEM.from_pretrained(tmp_path, backbone=colors, device="cpu")
    assert [one.name for one in loaded.shown_classes] == ["wall", "grass"]
    second = loaded.teach(images, [c for c in clicks() if c.name == "water"], level="tokens")
    assert [one.name for one in second.shown_classes] == ["grass", "wall", "water"]
    assert second.taught_.counts == {"grass": 3, "wall": 3, "water": 3}
    second.save_pretrained(tmp_path)  # over the model that it was taught from
    again = PriMaPsEM.from_pretrained(tmp_path, backbone=colors, device="cpu")
    assert again.prediction_digest() == second.prediction_digest()
    assert {one.name for one in read_annotations(tmp_path)} == {*NAMES, "wall"}  # append-only


def test_everything_downstream_takes_the_taught_classes(fitted, images, colors, tmp_path):
    taught = fitted.teach(images, clicks(), level="tokens")
    names = sorted(NAMES)
    image, label = painted(100)
    whole = taught.predict(image)
    out = predict_files(taught, images, tmp_path / "maps", crf=False)
    assert json.loads((tmp_path / "maps/primaps.json").read_text())["names"] == names
    assert len(out.written) == 8
    order = np.array([names.index(name) for name in NAMES])
    tiled = predict_image(taught, image, size=64)
    assert (tiled == order[label]).mean() > 0.95
    rows = Predictor(taught)({"image": [image]})
    assert (rows["labels"][0] == whole.numpy()).all()
    write_report(taught, images, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "taught with 9 annotations (3 of brick, 3 of grass, 3 of water) in 3 images" in text
    assert "nan" not in text
    taught.save_pretrained(tmp_path / "model")
    assert read_classes(tmp_path / "model").names == tuple(names)
    card = model_card(tmp_path / "model", "a/b")
    assert "taught with 9 annotations (3 of brick, 3 of grass, 3 of water) in 3 images" in card
    assert "- unsupervised-semantic-segmentation" not in card
    assert taught.cut(2).predict(image).max() == 1


def test_a_hidden_taught_class_has_the_value_255(fitted, images, colors, tmp_path):
    taught = fitted.teach(images, clicks(), level="tokens")
    taught.save_pretrained(tmp_path)
    tree = read_class_summary(tmp_path).tree
    change_edits(tmp_path, tree, lambda edits: [*edits, {"hide": "grass"}])
    hidden = PriMaPsEM.from_pretrained(tmp_path, backbone=colors, device="cpu")
    image, label = painted(100)
    found = hidden.predict(image).numpy()
    assert (found[label == 1] == HIDDEN).mean() > 0.97
    assert set(np.unique(found)) == {0, 1, HIDDEN}


def test_reject_gives_255_to_what_no_annotation_shows(fitted, images):
    taught = fitted.teach(images, clicks(range(6)), level="tokens")
    assert 0.34 < taught.taught_.reject < 1
    other = np.zeros((64, 64, 3), np.uint8)
    other[:, :32] = (200, 40, 40)
    other[:, 32:] = (150, 150, 40)  # between two classes
    found = taught.predict(Image.fromarray(other), crf=False, reject=True).numpy()
    plain = taught.predict(Image.fromarray(other), crf=False).numpy()
    assert (plain != HIDDEN).all()
    assert (found[:, :24] == plain[:, :24]).all()
    threshold = replace(taught.segmenter, taught=replace(taught.taught_, reject=0.999999))
    sure = threshold.segment_batch  # the threshold decides, pixel by pixel
    batch = torch.from_numpy(other).permute(2, 0, 1)[None]
    one = sure(batch, [(64, 64)], InferenceOptions(crf=False, reject=True))[0]
    best = taught.segment(Image.fromarray(other), crf=False).probabilities.amax(0)
    assert (one.labels == HIDDEN)[best < 0.99].all()
    with pytest.raises(InputError, match="reject needs a model that was taught"):
        fitted.predict(Image.fromarray(other), reject=True)


def test_whole_label_maps_approach_the_linear_probe(fitted, colors, images, painted_folder):
    options = {**OPTIONS, "method": "probe", "min_steps": 200}
    probe = PriMaPsEM(3, backbone=colors, **options).fit(images, painted_folder / "labels")
    expected = (probe.predict(painted(100)[0]).numpy() == painted(100)[1]).mean()
    taught = fitted.teach(images, label_maps(range(8)), level="tokens")
    assert accuracy(taught) > expected - 0.02


def test_annotations_that_do_not_fit_are_refused(fitted, images):
    good = clicks()
    for bad, message in (
        (replace(good[0], image="99"), "the annotated image '99' is not in the collection"),
        (replace(good[0], digest="0" * 64), "the image '0' has changed since it was annotated"),
        (replace(good[0], size=(80, 64)), "has 64x64 pixels, but was annotated at 64x80"),
    ):
        with pytest.raises(InputError, match=message):
            fitted.teach(images, [*good, bad], level="tokens")
    with pytest.raises(InputError, match="the annotations show only 'brick'; annotate at least"):
        fitted.teach(images, good[:1], level="tokens")
    with pytest.raises(InputError, match="the annotations show no class"):
        fitted.teach(images, [], level="tokens")
    with pytest.raises(InputError, match="level is 'x'"):
        fitted.teach(images, good, level="x")


def test_a_damaged_or_foreign_file_is_named(fitted, images, colors, tmp_path):
    fitted.teach(images, clicks(), level="tokens").save_pretrained(tmp_path)
    path = tmp_path / "taught.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    with pytest.raises(ModelError, match=r"taught.safetensors is damaged or of another model"):
        PriMaPsEM.from_pretrained(tmp_path, backbone=colors, device="cpu")
    other = PriMaPsEM(4, backbone=colors, **OPTIONS).fit(images)
    (tmp_path / "edits.json").unlink()
    other.save_pretrained(tmp_path)
    assert not path.exists()
    path.write_bytes(content)
    with pytest.raises(ModelError, match="come from different models"):
        read_class_summary(tmp_path)


def test_maps_cover_the_whole_image_and_are_cached(vit, tmp_path):
    model = PriMaPsEM(2, backbone=vit, size=32, device="cpu", min_init_steps=2)
    Image.effect_noise((96, 48), 90).convert("RGB").save(tmp_path / "a.png")
    files = find_images(tmp_path)
    maps = model.feature_maps(files, cache=tmp_path / "cache")
    (key,) = maps.keys
    assert (maps.size(key), maps.grid(key)) == ((48, 96), (4, 8))
    scaled = Image.open(tmp_path / "a.png").resize((64, 32), Image.Resampling.BILINEAR)
    expected = model.backbone(
        torch.tensor(np.asarray(scaled)).permute(2, 0, 1)[None] / 255
    )[0]  # fmt: skip
    assert torch.nn.functional.cosine_similarity(maps[key], expected, dim=0).min() > 0.95

    class Blank(torch.nn.Module):
        def forward(self, images):
            assert images.shape[-1] == 8, "computed again"
            return torch.zeros(1, len(expected), 1, 1)

    model.backbone.features = Blank()
    again = model.feature_maps(files, cache=tmp_path / "cache")
    assert torch.equal(again[key], maps[key])
    assert torch.equal(again.sample(10), maps.sample(10))
    assert len(again.sample(1000)) == 32
