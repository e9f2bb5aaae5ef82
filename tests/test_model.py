import json

import numpy as np
import pytest
import torch
from PIL import Image

from primaps.backbones.load import load_backbone
from primaps.data import find_images
from primaps.features.extract import extract
from primaps.model import PriMaPsEM
from primaps.persistence import ModelError
from primaps.utils.bilinear import (
    centers,
    largest_channel,
    largest_channel_at,
    largest_channel_at_torch,
)
from primaps.utils.errors import InputError
from tests.conftest import painted

OWN = {
    "size": 64,
    "min_init_steps": 60,
    "patch_size": 8,
    "device": "cpu",
}
QUICK = {**OWN, "recipe": "paper", "min_steps": 20, "epochs": 1}


@pytest.fixture
def fitted(colors, painted_folder):
    return PriMaPsEM(3, backbone=colors, **QUICK).fit(painted_folder / "images")


def agreement(model, seed, crf=True, size=(64, 64)):
    image, label = painted(seed, *size)
    found = model.predict(image, crf=crf).numpy()
    counts = np.bincount((label.astype(int) * 3 + found).flatten(), minlength=9).reshape(3, 3)
    return counts.max(1).sum() / counts.sum()


def test_fit_finds_the_classes_of_pictures_never_seen(fitted):
    assert agreement(fitted, seed=100) > 0.95
    assert agreement(fitted, seed=101, crf=False) > 0.9
    assert agreement(fitted, seed=102, size=(192, 128)) > 0.9


def test_label_maps_have_the_size_of_the_image(fitted):
    for size in ((10, 10), (301, 77), (900, 20)):
        found = fitted.predict(Image.new("RGB", size))
        assert found.shape == size[::-1]
        assert int(found.max()) < 3


def test_history_has_a_line_per_epoch_with_diagnostics(fitted):
    stages = [line["stage"] for line in fitted.history_]
    assert stages == ["k-means"] * 60 + ["EM"] * 20
    assert {"loss", "ignored", "agreement", "entropy", "empty"} < set(fitted.history_[-1])


