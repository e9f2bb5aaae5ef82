"""The dense CRF against brute force and against pydensecrf, on photos."""

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from primaps.crf import DenseCRF, compiled, compiled_rows, dense_crf

data = pytest.importorskip("skimage.data", reason="photos come with scikit-image")

REPOSITORY = Path(__file__).parents[2]
PHOTOS = ["astronaut", "coffee", "chelsea", "rocket"]
FOLDERS = ["camvid/images/val", "coco200/images/val", "aerial260/images"]


def resized(image, height, width):
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@lru_cache
def photo(name, height=320, width=320):
    if name in PHOTOS:
        return resized(getattr(data, name)(), height, width)
    folder = Path(os.environ.get("PRIMAPS_DATA", REPOSITORY / "../shared/data")) / name
    if not folder.is_dir():
        pytest.skip(f"no images in {folder}; set PRIMAPS_DATA to the folder that holds them")
    return resized(Image.open(sorted(folder.glob("*.jpg"))[7]), height, width)


def soft_clusters(image, labels):
    """Probabilities that follow the colors: soft assignment of patches to color centers."""
    coarse = F.adaptive_avg_pool2d(image[None].float(), 40)
    flat = coarse[0].flatten(1).T
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))
    logits = -torch.cdist(flat, flat[order[:labels]]).T.reshape(1, labels, 40, 40) / 15
    size = image.shape[1:]
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].softmax(0)


def soft_patches(image, labels):
    """Probabilities that ignore the image: upsampled random logits of 23 x 23 patches."""
    logits = 2 * torch.randn(1, labels, 23, 23, generator=torch.Generator().manual_seed(1))
    size = image.shape[1:]
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].softmax(0)


def reference(image, probabilities):
    """Marginals of pydensecrf; skips without it."""
    library = pytest.importorskip(
        "pydensecrf.densecrf", reason="pydensecrf2 is not installed: it needs a compiler"
    )
    labels, height, width = probabilities.shape
    model = library.DenseCRF2D(width, height, labels)
    energy = -probabilities.clamp(1e-5, 1).log().reshape(labels, -1)
    model.setUnaryEnergy(energy.contiguous().numpy())
    model.addPairwiseGaussian(sxy=1, compat=3)
    rgb = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    model.addPairwiseBilateral(sxy=67, srgb=3, rgbim=rgb, compat=4)
    return torch.from_numpy(np.array(model.inference(10))).view_as(probabilities)


def agreement(one, other):
    return (one.argmax(0) == other.argmax(0)).float().mean().item()


CASES = [
    *((name, 320, 320, labels) for name in PHOTOS for labels in (3, 12, 27)),
    ("coffee", 240, 372, 12),
    *((folder, 320, 320, 27) for folder in FOLDERS),
]


@pytest.mark.parametrize("unary", [soft_clusters, soft_patches])
@pytest.mark.parametrize(("name", "height", "width", "labels"), CASES)
def test_labels_of_pydensecrf(name, height, width, labels, unary):
    image = photo(name, height, width)
    probabilities = unary(image, labels)
    expected = reference(image, probabilities)

    marginals = dense_crf(image, probabilities)
    assert agreement(marginals, expected) >= 0.9995
    assert (marginals - expected).abs().mean() < 1e-4
    assert agreement(expected, probabilities) < 0.99  # the CRF has something to do


@pytest.mark.parametrize(
    ("name", "labels"), [("astronaut", 3), ("coffee", 12), ("chelsea", 27), ("rocket", 40)]
)
def test_torch_operations_give_the_same_labels(name, labels):
    image = photo(name, 96, 112)
    probabilities = soft_clusters(image, labels)
    compiled = dense_crf(image, probabilities)
    portable = dense_crf(image, probabilities, dtype="float64")
    assert agreement(compiled, portable) >= 0.9995
    assert (compiled - portable).abs().mean() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", PHOTOS)
def test_lattice_is_near_brute_force(name):
    """The lattice approximates the kernels; check its labels at 60 x 60 pixels."""
    image = photo(name, 60, 60)
    probabilities = soft_clusters(image, 6)
    exact = dense_crf(image, probabilities, exact=True)
    lattice = dense_crf(image, probabilities)
    assert agreement(lattice, exact) > 0.96
    assert agreement(lattice, exact) > agreement(lattice, probabilities) + 0.02
    double = dense_crf(image, probabilities, exact=True, dtype="float64")
    torch.testing.assert_close(exact, double, atol=1e-3, rtol=0)


