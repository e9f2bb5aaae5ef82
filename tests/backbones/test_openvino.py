"""A network computes the same by OpenVINO as transformers computes it by itself."""

from __future__ import annotations

import copy
import pickle
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from primaps import PriMaPsEM, load_backbone
from primaps.backbones import load
from primaps.backbones.backbone import Backbone, weights_digest
from primaps.backbones.engines import OpenVINOLayers, use_openvino
from primaps.backbones.vit import PatchTokens
from primaps.utils.errors import InputError, MissingPackageError

from .test_onednn import network

pytest.importorskip("openvino")
transformers = pytest.importorskip("transformers")


def compiled(model: torch.nn.Module) -> torch.nn.Module:
    changed = copy.deepcopy(model)
    assert use_openvino(changed)
    return changed


def by_engine(model: torch.nn.Module) -> bool:
    """Whether OpenVINO has computed anything for a network."""
    (layers,) = (module for module in model.modules() if isinstance(module, OpenVINOLayers))
    return bool(layers._compiled)


def tokens(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values=images).last_hidden_state


@pytest.fixture
def folder(tmp_path):
    network().save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["Dinov2", "ViT", "Dinov2WithRegisters"])
def test_features_are_those_of_transformers_to_the_rounding(kind, attention):
    model = network(kind, attn_implementation=attention)
    changed, images = compiled(model), torch.rand(2, 3, 56, 56)
    expected = tokens(model, images)
    assert expected.std() > 0.1
    torch.testing.assert_close(tokens(changed, images), expected, atol=5e-5, rtol=1e-4)
    assert by_engine(changed)


def test_images_of_any_size_one_after_the_other():
    model = network()
    changed = compiled(model)
    by_both = [Backbone(PatchTokens(each, 14), 14, "") for each in (model, changed)]
    for shape in ((1, 3, 56, 56), (3, 3, 28, 70), (2, 3, 112, 14)):
        usual, found = (each(torch.ones(shape) * 0.3) for each in by_both)
        torch.testing.assert_close(found, usual, atol=5e-5, rtol=1e-4)
    assert by_engine(changed)


def test_bfloat16_is_as_near_to_float32_as_that_of_transformers():
    model = network()
    changed, images = compiled(model), torch.rand(2, 3, 56, 56)
    exact = Backbone(PatchTokens(model, 14), 14, "exact")(images)
    both = [Backbone(PatchTokens(m, 14), 14, "", precision="bfloat16") for m in (model, changed)]
    usual, found = (float((b(images) - exact).norm()) for b in both)
    assert found < 1.5 * usual
    assert by_engine(changed)


def test_an_image_has_the_same_bytes_in_any_batch_and_on_any_thread():
    changed, images = compiled(network()), torch.rand(6, 3, 56, 56)
    expected = tokens(changed, images)

    def alone(one: torch.Tensor) -> torch.Tensor:
        torch.set_num_threads(1)
        return tokens(changed, one[None])[0]

    with ThreadPoolExecutor(3) as pool:
        found = torch.stack(list(pool.map(alone, images)))
    assert torch.equal(found, expected)
    assert by_engine(changed)


def test_threads_that_meet_a_size_for_the_first_time_take_turns(monkeypatch):
    """OpenVINO packs weights then, for all of its streams: two at once gave wrong features."""
    (layers,) = (m for m in compiled(network()).modules() if isinstance(m, OpenVINOLayers))
    working, most, together = [], [0], Barrier(4)

    class Request:
        def infer(self, given):
            working.append(given)
            most[0] = max(most[0], len(working))
            time.sleep(0.05)
            working.pop()
            return given

    model = SimpleNamespace(create_infer_request=Request)
    monkeypatch.setattr(layers, "_compile", lambda *key: model)

    def work(_):
        torch.set_num_threads(1)
        found = []
        for tokens in (5, 9):
            together.wait()
            with torch.no_grad():
                found.append(layers(torch.full((1, tokens, 48), float(tokens))))
        first = most[0]
        together.wait()
        with torch.no_grad():
            layers(torch.zeros(1, 5, 48))  # known by now: all at once
        return first, [float(one.mean()) for one in found]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [(1, [5.0, 9.0])] * 4
    assert most[0] > 1


def test_weights_copies_and_pickles_stay_what_they_are():
    model = network()
    changed, images = compiled(model), torch.rand(1, 3, 56, 56)
    assert weights_digest(changed) == weights_digest(model)
    expected = tokens(changed, images)  # compiled before it is copied
    copied = pickle.loads(pickle.dumps(copy.deepcopy(changed)))
    assert not by_engine(copied)
    assert torch.equal(tokens(copied, images), expected)
    assert by_engine(copied)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    copied.float()  # what was compiled is forgotten
    assert not torch.equal(tokens(copied, images), expected)


