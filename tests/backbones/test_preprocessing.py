"""A network gets images as its image processor prepares them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from primaps import PriMaPsEM, load_backbone
from primaps.backbones.preprocessing import FILES, Normalization, read_normalization
from primaps.backbones.weights import WeightsError
from primaps.persistence import ModelError
from primaps.utils.errors import InputError
from tests.backbones.test_layout import CASES
from tests.test_model import QUICK

SIGLIP = {
    "do_normalize": True, "do_rescale": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    "rescale_factor": 1 / 255,
}  # fmt: skip


def write(folder: Path, content: dict, name: str = FILES[0]) -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(vit, tmp_path):
    shutil.copytree(vit, tmp_path / "vit")
    return tmp_path / "vit"


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
        {"do_rescale": False, "image_mean": [120, 110, 100], "image_std": [50, 60, 70]},
    ],
)
def test_the_network_gets_what_the_image_processor_of_transformers_makes(change, folder):
    """ViTImageProcessorPil computes the same with NumPy."""
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, "ViTImageProcessorPil", transformers.ViTImageProcessor)
    content = {**SIGLIP, **change}
    seen = []
    backbone = load_backbone(write(folder, content), "cpu")
    backbone.features.model.register_forward_pre_hook(
        lambda module, args, options: seen.append(options["pixel_values"]), with_kwargs=True
    )
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    backbone(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    options = {**content, "do_resize": False}
    expected = processor(**options)(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(seen[0].numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_processor_inside_another_file(folder):
    write(folder, {"image_processor": SIGLIP, "processor_class": "SiglipProcessor"}, FILES[1])
    assert read_normalization(folder) == Normalization((0.5,) * 3, (0.5,) * 3)
    write(folder, {"offset": True, "rescale_factor": 1 / 127.5, "do_normalize": False})
    assert read_normalization(folder) == Normalization((0.5,) * 3, (0.5,) * 3)
    write(folder, {**SIGLIP, "image_mean": 0.25, "image_std": [0.5]})
    assert read_normalization(folder) == Normalization((0.25,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_mean": [0.5, 0.5]}, r"image_mean is \[0.5, 0.5\]; it must be 3 numbers"),
        ({"image_mean": None}, "image_mean is None"),
        ({"image_std": [0.5, 0, 0.5]}, r"image_std is \[0.5, 0.0, 0.5\]; it must be positive"),
        ({"image_std": ["a"] * 3}, "image_std is"),
        ({"image_mean": [1e9] * 3}, "image_mean is"),
        ({"rescale_factor": -1}, "rescale_factor is -1"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order is true, but networks of BGR"),
    ],
)
def test_a_processor_that_is_not_understood_is_refused(folder, change, words):
    write(folder, {**SIGLIP, **change})
    with pytest.raises(WeightsError, match=words) as error:
        load_backbone(folder, "cpu")
    assert "preprocessor_config.json: " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_processor_that_is_no_json_is_refused(folder):
    (folder / FILES[0]).write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read_normalization(folder)


def test_a_folder_without_a_processor_is_said(folder, caplog):
    """transformers writes its version, which folders that primaps converted do not have."""
    load_backbone(folder, "cpu")
    assert not caplog.records
    write(folder, {**json.loads((folder / "config.json").read_text()),
                   "transformers_version": "5.0"}, "config.json")  # fmt: skip
    backbone = load_backbone(folder, "cpu")
    assert "has no preprocessor_config.json: images are normalized by" in caplog.text
    assert backbone.digest == backbone.weights


def test_features_models_and_caches_of_another_normalization_are_kept_apart(folder, tmp_path):
    pictures = [Image.effect_noise((64, 64), 90).convert("RGB") for _ in range(4)]
    plain = load_backbone(folder, "cpu")
    options = {**QUICK, "size": 64, "device": "cpu"}
    model = PriMaPsEM(2, backbone=folder, **options).fit(pictures, cache=tmp_path / "cache")
    model.save_pretrained(tmp_path / "model")
    write(folder, SIGLIP)
    changed = load_backbone(folder, "cpu")
    assert changed.weights == plain.weights == plain.digest
    assert changed.digest != plain.digest
    assert changed.mean.flatten().tolist() == [0.5] * 3
    images = torch.rand(1, 3, 32, 32)
    assert not torch.allclose(changed(images), plain(images), atol=1e-3)
    PriMaPsEM(2, backbone=folder, **options).fit(pictures, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*/features"))) == 2
    with pytest.raises(ModelError, match=r"or on a normalization.*preprocessor_config.json"):
        PriMaPsEM.from_pretrained(tmp_path / "model", device="cpu")
    write(folder, {**SIGLIP, "image_mean": [0.485, 0.456, 0.406],
                   "image_std": [0.229, 0.224, 0.225]})  # fmt: skip
    assert PriMaPsEM.from_pretrained(tmp_path / "model", device="cpu").backbone.digest


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared cases")
def test_the_shared_case_has_a_mean_of_its_own():
    backbone = load_backbone(CASES / "siglip_proc", "cpu")
    assert backbone.mean.flatten().tolist() == backbone.std.flatten().tolist() == [0.5] * 3