def test_brute_force_is_the_equation():
    """Compare with two updates of Eq. 4, written out pixel by pixel."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 20, (3, 3, 4), generator=generator, dtype=torch.uint8)
    unary = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64).log_softmax(0)
    crf = DenseCRF(2, 2.0, 5.0, 6.0, 1.5, 0.8, exact=True, dtype="float64")
    colors = image.double().flatten(1).T
    place = torch.tensor([(x, y) for y in range(3) for x in range(4)], dtype=torch.float64)
    near = (place[:, None] - place[None]).square().sum(-1)
    alike = (colors[:, None] - colors[None]).square().sum(-1)
    kernels = [
        (2.0, torch.exp(-near / (2 * 5.0**2) - alike / (2 * 6.0**2))),
        (1.5, torch.exp(-near / (2 * 0.8**2))),
    ]
    marginals = unary.flatten(1).softmax(0)
    for _ in range(2):
        penalty = torch.zeros_like(marginals)
        for weight, kernel in kernels:
            norm = kernel.sum(1).rsqrt()
            message = weight * (marginals @ (norm[:, None] * kernel * norm))
            penalty += message.flip(0)  # Potts with two labels: the other one's message
        marginals = (unary.flatten(1) - penalty).softmax(0)
    result = crf(image, logits=unary).flatten(1)
    torch.testing.assert_close(result, marginals.float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("labels", [12, 27])
def test_negligible_labels_do_not_change_the_result(labels, monkeypatch):
    """Most labels do not occur in an image; rows become shorter, and the label map is the same."""
    image = photo("chelsea", 120, 160)
    present = soft_clusters(image, 3).log()
    logits = torch.full((labels, 120, 160), -9.0)
    logits[[0, 2, labels - 1]] = present
    shorter = []
    shorten = compiled_rows.LabelRows.shorten

    def spy(rows, peaks):
        shorten(rows, peaks)
        shorter.append(rows.width)

    monkeypatch.setattr(compiled_rows.LabelRows, "shorten", spy)
    short = dense_crf(image, logits=logits)
    assert shorter[-1] == 4
    full = dense_crf(image, logits=logits, negligible=0)
    assert shorter[-1] > 4
    assert torch.equal(short.argmax(0), full.argmax(0))
    torch.testing.assert_close(short, full, atol=1e-5, rtol=0)


@pytest.mark.parametrize("labels", [12, 27])
def test_weak_labels_hardly_matter_to_the_class_map(labels):
    """As in predictions, every class has some probability everywhere, and few win."""
    image = photo("coffee", 120, 160)
    logits = torch.rand(labels, 120, 160, generator=torch.Generator().manual_seed(0))
    logits[[0, 2, labels - 1]] += 3 * soft_clusters(image, 3)
    full = dense_crf(image, logits=logits, negligible=0)
    weak = dense_crf(image, logits=logits, negligible=0.3)
    assert not torch.equal(weak, full)
    assert agreement(weak, full) > 0.9995
    assert float((weak - full).abs().sum(0).mean()) < 1e-3
    torch.testing.assert_close(weak.sum(0), torch.ones(120, 160), atol=1e-5, rtol=0)


def test_weak_labels_that_share_a_lane_do_not_support_each_other():
    """23 labels of 1 % each must not receive messages of all 23 % together."""
    image = torch.full((3, 40, 40), 100, dtype=torch.uint8)
    likely = torch.full((27, 40, 40), 0.25 / 23)
    likely[:4] = 0.75 / 4
    full, weak = (
        dense_crf(image, likely, negligible=value)[4:].sum(0).mean() for value in (0, 0.3)
    )
    torch.testing.assert_close(weak, full, rtol=0.05, atol=0)


@pytest.mark.parametrize("small", [False, True])
def test_dropped_labels_return(small):
    """When their sum grows, all labels return and are not merged again."""
    logits = torch.randn(12, 2, 3, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(logits[None], (5, 10), mode="bilinear")[0]
    unary = large.log_softmax(0).flatten(1).numpy()
    source = compiled_rows.of_planes(unary)
    if small:
        source = compiled_rows.of_logits(logits.numpy(), (5, 10))
    rows = compiled_rows.LabelRows(source, 0.1, compiled_rows.Buffers())
    rows.begin(0, 50)
    full, values = rows.width, rows.values.copy()
    weak = np.full(full, 0.01, np.float32)
    weak[:3] = 0.9
    rows.shorten(weak)
    assert rows.width < full
    assert rows.receives.tolist() == [1, 1, 1, 0]
    found = np.empty_like(unary)
    rows.end(found, 0, 50)
    np.testing.assert_allclose(found, np.exp(unary), atol=1e-6)
    rows.shorten(np.array([0.9, 0.9, 0.9, 0.19], np.float32))
    assert rows.width < full
    rows.shorten(np.array([0.9, 0.9, 0.9, 0.21], np.float32))
    assert rows.width == full
    assert rows.receives.all()
    np.testing.assert_allclose(rows.values, values, atol=1e-6)
    rows.shorten(weak)
    assert rows.width == full


def test_memory_of_large_images_is_freed(monkeypatch):
    image = photo("coffee", 60, 80)[None]
    logits = torch.randn(1, 20, 6, 8, generator=torch.Generator().manual_seed(0))
    whole = dense_crf(image, logits=logits)
    monkeypatch.setattr(compiled, "_IDLE", [])
    assert torch.equal(dense_crf(image, logits=logits), whole)
    (kept,) = compiled._IDLE
    assert set(kept._arrays) == {"unary", "values", "points"}
    monkeypatch.setattr(compiled_rows, "MAX_KEPT", 2**20)  # of less than 2 MB for these
    monkeypatch.setattr(compiled, "_IDLE", [])
    released = []
    monkeypatch.setattr(
        compiled_rows.Buffers,
        "release",
        lambda self, name, given=compiled_rows.Buffers.release: (
            given(self, name),
            released.append(set(self._arrays)),
        ),
    )
    assert torch.equal(dense_crf(image, logits=logits), whole)
    assert released == [{"unary", "values"}]
    assert not compiled._IDLE
