"""The dense CRF as users call it: properties, layouts, errors."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from primaps.crf import (
    compiled,
    compiled_lattice,
    compiled_rows,
    dense_crf,
)
from primaps.utils.errors import InputError

# Shapes come from a short list: each number of lanes compiles once.
SHAPES = st.sampled_from([(1, 5, 7), (2, 1, 9), (3, 8, 8), (6, 9, 4), (12, 1, 1), (20, 6, 11)])
SEEDS = st.integers(0, 2**20)
TORCH = {"dtype": "float64"}  # takes the path of torch operations
PATHS = pytest.mark.parametrize("path", [{}, TORCH, {"exact": True}], ids=["cpu", "torch", "exact"])


def scene(shape, seed, batch=None):
    """A random image with some structure, and random logits."""
    labels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    lead = () if batch is None else (batch,)
    coarse = torch.randint(0, 256, (*lead, 3, height, width), generator=generator)
    image = (coarse // 64 * 64).to(torch.uint8)
    return image, 2 * torch.randn(*lead, labels, height, width, generator=generator)


@PATHS
@settings(max_examples=15, deadline=None)
@given(shape=SHAPES, seed=SEEDS)
def test_marginals_are_probabilities(path, shape, seed):
    image, logits = scene(shape, seed)
    marginals = dense_crf(image, logits=logits, **path)
    assert marginals.shape == shape
    assert marginals.dtype == torch.float32
    assert (marginals >= 0).all()
    torch.testing.assert_close(marginals.sum(0), torch.ones(shape[1:]), atol=1e-5, rtol=0)


@settings(max_examples=15, deadline=None)
@given(shape=SHAPES, seed=SEEDS)
def test_permuting_labels_permutes_the_result(shape, seed):
    image, logits = scene(shape, seed)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        dense_crf(image, logits=logits[order]),
        dense_crf(image, logits=logits)[order],
        atol=1e-4,
        rtol=0,
    )


@PATHS
@settings(max_examples=10, deadline=None)
@given(shape=SHAPES, seed=SEEDS)
def test_zero_weights_return_the_unary(path, shape, seed):
    image, logits = scene(shape, seed)
    marginals = dense_crf(image, logits=logits, bilateral_weight=0, gaussian_weight=0, **path)
    torch.testing.assert_close(marginals, logits.softmax(0), atol=2e-4, rtol=0)


@PATHS
@pytest.mark.parametrize("scale", [1e3, 1e30, 3e38])
def test_extreme_logits_do_not_overflow(path, scale):
    image, logits = scene((4, 6, 7), 0)
    logits = logits.clamp(-1, 1) * scale
    logits[0, 0, 0] = -math.inf
    marginals = dense_crf(image, logits=logits, **path)
    torch.testing.assert_close(marginals.sum(0), torch.ones(6, 7), atol=1e-5, rtol=0)


@PATHS
def test_extreme_weights_do_not_overflow(path):
    image, logits = scene((4, 6, 7), 0)
    marginals = dense_crf(image, logits=logits, bilateral_weight=1e6, gaussian_weight=1e6, **path)
    torch.testing.assert_close(marginals.sum(0), torch.ones(6, 7), atol=1e-5, rtol=0)


@PATHS
def test_constant_image_reduces_the_bilateral_kernel_to_a_gaussian(path):
    """Without color differences it is the Gaussian kernel of its spatial width."""
    _, logits = scene((3, 24, 24), 1)
    image = torch.full((3, 24, 24), 90, dtype=torch.uint8)
    bilateral = dense_crf(image, logits=logits, theta_alpha=4.0, gaussian_weight=0, **path)
    gaussian = dense_crf(
        image, logits=logits, bilateral_weight=0, gaussian_weight=4, theta_gamma=4.0, **path
    )
    # The 5-d and the 2-d lattice approximate the same kernel differently.
    tolerance = 1e-5 if "exact" in path else 0.05
    torch.testing.assert_close(bilateral, gaussian, atol=tolerance, rtol=0)
    assert (bilateral - gaussian).abs().mean() < tolerance / 10
    assert (gaussian - logits.softmax(0)).abs().mean() > 0.02


def test_one_label_is_certain():
    image, logits = scene((1, 5, 6), 0)
    assert torch.equal(dense_crf(image, logits=logits), torch.ones(1, 5, 6))


def test_probabilities_and_their_logarithms_agree():
    image, logits = scene((5, 9, 9), 3)
    torch.testing.assert_close(
        dense_crf(image, logits.softmax(0)), dense_crf(image, logits=logits), atol=1e-5, rtol=0
    )


@PATHS
@pytest.mark.parametrize("shape", [(2, 1, 1), (5, 4, 3), (20, 5, 12), (40, 11, 2)])
def test_logits_of_a_feature_map_are_scaled_to_the_image(path, shape):
    image, _ = scene((1, 11, 13), 4)
    _, logits = scene(shape, 4)
    logits = 4 * logits  # so that some are clipped
    large = F.interpolate(logits[None], (11, 13), mode="bilinear")[0]
    expected = dense_crf(image, logits=large, **path)
    torch.testing.assert_close(dense_crf(image, logits=logits, **path), expected, atol=2e-4, rtol=0)
    (listed,) = dense_crf([image], logits=[logits], **path)
    torch.testing.assert_close(listed, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("path", [{}, TORCH], ids=["cpu", "torch"])
def test_impossible_labels_of_a_feature_map_stay_so(path):
    image, logits = scene((3, 2, 2), 4)
    logits[1] = -math.inf
    image = image.repeat_interleave(4, 1)
    found = dense_crf(image, logits=logits, iterations=0, **path)
    assert found[1].max() < 2e-5
    torch.testing.assert_close(found.sum(0), torch.ones(8, 2))
    logits[:, 1, 1] = -math.inf
    with pytest.raises(InputError, match="the largest value of every pixel must be finite"):
        dense_crf(image, logits=logits, **path)


def test_a_tensor_of_small_logits_needs_images_of_one_size():
    images = [torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 6, dtype=torch.uint8)]
    with pytest.raises(InputError, match="several sizes need a list"):
        dense_crf(images, logits=torch.zeros(2, 3, 2, 2))
    found = dense_crf(images, logits=list(torch.zeros(2, 3, 2, 2)))
    assert [one.shape for one in found] == [(3, 8, 8), (3, 8, 6)]
    assert dense_crf(images[0][None], logits=torch.zeros(1, 3, 2, 2)).shape == (1, 3, 8, 8)


def test_an_image_does_not_depend_on_its_batch():
    images, logits = scene((4, 16, 13), 5, batch=5)
    together = dense_crf(images, logits=logits)
    for image, one, expected in zip(images, logits, together, strict=True):
        assert torch.equal(dense_crf(image, logits=one), expected)
    reordered = dense_crf(images.flip(0), logits=logits.flip(0)).flip(0)
    assert torch.equal(reordered, together)


def test_an_image_does_not_depend_on_its_batch_in_torch_operations():
    images, logits = scene((4, 16, 13), 5, batch=3)
    together = dense_crf(images, logits=logits, **TORCH)
    for image, one, expected in zip(images, logits, together, strict=True):
        torch.testing.assert_close(dense_crf(image, logits=one, **TORCH), expected)


@pytest.mark.parametrize("labels", [3, 12, 27])
def test_threads_do_not_change_a_bit(labels):
    image, logits = scene((labels, 40, 33), 7)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(dense_crf(image, logits=logits))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_lists_of_numbers_are_images_and_probabilities_or_refused():
    image = np.arange(4 * 5 * 3).reshape(4, 5, 3) % 256
    probabilities = np.full((2, 4, 5), 0.5)
    mixed = probabilities.tolist()
    mixed[0][0][0], mixed[1][0][0] = 1, 0  # whole numbers among the others
    probabilities[:, 0, 0] = 1, 0
    expected = dense_crf(image.astype(np.uint8), probabilities.astype(np.float32))
    found = dense_crf(image.tolist(), mixed)
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected))
    for wrong in (image / 255, image - 1, image + 250):
        with pytest.raises(InputError, match="integers from 0 to 255"):
            dense_crf(wrong.tolist(), mixed)


def test_lists_take_any_number_of_labels_and_sizes():
    image_a, logits_a = scene((3, 8, 9), 0)
    image_b, logits_b = scene((7, 6, 5), 1)
    pil = Image.fromarray(image_b.permute(1, 2, 0).numpy())
    first, second = dense_crf([image_a, pil], logits=[logits_a, logits_b])
    assert torch.equal(first, dense_crf(image_a, logits=logits_a))
    assert torch.equal(second, dense_crf(image_b, logits=logits_b))


def test_a_gray_pil_image_is_taken_as_rgb():
    gray = Image.fromarray(np.arange(56, dtype=np.uint8).reshape(7, 8))
    _, logits = scene((2, 7, 8), 0)
    color = torch.arange(56, dtype=torch.uint8).view(1, 7, 8).expand(3, 7, 8)
    assert torch.equal(dense_crf(gray, logits=logits), dense_crf(color, logits=logits))


def test_precision_of_the_input_does_not_matter_much():
    image, logits = scene((5, 9, 9), 3)
    full = dense_crf(image, logits=logits)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        other = dense_crf(image, logits=logits.to(dtype).requires_grad_())
        assert other.dtype == torch.float32
        torch.testing.assert_close(other, full, atol=0.05, rtol=0)


def test_memory_layout_does_not_matter():
    images, logits = scene((5, 9, 12), 3, batch=2)
    expected = dense_crf(images, logits=logits)
    channels_last = torch.channels_last
    assert torch.equal(
        dense_crf(
            images.contiguous(memory_format=channels_last),
            logits=logits.contiguous(memory_format=channels_last),
        ),
        expected,
    )


@PATHS
def test_potts_as_a_matrix_is_the_default(path):
    image, logits = scene((5, 12, 10), 2)
    torch.testing.assert_close(
        dense_crf(image, logits=logits, compatibility=1 - torch.eye(5), **path),
        dense_crf(image, logits=logits, **path),
        atol=1e-4,
        rtol=0,
    )


def test_compatibility_weighs_pairs_of_labels():
    image, logits = scene((20, 8, 7), 2)
    matrix = torch.rand(20, 20, generator=torch.Generator().manual_seed(0))
    compiled = dense_crf(image, logits=logits, compatibility=matrix)
    reference = dense_crf(image, logits=logits, compatibility=matrix.tolist(), **TORCH)
    torch.testing.assert_close(compiled, reference, atol=1e-4, rtol=0)
    assert (compiled - dense_crf(image, logits=logits)).abs().max() > 0.1


@PATHS
def test_changes_shrink_and_stop_early(path):
    images, logits = scene((4, 12, 12), 4, batch=2)
    marginals, changes = dense_crf(images, logits=logits, return_changes=True, **path)
    assert changes.shape == (2, 10)
    assert (changes[:, -1] < changes[:, 0] / 10).all()
    assert torch.equal(marginals, dense_crf(images, logits=logits, **path))
    first = dense_crf(images, logits=logits, iterations=1, **path)
    expected = (first - logits.softmax(1)).abs().mean((1, 2, 3))
    torch.testing.assert_close(changes[:, 0], expected, atol=1e-5, rtol=1e-3)

    limit = changes[0, 4].item()
    early, stopped = dense_crf(
        images, logits=logits, tolerance=limit * 1.0001, return_changes=True, **path
    )
    assert stopped[0, :5].isfinite().all()
    assert stopped[0, 5:].isnan().all()
    expected = dense_crf(images[0], logits=logits[0], iterations=5, **path)
    torch.testing.assert_close(early[0], expected, atol=1e-5, rtol=0)


def test_no_iterations_return_the_unary():
    image, logits = scene((3, 5, 5), 0)
    marginals = dense_crf(image, logits=logits, iterations=0)
    torch.testing.assert_close(marginals, logits.softmax(0), atol=2e-4, rtol=0)


IMAGE, LOGITS = scene((3, 4, 5), 0)
PROBABILITIES = LOGITS.softmax(0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either probabilities or logits, got neither"),
        ({"probabilities": PROBABILITIES, "logits": LOGITS}, "got both"),
        ({"probabilities": PROBABILITIES * math.nan}, "probabilities: found NaN"),
        ({"logits": LOGITS.masked_fill(LOGITS.max() == LOGITS, math.nan)}, "logits: found NaN"),
        ({"logits": LOGITS + math.inf}, "logits: the largest value of every pixel must be finite"),
        ({"logits": LOGITS - math.inf}, "logits: the largest value of every pixel must be finite"),
        ({"probabilities": LOGITS}, r"probabilities: expected values in \[0, 1\]"),
        ({"probabilities": PROBABILITIES[:, :-1]}, "probabilities: size .* differs"),
        ({"logits": torch.zeros(3, 40, 2)}, "logits: size .* differs"),
        ({"probabilities": PROBABILITIES[:0]}, "probabilities: expected at least one label"),
        ({"probabilities": PROBABILITIES[0]}, "probabilities: expected shape"),
        ({"probabilities": [PROBABILITIES] * 2}, "probabilities: got 2 for 1 images"),
        ({"logits": [LOGITS.int()]}, "logits: expected floating-point"),
        ({"logits": "many"}, "logits: expected a tensor"),
        ({"logits": LOGITS, "images": IMAGE.float()}, "images: expected 8-bit"),
        ({"logits": LOGITS, "images": IMAGE[:2]}, r"images: expected shape \(B, 3, H, W\)"),
        ({"logits": LOGITS[:, :0], "images": IMAGE[:, :0]}, "images: no pixels"),
        ({"logits": LOGITS, "images": 3}, "images: expected a uint8 tensor"),
        ({"logits": LOGITS, "images": Image.new("I;16", (5, 4))}, "images: expected an 8-bit PIL"),
        (
            {"logits": LOGITS, "compatibility": torch.eye(2)},
            "compatibility: expected a 3 x 3 matrix",
        ),
        ({"logits": LOGITS, "compatibility": torch.ones(3, 2)}, "compatibility: expected a K x K"),
        ({"logits": LOGITS, "compatibility": [[math.nan]]}, "compatibility: every penalty"),
        ({"logits": LOGITS, "iterations": -1}, "iterations is"),
        ({"logits": LOGITS, "bilateral_weight": -1.0}, "bilateral_weight is"),
        ({"logits": LOGITS, "theta_beta": 0.0}, "theta_beta is"),
        ({"logits": LOGITS, "theta_alpha": math.nan}, "theta_alpha is"),
        ({"logits": LOGITS, "tolerance": -1.0}, "tolerance is"),
        ({"logits": LOGITS, "dtype": "float16"}, "dtype is .float16.; it must"),
        ({"logits": LOGITS, "theta_beta": 1e-9}, "positions: 5 axes spread over too many"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        dense_crf(**{"images": IMAGE, **arguments})


def test_compiled_functions_are_cached_on_disk():
    """The numba cache depends on enclosed values; only numbers are the same in each process."""
    kernels = [
        *compiled._filter(4, 4, 9),
        compiled._update(4, 4, 9, True),
        *compiled_rows._layout_kernels(4, 4),
        compiled_rows._normalized(4, 4),
        compiled_lattice._embedding(5),
    ]
    for kernel in kernels:
        cells = kernel.py_func.__closure__ or ()
        assert all(isinstance(cell.cell_contents, int) for cell in cells)


def test_exact_refuses_images_beyond_memory():
    image, logits = scene((2, 400, 400), 0)
    with pytest.raises(ValueError, match="exact=True needs a 160000 x 160000 matrix"):
        dense_crf(image, logits=logits, exact=True)
