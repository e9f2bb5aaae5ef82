"""A network computes the same by oneDNN as transformers computes it by itself."""

from __future__ import annotations

import copy
import pickle
import platform

import pytest
import torch
import torch.nn.functional as F

from primaps.backbones import engines
from primaps.backbones.backbone import Backbone, weights_digest
from primaps.backbones.vit import PatchTokens

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available(),
    reason="no oneDNN for this processor",
)


def network(kind: str = "Dinov2", **options) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3}
    config = getattr(transformers, f"{kind}Config")(image_size=56, patch_size=14, **sizes)
    model = getattr(transformers, f"{kind}Model")._from_config(config, **options)
    for module in model.modules():  # scales of layers begin at one, biases at zero
        for parameter in module.parameters(recurse=False):
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def with_onednn(model: torch.nn.Module) -> torch.nn.Module:
    quick = copy.deepcopy(model)
    engines.use_onednn(quick)
    assert not any(type(module) is torch.nn.Linear for module in quick.modules())
    return quick


def test_attention_is_softmax_of_scores_times_values_in_float64(monkeypatch):
    monkeypatch.setattr(engines, "ROWS", 4)  # the last piece is shorter
    q, k, v = torch.randn(3, 2, 3, 10, 8).double()
    weights = (q @ k.transpose(-1, -2) * 0.3).softmax(-1)
    with torch.no_grad():
        found = engines.attention(*(x.float() for x in (q, k, v)), 0.3)
    torch.testing.assert_close(found, (weights @ v).transpose(1, 2).float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["Dinov2", "ViT", "Dinov2WithRegisters"])
def test_features_are_those_of_transformers_to_the_rounding(kind):
    model = network(kind)
    images = torch.rand(2, 3, 56, 56)
    quick = with_onednn(model)
    assert quick.config._attn_implementation == "onednn"
    with torch.no_grad():
        expected = model(pixel_values=images).last_hidden_state
        found = quick(pixel_values=images).last_hidden_state
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_bfloat16_is_as_near_to_float32_as_that_of_transformers():
    model = network()
    quick, images = with_onednn(model), torch.rand(2, 3, 56, 56)
    exact = Backbone(PatchTokens(model, 14), 14, "exact")(images)
    both = [Backbone(PatchTokens(m, 14), 14, "", precision="bfloat16") for m in (model, quick)]
    usual, found = (float((b(images) - exact).norm()) for b in both)
    assert 0 < found < 1.5 * usual


def test_weights_copies_and_pickles_stay_what_they_are():
    model = network()
    quick, images = with_onednn(model), torch.rand(1, 3, 56, 56)
    assert weights_digest(quick) == weights_digest(model)
    assert list(quick.state_dict()) == list(model.state_dict())
    copied = pickle.loads(pickle.dumps(copy.deepcopy(PatchTokens(quick, 14))))
    with torch.no_grad():
        assert torch.equal(copied(images), PatchTokens(quick, 14)(images))


def test_the_way_of_pytorch_where_gradients_are_asked_for():
    model = network()
    quick, images = with_onednn(model), torch.rand(1, 3, 56, 56, requires_grad=True)
    (expected,) = torch.autograd.grad(model(pixel_values=images)[0].square().sum(), images)
    (found,) = torch.autograd.grad(quick(pixel_values=images)[0].square().sum(), images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_another_kind_of_attention_stays():
    quick = with_onednn(network(attn_implementation="eager"))
    assert quick.config._attn_implementation == "eager"
    with torch.no_grad():
        assert quick(pixel_values=torch.rand(1, 3, 56, 56)).last_hidden_state.isfinite().all()


def test_masked_and_dropped_attention_goes_to_pytorch():
    q, k, v = torch.randn(3, 1, 2, 5, 4)
    mask = torch.rand(1, 1, 5, 5) > 0.3
    mask[..., 0] = True
    with torch.no_grad():
        found, _ = engines._attention_interface(torch.nn.Identity(), q, k, v, mask, scaling=0.5)
    expected = F.scaled_dot_product_attention(q, k, v, mask, scale=0.5).transpose(1, 2)
    torch.testing.assert_close(found, expected)
