"""Figures that explain masks: sizes and colors."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from primaps.backbones.load import load_backbone
from primaps.batch import explain_files
from primaps.pictures.explain import (
    masks_picture,
    similarity_maps,
    steps_picture,
    threshold_picture,
)
from primaps.proposals.principal_masks import propose
from primaps.utils.colors import palette


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(8, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def image() -> Image.Image:
    return Image.new("RGB", (60, 40), (100, 100, 100))


def test_masks_have_their_colors_and_ignored_pixels_are_dark(image):
    masks = torch.tensor([[0, 1], [2, 2]])
    pixels = np.asarray(masks_picture(image, masks)).astype(float)
    assert pixels[5, 5].tolist() == [45, 45, 45]
    for (y, x), mask in {(5, 45): 1, (30, 30): 2}.items():
        assert np.allclose(pixels[y, x], 45 + 0.55 * palette(2)[mask - 1], atol=1)
    assert masks_picture(image, masks, ["a", "b"]).height > image.height
    assert masks_picture(image, torch.zeros(2, 2, dtype=torch.int64)).size == image.size


def test_similarity_maps(features):
    found = propose(features[None], return_details=True)
    component, anchor = similarity_maps(features, found)
    unit = F.normalize(features, dim=0)
    for z, (row, column) in enumerate(found.anchors[0].tolist()):
        taken = (found.masks[0] > 0) & (found.masks[0] <= z)
        assert torch.equal(component[z].isnan(), taken)
        assert torch.equal(anchor[z].isnan(), taken)
        expected = torch.einsum("chw,c->hw", unit, unit[:, row, column])
        assert torch.allclose(anchor[z][~taken], expected[~taken], atol=1e-5)
        # The anchor is the feature most similar to the component (Eq. 4).
        assert component[z].nan_to_num(-2).argmax() == row * 6 + column
    nothing = torch.zeros(8, 4, 6)
    empty = similarity_maps(nothing, propose(nothing[None], return_details=True))
    assert empty[0].shape == empty[1].shape == (0, 4, 6)


def test_steps_and_thresholds(features, image):
    steps = steps_picture(image, features, limit=2, height=80)
    assert 2 * 80 < steps.height < 3 * 80
    assert steps.width > 4 * 120
    assert steps_picture(image, torch.zeros(8, 4, 6), height=80).height < 2 * 80
    pixels = torch.zeros(3, 40, 60, dtype=torch.uint8)
    strip = threshold_picture(image, features, pixels, thresholds=(0.2, 0.6), height=80)
    assert strip.height < 2 * 80
    assert strip.width > 3 * 120


def test_files(painted_folder, colors, tmp_path):
    backbone = load_backbone(colors, device="cpu", patch_size=8)
    inputs = sorted((painted_folder / "images").iterdir())[:2]
    inputs[1].write_bytes(b"damaged")
    problems = []
    written = explain_files(
        inputs,
        tmp_path / "out",
        backbone=backbone,
        mask_crf=False,
        size=64,
        log=problems.append,
    )
    assert [path.name for path in written] == ["0.steps.jpg", "0.thresholds.jpg"]
    assert all(Image.open(path).width > 64 for path in written)
    assert len(problems) == 1
