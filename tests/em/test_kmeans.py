import pytest
import torch
import torch.nn.functional as F

from primaps.em.em import (
    confidence_sum_torch,
    focal_weights,
    momentum_update,
    vote,
    weighted_cross_entropy_torch,
)
from primaps.em.kmeans import Prototypes, kmeans_loss, moments, principal_directions


def test_prototypes_are_a_weight_normalized_convolution():
    torch.manual_seed(0)
    prototypes = Prototypes(torch.randn(5, 7))
    prototypes.scale.data = torch.rand(5) + 0.5
    features = torch.randn(2, 7, 3, 4)
    conv = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(7, 5, 1, bias=False), dim=0)
    conv.parametrizations.weight.original1.data = prototypes.direction.data[..., None, None]
    conv.parametrizations.weight.original0.data = prototypes.scale.data.view(5, 1, 1, 1)
    torch.testing.assert_close(prototypes(features), conv(features))


def test_principal_directions_agree_with_svd_in_double_precision():
    torch.manual_seed(0)
    features = torch.randn(70, 6, 3, 2) * torch.tensor([9, 7, 5, 3, 2, 1.0]).view(1, 6, 1, 1) + 4
    parts = moments(features.half().split(32))
    found = principal_directions(*parts, 3)
    rows = features.half().permute(0, 2, 3, 1).reshape(-1, 6).double()
    _, _, v = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    cosines = (F.normalize(found.double(), dim=1) * v[:3]).sum(1).abs()
    assert cosines.min() > 0.99999
    assert (found.gather(1, found.abs().argmax(1, keepdim=True)) > 0).all()


def test_more_classes_than_directions_continue_with_the_opposite_sign():
    features = torch.randn(2, 3, 4, 4)
    found = principal_directions(*moments([features]), 5)
    torch.testing.assert_close(found[3:], -found[:2])


@pytest.mark.parametrize("k", [7, 100])
def test_too_many_classes_are_refused(k):
    with pytest.raises(ValueError, match="classes cannot be initialized"):
        principal_directions(*moments([torch.randn(2, 3, 4, 4)]), k)


def test_features_with_nan_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        principal_directions(*moments([torch.full((1, 3, 4, 4), torch.nan)]), 2)


def test_kmeans_loss_by_hand():
    cosines = torch.tensor([[[[0.1, 0.9]], [[0.5, -1.0]]]])
    assert kmeans_loss(cosines).item() == pytest.approx(-(0.5 + 0.9) / 2)


def test_focal_loss_against_a_loop():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5).double()
    labels = torch.randint(-1, 3, (2, 4, 5))
    probabilities = logits.softmax(1)
    chi = torch.stack([probabilities[:, k].mean() for k in range(3)])
    expected = 0.0
    for b in range(2):
        for y in range(4):
            for x in range(5):
                if (k := int(labels[b, y, x])) >= 0:
                    expected -= (1 - chi[k]) ** 2 * probabilities[b, k, y, x].log()
    torch.testing.assert_close(confidence_sum_torch(logits, (4, 5)) / 40, chi)
    loss, _ = weighted_cross_entropy_torch(logits, labels, focal_weights(chi))
    torch.testing.assert_close(loss, expected)


def test_vote_against_a_loop():
    torch.manual_seed(0)
    prediction, masks = torch.randint(0, 4, (3, 9, 8)), torch.randint(0, 5, (3, 9, 8))
    expected = torch.full_like(masks, -1)
    for b in range(3):
        for z in range(1, 5):
            inside = masks[b] == z
            if inside.any():
                expected[b][inside] = prediction[b][inside].bincount(minlength=4).argmax()
    torch.testing.assert_close(vote(prediction, masks, 4)[0].long(), expected)


def test_votes_of_one_image_do_not_reach_another():
    prediction = torch.tensor([[[0, 0]], [[1, 1]]])
    masks = torch.ones(2, 1, 2, dtype=torch.int64)
    assert vote(prediction, masks, 2)[0].tolist() == [[[0, 0]], [[1, 1]]]


def test_momentum_update_is_equation_11():
    slow, fast = Prototypes(torch.zeros(2, 3)), Prototypes(torch.ones(2, 3))
    momentum_update(slow, fast, 0.98)
    torch.testing.assert_close(slow.direction.data, torch.full((2, 3), 0.02))
