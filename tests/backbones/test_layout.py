"""A feature is that of the pixels at its place, for every network that is accepted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from primaps import load_backbone
from primaps.backbones.backbone import Backbone, weights_digest
from primaps.backbones.layout import Layout, LayoutError, find_layout
from primaps.backbones.load import KNOWN_LAYOUTS
from primaps.backbones.vit import PatchTokens
from primaps.backbones.weights import WeightsError
from primaps.utils.errors import InputError

transformers = pytest.importorskip("transformers")
CASES = Path(__file__).parents[3] / "shared" / "cases" / "backbones"
VIT = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
}  # fmt: skip
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64]}
WINDOWS = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 2}
HEADS = {**STAGES, "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 1, 1, 1]}
# Model, options of its configuration; form, stride, tokens before and after the patches.
ACCEPTED = [
    ("ViT", {**VIT, "image_size": 64}, ("tokens", 16, 1, 0)),
    ("DeiT", {**VIT, "image_size": 64}, ("tokens", 16, 2, 0)),
    ("Beit", {**VIT, "image_size": 64}, ("tokens", 16, 1, 0)),
    ("SiglipVision", {**VIT, "image_size": 64, "patch_size": 16}, ("tokens", 16, 0, 0)),
    ("CLIPVision", {**VIT, "image_size": 64, "patch_size": 16}, ("tokens", 16, 1, 0)),
    ("Dinov2WithRegisters", {**VIT, "image_size": 56, "patch_size": 14}, ("tokens", 14, 5, 0)),
    (
        "DINOv3ViT",
        {**VIT, "image_size": 64, "patch_size": 16, "num_register_tokens": 4},
        ("tokens", 16, 5, 0),
    ),
    ("DINOv3ConvNext", STAGES, ("tokens", 32, 1, 0)),
    ("ViTMAE", {**VIT, "image_size": 64}, ("tokens", 16, 1, 0)),
    (
        "Yolos",
        {**VIT, "image_size": [64, 64], "num_detection_tokens": 10},
        ("tokens", 16, 1, 10),
    ),
    ("Swin", {**WINDOWS, "image_size": 64}, ("tokens", 32, 0, 0)),
    ("Swinv2", {**WINDOWS, "image_size": 64}, ("tokens", 32, 0, 0)),
    ("FocalNet", {"image_size": 64, "embed_dim": 16, "depths": [1] * 4}, ("tokens", 32, 0, 0)),
    ("ConvNext", STAGES, ("map", 32, 0, 0)),
    ("ConvNextV2", STAGES, ("map", 32, 0, 0)),
    ("PoolFormer", STAGES, ("map", 32, 0, 0)),
    ("ResNet", {**STAGES, "embedding_size": 16}, ("map", 32, 0, 0)),
    ("Segformer", HEADS, ("map", 32, 0, 0)),
    (
        "VitDet",
        {
            "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64,
            "pretrain_image_size": 64, "window_size": 2, "window_block_indices": [0],
        },
        ("map", 16, 0, 0),
    ),
]  # fmt: skip
SAM = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64,
    "patch_size": 16, "window_size": 2, "global_attn_indexes": [1],
}  # fmt: skip
FIXED_SIZE = "cannot process images of .* pixels"
REFUSED = [
    ("Aimv2Vision", {**VIT, "image_size": 56, "patch_size": 14}, FIXED_SIZE),
    ("SamVision", {**SAM, "output_channels": 24, "mlp_dim": 96}, FIXED_SIZE),
    (
        "Sam3ViT",
        {**SAM, "intermediate_size": 96, "patch_size": 14, "image_size": 56},
        FIXED_SIZE,
    ),
    ("VideoMAE", {**VIT, "image_size": 64}, FIXED_SIZE),
    ("Siglip2Vision", {**VIT, "patch_size": 16}, FIXED_SIZE),
    (
        "Levit",
        {
            "image_size": 64, "hidden_sizes": [16, 32, 48], "num_attention_heads": [2] * 3,
            "depths": [1] * 3, "key_dim": [4] * 3,
        },
        FIXED_SIZE,
    ),
]  # fmt: skip


def saved(kind: str, options: dict, folder: Path) -> Path:
    """A folder with a small random model of transformers."""
    if not hasattr(transformers, f"{kind}Model"):
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**options)
    getattr(transformers, f"{kind}Model")(config).eval().save_pretrained(folder)
    return folder


def assert_local(backbone: Backbone) -> None:
    """A change of the pixels in a corner changes the features there most, and no other image."""
    side, (rows, columns) = backbone.patch_size, (5, 7)
    torch.manual_seed(1)
    images = torch.rand(2, 3, rows * side, columns * side)
    before = backbone(images)
    assert before.shape[2:] == (rows, columns)
    for row in (0, rows - 1):
        for column in (0, columns - 1):
            changed = images.clone()
            ys, xs = (slice(n * side, (n + 1) * side) for n in (row, column))
            changed[0, :, ys, xs] = torch.rand(3, side, side)
            change = (backbone(changed) - before).norm(dim=1)
            at = int(change[0].argmax())
            assert max(abs(at // columns - row), abs(at % columns - column)) <= 1
            assert float(change[1].max()) <= 1e-3 * float(change[0].max())


@pytest.mark.parametrize(("kind", "options", "layout"), ACCEPTED, ids=[a[0] for a in ACCEPTED])
def test_features_are_those_of_the_pixels_there(kind, options, layout, tmp_path):
    backbone = load_backbone(saved(kind, options, tmp_path), "cpu")
    found = backbone.features.layout
    assert (found.form, found.stride, found.leading, found.trailing) == layout
    assert backbone.patch_size == found.stride
    hierarchical = found.stride == 32 or found.form == "map"
    stride = f", a feature map of stride {found.stride}"
    assert backbone.source == f"folder {tmp_path}" + stride * hierarchical
    assert_local(backbone)


@pytest.mark.parametrize(("kind", "options", "words"), REFUSED, ids=[r[0] for r in REFUSED])
def test_networks_that_are_not_understood_are_refused_in_one_sentence(
    kind, options, words, tmp_path
):
    folder = saved(kind, options, tmp_path)
    with pytest.raises(WeightsError, match=words) as error:
        load_backbone(folder, "cpu")
    message = str(error.value)
    assert message.startswith(f"{folder} (")
    assert message.endswith("; choose another backbone")
    assert "\n" not in message


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared cases")
@pytest.mark.parametrize(
    ("name", "stride"),
    [("swin64", 32), ("convnext64", 32), ("vitmae", 16), ("yolos", 16), ("siglip_proc", 16),
     ("clipfull", 16)],
)  # fmt: skip
def test_shared_cases_are_local(name, stride):
    backbone = load_backbone(CASES / name, "cpu")
    assert backbone.patch_size == stride
    assert_local(backbone)


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared cases")
@pytest.mark.parametrize("name", ["samvision", "aimv2"])
def test_shared_cases_of_one_image_size_are_refused(name):
    with pytest.raises(WeightsError, match=FIXED_SIZE):
        load_backbone(CASES / name, "cpu")


def test_masked_autoencoders_see_all_patches_in_their_order(tmp_path):
    options = {**VIT, "image_size": 64, "mask_ratio": 0.75}
    backbone = load_backbone(saved("ViTMAE", options, tmp_path), "cpu")
    images = torch.rand(2, 3, 64, 64)
    expected = transformers.ViTMAEModel.from_pretrained(tmp_path, mask_ratio=0.0).eval()
    noise = torch.arange(16.0).repeat(2, 1)
    with torch.no_grad():
        inputs = (images - backbone.mean) / backbone.std
        tokens = expected(pixel_values=inputs, noise=noise).last_hidden_state[:, 1:]
    found = backbone(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, tokens, atol=1e-5, rtol=1e-4)


class Fake(torch.nn.Module):
    """Patch tokens of a convolution, changed by a function."""

    def __init__(self, change) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = torch.nn.Conv2d(3, 16, 8, 8)
        self.change = change

    def forward(self, images):
        return self.change(self.patches(images).flatten(2).transpose(1, 2))


def shuffled(tokens):
    return tokens[:, torch.randperm(tokens.shape[1])]


def with_ends(tokens):
    return torch.nn.functional.pad(tokens, (0, 0, 2, 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shuffled, "other features for the same images in a second run"),
        (lambda t: t[:, torch.randperm(t.shape[1])[: t.shape[1] // 4]], "second run"),
        (lambda t: t - t.mean((0, 1)), "second run .*statistics of the batch"),
        (lambda t: t.flip(1), "do not follow the patches of the image in rows"),
        (lambda t: t.roll(1, 1), "do not follow the patches"),
        (lambda t: torch.ones_like(t), "do not depend on the pixels"),
        (lambda t: t.repeat(2, 1, 1), r"returns \(4, 9, 16\) for a batch of 2 images"),
        (lambda t: t[:1], "for a batch of 2 images"),
        (lambda t: t * float("nan"), "NaN or infinity"),
        (lambda t: t[:, ::2], "neither a token for each patch nor a feature map"),
        (lambda t: t.mean(1), "neither a token for each patch nor a feature map"),
        (lambda t: (t,), "returns a tuple instead of a tensor"),
        (lambda t: t.unflatten(9, (3, 3)), "cannot process images of 24x24 pixels"),
    ],
)
def test_outputs_that_are_no_feature_map(change, words):
    network = Fake(change)
    state = torch.random.get_rng_state()
    with pytest.raises(LayoutError, match=words):
        find_layout(network, 8)
    assert torch.equal(torch.random.get_rng_state(), state)  # seeds of ours are not used up


def test_tokens_at_both_ends_are_cut():
    network = Fake(with_ends)
    assert find_layout(network, 8) == Layout(8, "tokens", 2, 3)
    images = torch.rand(2, 3, 16, 40)
    found = Layout(8, "tokens", 2, 3).feature_map(network(images), images)
    assert torch.equal(found, network.patches(images))


def test_maps_with_channels_last_are_turned():
    network = Fake(lambda tokens: tokens)
    output = lambda images: network.patches(images).permute(0, 2, 3, 1)  # noqa: E731
    layout = find_layout(output, 8)
    assert layout == Layout(8, "channels last")
    images = torch.rand(1, 3, 16, 40)
    assert torch.equal(layout.feature_map(output(images), images), network.patches(images))


def test_a_map_that_is_turned_is_refused():
    network = Fake(lambda tokens: tokens)
    with pytest.raises(LayoutError, match="neither a token"):
        find_layout(lambda images: network.patches(images).transpose(2, 3), 8)
    with pytest.raises(LayoutError, match="a map that does not follow the image"):
        find_layout(lambda images: network.patches(images).flip(2), 8)


@pytest.mark.parametrize("shape", [(4, 16, 2, 3), (1, 16, 2, 3), (2, 16, 3, 2), (2, 0, 2, 3)])
def test_a_backbone_that_returns_another_shape_is_refused(shape):
    backbone = load_backbone(lambda images: torch.zeros(shape), "cpu", patch_size=8)
    with pytest.raises(InputError, match=r"must return .*here \(2, C, 2, 3\).*it returned"):
        backbone(torch.rand(2, 3, 16, 24))


def test_tokens_of_another_batch_are_not_merged_into_channels():
    model = transformers.ViTModel(transformers.ViTConfig(**VIT, image_size=64)).eval()
    network = PatchTokens(model, 16)
    once = network.output
    network.output = lambda images: once(images).repeat(2, 1, 1)
    with pytest.raises(LayoutError, match=r"returns \(4, 5, 48\) for images \(2, 3, 32, 32\)"):
        Backbone(network, 16, "doubled")(torch.rand(2, 3, 32, 32))


def test_the_weights_that_need_no_probe_have_the_layout_that_a_probe_finds(dinov2):
    network = dinov2.features
    assert KNOWN_LAYOUTS[weights_digest(network)] == network.layout == network.probe(14)


def test_a_model_that_is_fitted_on_a_hierarchical_backbone(tmp_path):
    from primaps import PriMaPsEM

    folder = saved("Swin", {**WINDOWS, "image_size": 64}, tmp_path / "swin")
    images = torch.randint(0, 255, (4, 128, 160, 3), dtype=torch.uint8).numpy()
    from PIL import Image

    pictures = [Image.fromarray(one) for one in images]
    model = PriMaPsEM(
        2, backbone=folder, device="cpu", size=128, min_init_steps=2, init_epochs=1, mask_crf=False
    )
    model.fit(pictures, cache=None)
    assert model.predict(pictures[0]).shape == (128, 160)
    with pytest.raises(InputError, match="not a multiple of the patch size 32"):
        PriMaPsEM(2, backbone=folder, device="cpu", size=112)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "swin"