def test_saved_and_loaded_models_predict_alike(fitted, colors, tmp_path):
    fitted.save_pretrained(tmp_path / "model")
    loaded = PriMaPsEM.from_pretrained(tmp_path / "model", backbone=colors, device="cpu")
    image, _ = painted(5)
    assert torch.equal(fitted.predict(image), loaded.predict(image))
    assert loaded.config == fitted.config
    assert loaded.history_ == fitted.history_
    assert loaded.prediction_digest() == fitted.prediction_digest()
    loaded.save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "config.json", "history.json"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_same_fit_twice_gives_the_same_bytes(fitted, colors, painted_folder, tmp_path):
    again = PriMaPsEM(3, backbone=colors, **QUICK).fit(painted_folder / "images")
    for model, name in ((fitted, "a"), (again, "b")):
        model.save_pretrained(tmp_path / name)
    for name in ("model.safetensors", "config.json", "history.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_views_and_kmeans_are_switches(colors, painted_folder):
    images = painted_folder / "images"
    for options in (
        {"views": 2},
        {"views": "fresh"},
        {"loss_size": "feature"},
        {"mask_crf": False},
    ):
        assert agreement(PriMaPsEM(3, backbone=colors, **options, **QUICK).fit(images), 100) > 0.9
    assert agreement(PriMaPsEM(3, backbone=colors, **OWN).fit(images), 100) > 0.9
    baseline = PriMaPsEM(3, backbone=colors, method="kmeans", **QUICK).fit(images)
    assert {line["stage"] for line in baseline.history_} == {"k-means"}
    assert agreement(baseline, 100) > 0.9


def test_a_linear_probe_learns_the_classes_of_the_labels(colors, painted_folder, tmp_path):
    images, labels = painted_folder / "images", painted_folder / "labels"
    model = PriMaPsEM(3, backbone=colors, method="probe", **{**QUICK, "min_steps": 150})
    with pytest.raises(ValueError, match="needs the folder of label maps"):
        model.fit(images)
    model.fit(images, labels)
    image, label = painted(100)
    assert (model.predict(image).numpy() == label).mean() > 0.95  # no matching needed
    model.save_pretrained(tmp_path / "model")
    loaded = PriMaPsEM.from_pretrained(tmp_path / "model", backbone=colors, device="cpu")
    assert torch.equal(loaded.predict(image), model.predict(image))
    with pytest.raises(ValueError, match="labels are not supported by method"):
        PriMaPsEM(3, backbone=colors, **QUICK).fit(images, labels)


def test_changed_labels_do_not_go_on_from_the_state_of_the_old_ones(
    colors, painted_folder, tmp_path
):
    images, labels = painted_folder / "images", painted_folder / "labels"

    def fitted():
        model = PriMaPsEM(3, backbone=colors, method="probe", **QUICK)
        model.fit(images, labels, checkpoints=tmp_path / "state")
        return model.prototypes_.direction

    before = fitted()
    assert torch.equal(fitted(), before)
    for path in labels.glob("*.png"):
        Image.fromarray(2 - np.asarray(Image.open(path))).save(path)
    assert not torch.equal(fitted(), before)


def test_labels_that_are_all_ignored_train_no_probe(colors, painted_folder):
    labels = painted_folder / "labels"
    for path in labels.glob("*.png"):
        Image.new("L", (64, 64), 255).save(path)
    model = PriMaPsEM(3, backbone=colors, method="probe", **QUICK)
    with pytest.raises(InputError, match="8 label maps in .* have only ignored pixels"):
        model.fit(painted_folder / "images", labels=labels)


def test_pixels_without_a_label_do_not_train_the_probe(colors, painted_folder):
    """All green pixels are unlabeled, so nothing is ever called green."""
    for path in (painted_folder / "labels").glob("*.png"):
        label = np.asarray(Image.open(path)).copy()
        label[label == 1] = 255
        Image.fromarray(label).save(path)
    model = PriMaPsEM(3, backbone=colors, method="probe", **{**QUICK, "min_steps": 150})
    model.fit(painted_folder / "images", painted_folder / "labels")
    found, label = model.predict(painted(100)[0]).numpy(), painted(100)[1]
    assert not (found == 1).any()
    assert (found == label)[label != 1].mean() > 0.95


def test_the_scale_of_cosines_sharpens_probabilities_and_leaves_classes(colors, painted_folder):
    images = painted_folder / "images"
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    plain, sharp = (
        PriMaPsEM(3, backbone=colors, method="kmeans", cosine_scale=scale, **QUICK)
        .fit(images)
        .segment(image, crf=False)
        .probabilities
        for scale in (None, 10.0)
    )
    torch.testing.assert_close(sharp, (plain.log() * 10).softmax(0), rtol=1e-4, atol=1e-5)


def test_bad_images_among_many_are_reported_and_left_out(colors, painted_folder):
    (painted_folder / "images" / "bad.png").write_text("no image")
    problems = []
    model = PriMaPsEM(3, backbone=colors, **QUICK)
    model.fit(painted_folder / "images", log=problems.append)
    assert len(problems) == 1
    assert "bad.png" in problems[0]


def test_a_model_of_a_callable_asks_for_it(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="fitted on features of your Colors"):
        PriMaPsEM.from_pretrained(tmp_path)


def test_other_weights_are_refused(fitted, colors, tmp_path):
    fitted.save_pretrained(tmp_path)
    colors.mix.weight.data += 1
    with pytest.raises(ModelError, match="fitted on weights of"):
        PriMaPsEM.from_pretrained(tmp_path, backbone=colors)


@pytest.mark.parametrize("content", ["{}", "not json", '{"generator": "other 1"}', "[]"])
def test_foreign_folders_are_one_sentence(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match="is not a model of primaps"):
        PriMaPsEM.from_pretrained(tmp_path)


def test_missing_folders_and_damaged_weights_are_one_sentence(fitted, colors, tmp_path):
    with pytest.raises(ModelError, match="no config.json"):
        PriMaPsEM.from_pretrained(tmp_path / "a" / "b")
    fitted.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="is not a model"):
        PriMaPsEM.from_pretrained(tmp_path, backbone=colors)


def test_config_json_has_everything_to_repeat_it(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["config"]["seed"] == 0
    assert content["config"]["size"] == 64
    assert len(content["backbone"]["sha256"]) == 64
    assert content["training"] == {
        "images": 8,
        "init_steps": 60,
        "steps": 20,
        "labels_read": False,
        "depth": None,
    }
    assert content["versions"]["torch"] == torch.__version__


def test_a_model_keeps_how_positions_were_scaled(vit, painted_folder, tmp_path):
    """Loaded by the name of its backbone it has the features that it was fitted on."""
    scaled = load_backbone(vit, "cpu", positions="scaled")
    model = PriMaPsEM(3, backbone=scaled, **QUICK).fit(painted_folder / "images")
    model.save_pretrained(tmp_path / "model")
    again = PriMaPsEM.from_pretrained(tmp_path / "model", device="cpu")
    assert again.backbone.positions == "scaled"
    assert again.backbone.digest == scaled.digest
    with pytest.raises(ModelError, match="load it with positions='scaled'"):
        PriMaPsEM.from_pretrained(tmp_path / "model", backbone=load_backbone(vit, "cpu"))
    # Models of earlier versions do not say, and all had exact positions.
    path = tmp_path / "model" / "config.json"
    content = json.loads(path.read_text())
    del content["backbone"]["positions"]
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="weights"):
        PriMaPsEM.from_pretrained(tmp_path / "model", device="cpu")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": 1}, "classes is 1"),
        ({"classes": 300}, "classes is 300"),
        ({"classes": 3, "size": 65}, "not a multiple of the patch size 8 of .*; choose 64"),
        ({"classes": 3, "threshold": 1.0}, "threshold is 1.0"),
        ({"classes": 3, "method": "dbscan"}, "it must be 'em', 'kmeans' or 'probe'"),
        ({"classes": 3, "epoch": 5}, "unknown option 'epoch'"),
    ],
)
def test_options_out_of_range_are_named(colors, options, words):
    with pytest.raises(ValueError, match=words):
        PriMaPsEM(backbone=colors, patch_size=8, device="cpu", **options)


