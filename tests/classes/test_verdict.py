import math

import pytest

from primaps.classes.stability import ClassStability
from primaps.classes.verdict import judge


def classes(shares, stability=0.8):
    values = stability if isinstance(stability, list) else [stability] * len(shares)
    return [
        ClassStability(math.nan if share == 0 else value, share, 5, 0, 0.5)
        for share, value in zip(shares, values, strict=True)
    ]


@pytest.mark.parametrize(
    ("shares", "level"),
    [
        # Ten collections that collapse or not: shares of the area by class.
        ([1.0, 0.0, 0.0], "failed"),
        ([0.992, 0.008, 0.0], "failed"),  # blood cells, three classes
        ([0.96, 0.02, 0.02], "failed"),
        ([0.999] + [0.001 / 19] * 19, "failed"),
        ([0.9, 0.05, 0.05], "doubtful"),
        ([0.88, 0.12], "doubtful"),
        ([0.4, 0.6, 0.0], "doubtful"),
        ([0.5, 0.3, 0.2], "good"),
        ([0.75, 0.25], "good"),
        ([0.7] + [0.02] * 15, "good"),
    ],
)
def test_a_class_that_takes_everything_is_a_failure(shares, level):
    found = judge(classes(shares))
    assert found.level == level
    assert bool(found.reasons) == (level != "good")
    assert "nan" not in str(found)


def test_classes_that_other_images_do_not_confirm_are_doubtful():
    found = judge(classes([0.5, 0.5], [0.2, 0.3]))
    assert found.level == "doubtful"
    assert "stability 0.25 of 1" in str(found)
    assert judge(classes([0.9, 0.1], [0.9, 0.0])).reasons == (
        "90 % of the area fell into one class",
    )


def test_too_few_masks_are_said():
    assert "fewer than 54 masks" in str(judge([], 54))
