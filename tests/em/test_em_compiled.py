import pytest
import torch

from primaps.em import em_compiled
from primaps.em.em import (
    assign_torch,
    confidence_sum_torch,
    focal_weights,
    weighted_cross_entropy_torch,
)


@pytest.mark.parametrize("k", [2, 3, 27])
@pytest.mark.parametrize(
    ("small", "size"), [((5, 5), (70, 70)), ((3, 6), (41, 85)), ((1, 1), (4, 9))]
)
def test_compiled_steps_equal_torch_operations(k, small, size):
    torch.manual_seed(0)
    logits = torch.randn(3, k, *small) * 8
    labels = torch.randint(-1, k, (3, *size)).to(torch.int16)
    masks = torch.randint(0, 6, (3, *size)).to(torch.uint8)
    confidence = em_compiled.confidence_sum(logits, size)
    torch.testing.assert_close(
        confidence, confidence_sum_torch(logits.double(), size), rtol=1e-5, atol=0
    )
    weights = focal_weights(confidence / labels.numel())
    loss, gradient = em_compiled.weighted_cross_entropy(logits, labels, weights)
    expected, reference = weighted_cross_entropy_torch(logits.double(), labels, weights)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (gradient - reference).abs().max() < 1e-5 * reference.abs().max()
    pseudo, counts = em_compiled.assign(logits, masks)
    wanted, table = assign_torch(logits.double(), masks)
    assert (counts - table).abs().sum() <= 2e-3 * masks.numel()  # ties up to rounding
    assert (pseudo != wanted).float().mean() < 0.05  # a tie may decide over a mask


def test_gradient_equals_that_of_features_upsampled_first():
    """The order of the paper: upsample the features, then multiply with the prototypes."""
    torch.manual_seed(0)
    features, weight = torch.randn(2, 6, 4, 4).double(), torch.randn(5, 6).double()
    labels = torch.randint(-1, 5, (2, 20, 20))
    weight.requires_grad_()
    large = torch.nn.functional.interpolate(features, size=(20, 20), mode="bilinear")
    logits = torch.einsum("kc,bchw->bkhw", weight, large)
    focal = focal_weights(logits.detach().softmax(1).mean((0, 2, 3)))
    torch.nn.functional.cross_entropy(
        logits, labels, focal, ignore_index=-1, reduction="sum"
    ).backward()
    small = torch.einsum("kc,bchw->bkhw", weight.detach(), features)
    confidence = confidence_sum_torch(small, (20, 20)) / labels.numel()
    _, gradient = weighted_cross_entropy_torch(small, labels, focal_weights(confidence))
    torch.testing.assert_close(
        torch.einsum("bkhw,bchw->kc", gradient, features), weight.grad, rtol=1e-9, atol=1e-12
    )


def test_extreme_logits_stay_finite():
    logits = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1)
    labels = torch.ones(1, 2, 2, dtype=torch.int16)
    loss, gradient = em_compiled.weighted_cross_entropy(logits, labels, torch.ones(2))
    assert torch.isfinite(gradient).all()
    assert loss > 0


def test_ignored_images_have_no_gradient():
    labels = torch.full((1, 8, 8), -1, dtype=torch.int16)
    loss, gradient = em_compiled.weighted_cross_entropy(
        torch.randn(1, 3, 2, 2), labels, torch.ones(3)
    )
    assert loss == 0
    assert not gradient.any()


def test_empty_batches_are_zero():
    """A process can have no image of a batch."""
    logits, labels = torch.zeros(0, 3, 2, 2), torch.zeros(0, 8, 8, dtype=torch.int16)
    weights = torch.ones(3)
    for function in (em_compiled.weighted_cross_entropy, weighted_cross_entropy_torch):
        loss, gradient = function(logits, labels, weights)
        assert loss == 0
        assert gradient.shape == logits.shape
    for function in (em_compiled.confidence_sum, confidence_sum_torch):
        assert function(logits, (8, 8)).tolist() == [0, 0, 0]
    assert em_compiled.assign(logits, labels)[1].shape == (0, 256, 3)


def test_results_do_not_depend_on_the_number_of_threads():
    logits = torch.randn(5, 4, 6, 6)
    labels = torch.randint(-1, 4, (5, 50, 50)).to(torch.int16)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(em_compiled.weighted_cross_entropy(logits, labels, torch.ones(4)))
    finally:
        torch.set_num_threads(threads)
    assert all(loss == results[0][0] for loss, _ in results)
    assert all(torch.equal(gradient, results[0][1]) for _, gradient in results)