def test_more_classes_than_features_are_refused(colors, painted_folder):
    model = PriMaPsEM(200, backbone=colors, **QUICK)
    with pytest.raises(ValueError, match="200 classes cannot be initialized from"):
        model.fit(painted_folder / "images")


def test_predict_before_fit_is_one_sentence(colors):
    with pytest.raises(ModelError, match="not fitted"):
        PriMaPsEM(3, backbone=colors, **QUICK).predict(Image.new("RGB", (64, 64)))


def test_largest_channel_is_the_argmax_of_the_upsampled_map():
    torch.manual_seed(0)
    probabilities = torch.rand(5, 6, 7)
    large = torch.nn.functional.interpolate(probabilities[None], size=(40, 33), mode="bilinear")
    assert torch.equal(largest_channel(probabilities, (40, 33)).long(), large[0].argmax(0))
    rows, columns = centers(6, 40), centers(7, 33)
    found = largest_channel_at_torch(probabilities, rows, columns)
    assert torch.equal(found.long(), large[0].argmax(0))
    part = largest_channel_at(probabilities, rows[9:30], columns[5:])
    assert torch.equal(part.long(), large[0].argmax(0)[9:30, 5:])


def test_a_plan_of_a_probe_is_refused(colors, painted_folder):
    from primaps.planning import plan

    model = PriMaPsEM(3, backbone=colors, method="probe", **QUICK)
    with pytest.raises(ValueError, match="not for probe"):
        plan(model, painted_folder / "images")


def test_a_sample_fits_as_its_images_alone_and_another_seed_draws_others(colors, painted_folder):
    from primaps.data import find_images
    from primaps.data.collection import sample_items

    files = find_images(painted_folder / "images")

    def fitted(images, sample=None, seed=0):
        model = PriMaPsEM(3, backbone=colors, seed=seed, **QUICK)
        return model.fit(images, sample=sample).prototypes_.direction

    assert torch.equal(fitted(files, 5), fitted(sample_items(files, 5, 0)))
    assert sample_items(files, 5, 0) == sample_items(files, 5, 0) != sample_items(files, 5, 1)
    assert sample_items(files, 8) == sample_items(files, 100) == files


@pytest.mark.parametrize("starts", [5, 3000])
def test_features_of_masks_alone_give_the_same_model(
    colors, painted_folder, tmp_path, monkeypatch, starts
):
    monkeypatch.setattr("primaps.features.extract.RESTART_IMAGES", starts)
    monkeypatch.setattr("primaps.em.fit.RESTART_IMAGES", starts)
    options = {"patch_size": 8, "size": 64, "device": "cpu", "min_init_steps": 20}
    found = {}
    for keep in ("features", "masks", "auto"):
        model = PriMaPsEM(3, backbone=colors, **options)
        model.fit(painted_folder / "images", cache_content=keep).save_pretrained(tmp_path / keep)
        found[keep] = (tmp_path / keep / "model.safetensors").read_bytes()
        assert json.loads((tmp_path / keep / "config.json").read_text())["training"]["images"] == 8
    assert found["features"] == found["masks"] == found["auto"]


def test_features_of_masks_are_not_enough_for_em(colors, painted_folder):
    for options in ({"recipe": "paper"}, {"method": "kmeans"}):
        model = PriMaPsEM(3, backbone=colors, patch_size=8, size=64, device="cpu", **options)
        with pytest.raises(ValueError, match="this fit needs --cache-content features"):
            model.fit(painted_folder / "images", cache_content="masks")
        maker = model.mask_maker()
        found = extract(find_images(painted_folder / "images"), model.network, 64, masks=maker,
                        cache_content="masks")  # fmt: skip
        with pytest.raises(ValueError, match="this fit needs --cache-content features"):
            model.fit_extracted(found)


@pytest.mark.usefixtures("unchecked")
def test_predict_takes_whatever_fit_takes_and_converts_it_alike(colors, tmp_path):
    """A path, an image of Pillow, an array and a tensor; transparency and 16 bits as in files."""
    model = PriMaPsEM(3, backbone=colors, **QUICK)
    model.fit([painted(seed)[0] for seed in range(4)])
    plain = painted(9)[0]
    see_through = plain.convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(plain.size))
    deep = Image.fromarray(np.asarray(plain.convert("L")).astype(np.uint16) * 257)
    for number, image in enumerate((plain, see_through, deep)):
        path = tmp_path / f"{number}.png"
        image.save(path)
        expected = model.predict(path, crf=False)
        assert torch.equal(model.predict(image, crf=False), expected)
        assert torch.equal(model.predict(str(path), crf=False), expected)
    array = np.asarray(plain)
    expected = model.predict(plain, crf=False)
    assert torch.equal(model.predict(array, crf=False), expected)
    assert torch.equal(model.predict(torch.tensor(array).permute(2, 0, 1), crf=False), expected)
    for odd, words in (
        (array.astype(float), "it must be a uint8 array"),
        (3, "int is not an image"),
    ):
        with pytest.raises(ValueError, match=words):
            model.predict(odd)
