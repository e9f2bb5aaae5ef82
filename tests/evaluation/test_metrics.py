from itertools import permutations

import numpy as np
import pytest
import torch

from primaps.evaluation.metrics import confusion_matrix, match, scores


def test_hungarian_matching_against_all_permutations():
    generator = np.random.default_rng(0)
    for _ in range(20):
        counts = generator.integers(0, 50, (5, 5))
        best = max(sum(counts[p[c], c] for c in range(5)) for p in permutations(range(5)))
        found = match(torch.from_numpy(counts))
        assert sum(counts[found[c], c] for c in range(5)) == best


def test_scores_by_hand():
    """Clusters 1, 0 are classes 0, 1. Class 0: 3 of 4 right; class 1: 2 right, 1 taken from 0."""
    result = scores(torch.tensor([[1, 3], [2, 0]]))
    assert result.assignment == [1, 0]
    assert result.accuracy == pytest.approx(5 / 6)
    assert result.iou == [pytest.approx(3 / 4), pytest.approx(2 / 3)]
    assert result.mean_iou == pytest.approx((3 / 4 + 2 / 3) / 2)


def test_absent_classes_are_left_out_of_the_mean():
    result = scores(torch.tensor([[5, 0, 0], [0, 5, 0], [0, 0, 0]]))
    assert result.iou == [1.0, 1.0, None]
    assert result.mean_iou == 1.0


def test_leftover_clusters_count_as_wrong():
    result = scores(torch.tensor([[6, 4]]))
    assert result.assignment == [0, None]
    assert result.accuracy == pytest.approx(0.6)
    assert result.iou == [pytest.approx(0.6)]


def test_fewer_clusters_than_classes():
    result = scores(torch.tensor([[6], [4]]))
    assert result.iou == [pytest.approx(0.6), 0.0]


def test_accuracy_and_iou_agree_with_torchmetrics():
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

    torch.manual_seed(0)
    label = torch.randint(0, 4, (6, 30, 30))
    prediction = torch.where(torch.rand(6, 30, 30) < 0.6, label, torch.randint(0, 4, (6, 30, 30)))
    label[0, :10] = 255
    result = scores(confusion_matrix(prediction, label, 4, 4), assignment=[0, 1, 2, 3])
    options = {"num_classes": 4, "ignore_index": 255}
    accuracy = multiclass_accuracy(prediction, label, average="micro", **options)
    iou = multiclass_jaccard_index(prediction, label, average="none", **options)
    assert result.accuracy == pytest.approx(accuracy.item())
    assert result.iou == pytest.approx(iou.tolist())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("prediction", "label", "words"),
    [
        ([0, 1], [0, 7], "label: value 7 is not 0 to 1 or the ignore index 255"),
        ([0, 9], [0, 1], "prediction: value 9 is not 0 to 1"),
        ([0, -1], [0, 1], "prediction: value -1 is not 0 to 1"),
        ([0], [0, 1], "differ in shape"),
    ],
)
def test_values_out_of_range_are_named(prediction, label, words):
    with pytest.raises(ValueError, match=words):
        confusion_matrix(torch.tensor(prediction), torch.tensor(label), 2, 2)


def test_nothing_counted_is_an_error():
    with pytest.raises(ValueError, match="no labeled pixel"):
        scores(torch.zeros(2, 2, dtype=torch.int64))