def test_the_way_of_pytorch_where_gradients_are_asked_for():
    model = network()
    changed, images = compiled(model), torch.rand(1, 3, 56, 56, requires_grad=True)
    (expected,) = torch.autograd.grad(model(pixel_values=images)[0].square().sum(), images)
    (found,) = torch.autograd.grad(changed(pixel_values=images)[0].square().sum(), images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert not by_engine(changed)
    double = PatchTokens(changed, 14).double()
    assert Backbone(double, 14, "")(images.detach()).isfinite().all()
    assert not by_engine(changed)


def test_nothing_is_told_to_anybody(monkeypatch):
    """openvino.convert_model reports to its makers; the way that is taken here does not."""

    def refuse(*args):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(
        "openvino_telemetry.main.Telemetry.__init__", refuse
    )  # it would send from a process of its own
    assert tokens(compiled(network()), torch.rand(1, 3, 56, 56)).isfinite().all()


@pytest.mark.parametrize("kind", ["CLIPVision", "Beit", "Dinov3ViT"])
def test_networks_whose_layers_take_more_than_tokens_stay(kind):
    """Masks, a bias of positions that layers share, positions that turn: not a map of tokens."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    names = {"Dinov3ViT": "DINOv3ViT"}
    name = names.get(kind, kind)
    config = getattr(transformers, f"{name}Config")(image_size=56, patch_size=14, **sizes)
    model = getattr(transformers, f"{name}Model")._from_config(config).eval()
    assert not use_openvino(model)
    assert not any(isinstance(module, OpenVINOLayers) for module in model.modules())


def test_the_engine_is_chosen_by_name(folder):
    both = {name: load_backbone(folder, "cpu", engine=name) for name in ("torch", "openvino")}
    assert [both[name].engine for name in both] == list(both)
    assert load_backbone(folder, "cpu").engine == "torch"
    assert both["torch"].digest == both["openvino"].digest
    assert both["openvino"].arithmetic == "float32 openvino"
    images = torch.rand(1, 3, 56, 56)
    torch.testing.assert_close(
        both["openvino"](images), both["torch"](images), atol=5e-5, rtol=1e-4
    )
    assert load_backbone(both["openvino"], precision="bfloat16").engine == "openvino"
    assert load_backbone(both["openvino"], "meta").engine == "torch"  # OpenVINO is for CPUs


def test_what_cannot_be_had_is_told_in_one_sentence(folder, monkeypatch):
    pool = torch.nn.AvgPool2d(8)
    with pytest.raises(InputError, match="cannot be selected after weights are loaded"):
        load_backbone(pool, "cpu", patch_size=8, engine="openvino")
    with pytest.raises(InputError, match="cannot be selected after weights are loaded"):
        load_backbone(load_backbone(folder, "cpu", engine="openvino"), engine="torch")
    assert load_backbone(pool, "cpu", patch_size=8, engine="torch").engine == "torch"
    with pytest.raises(InputError, match="engine"):
        load_backbone(folder, "cpu", engine="fastest")
    with pytest.raises(InputError, match="supports the CPU only"):
        load_backbone(folder, "meta", engine="openvino")
    monkeypatch.setattr(load, "openvino_installed", lambda: False)
    with pytest.raises(MissingPackageError, match=r"pip install 'primaps\[openvino\]'"):
        load_backbone(folder, "cpu", engine="openvino")


def test_a_fit_by_either_engine_is_the_same_to_the_rounding_and_keeps_features_apart(
    folder, tmp_path
):
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (56, 56, 3), np.uint8)) for _ in range(4)]
    options = {"size": 56, "min_init_steps": 4, "init_epochs": 1, "mask_crf": False}
    fitted = {}
    for engine in ("torch", "openvino"):
        model = PriMaPsEM(2, backbone=folder, device="cpu", engine=engine, **options)
        fitted[engine] = model.fit(images, cache=tmp_path / "store")
    one, other = (model.prototypes_.direction for model in fitted.values())
    torch.testing.assert_close(other, one, atol=1e-3, rtol=1e-2)
    assert len(list((tmp_path / "store").glob("*/features"))) == 2
    digests = set()
    fitted["openvino"].save_pretrained(tmp_path / "model")
    for engine in ("torch", "openvino"):  # either can read it
        read = PriMaPsEM.from_pretrained(tmp_path / "model", device="cpu", engine=engine)
        assert read.backbone.engine == engine
        digests.add(read.prediction_digest())
    assert len(digests) == 2  # maps of one are not taken for those of the other
