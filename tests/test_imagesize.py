import pytest
import torch

from primaps import _imagesize_cpu
from primaps.imagesize import focal_step_torch, predict_classes_torch
from primaps.prototypes import class_confidence, focal_loss


@pytest.mark.parametrize("k", [2, 3, 27])
@pytest.mark.parametrize(
    ("small", "size"), [((5, 5), (70, 70)), ((3, 6), (41, 85)), ((1, 1), (4, 9))]
)
def test_compiled_steps_equal_torch_operations(k, small, size):
    torch.manual_seed(0)
    logits = torch.randn(3, k, *small) * 8
    labels = torch.randint(-1, k, (3, *size)).to(torch.int16)
    loss, gradient = _imagesize_cpu.focal_step(logits, labels)
    expected, reference = focal_step_torch(logits.double(), labels)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert (gradient - reference).abs().max() < 1e-5 * reference.abs().max()
    differ = _imagesize_cpu.predict_classes(logits, size) != predict_classes_torch(logits, size)
    assert differ.float().mean() < 1e-3  # ties up to rounding


def test_gradient_equals_that_of_features_upsampled_first():
    """The order of the paper: upsample the features, then multiply with the prototypes."""
    torch.manual_seed(0)
    features, weight = torch.randn(2, 6, 4, 4).double(), torch.randn(5, 6).double()
    labels = torch.randint(-1, 5, (2, 20, 20))
    weight.requires_grad_()
    large = torch.nn.functional.interpolate(features, size=(20, 20), mode="bilinear")
    logits = torch.einsum("kc,bchw->bkhw", weight, large)
    focal_loss(logits, labels, class_confidence(logits.detach())).backward()
    small = torch.einsum("kc,bchw->bkhw", weight.detach(), features)
    _, gradient = focal_step_torch(small, labels)
    torch.testing.assert_close(
        torch.einsum("bkhw,bchw->kc", gradient, features), weight.grad, rtol=1e-9, atol=1e-12
    )


def test_extreme_logits_stay_finite():
    logits = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1)
    loss, gradient = _imagesize_cpu.focal_step(logits, torch.ones(1, 2, 2, dtype=torch.int16))
    assert torch.isfinite(gradient).all()
    assert loss > 0


def test_ignored_images_have_no_gradient():
    labels = torch.full((1, 8, 8), -1, dtype=torch.int16)
    loss, gradient = _imagesize_cpu.focal_step(torch.randn(1, 3, 2, 2), labels)
    assert loss == 0
    assert not gradient.any()


def test_the_number_of_threads_does_not_change_the_bytes():
    logits = torch.randn(5, 4, 6, 6)
    labels = torch.randint(-1, 4, (5, 50, 50)).to(torch.int16)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(_imagesize_cpu.focal_step(logits, labels))
    finally:
        torch.set_num_threads(threads)
    assert all(loss == results[0][0] for loss, _ in results)
    assert all(torch.equal(gradient, results[0][1]) for _, gradient in results)
