"""Evidence for K: known classes are found, and values follow their definitions."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from primaps.classes.class_count import (
    Evidence,
    agreement,
    candidates,
    choice_of,
    curve,
    parse_range,
    spherical_kmeans,
    strength,
)
from primaps.utils.seeding import generator


def test_agreement_is_kappa_of_the_best_of_all_matchings():
    random = torch.Generator().manual_seed(0)
    one, other = torch.randint(0, 4, (2, 60), generator=random)
    other[:30] = (one[:30] + 1) % 4
    best = (-1.0, 0.0)
    for order in itertools.permutations(range(4)):
        renamed = torch.tensor(order)[one]
        same = float((renamed == other).double().mean())
        chance = sum(
            float((renamed == k).double().mean() * (other == k).double().mean()) for k in range(4)
        )
        best = max(best, (same, (same - chance) / (1 - chance)))
    assert agreement(one, other, 4) == pytest.approx(best[1])


def test_agreement_by_chance_is_zero():
    random = torch.Generator().manual_seed(1)
    values = [agreement(*torch.randint(0, 3, (2, 3000), generator=random), 3) for _ in range(20)]
    assert abs(np.mean(values)) < 0.03


def test_prediction_strength_against_a_loop_over_pairs():
    random = torch.Generator().manual_seed(2)
    one, other = torch.randint(0, 3, (2, 25), generator=random)
    worst = 1.0
    for k in range(3):
        own = (one == k).nonzero()[:, 0].tolist()
        pairs = list(itertools.combinations(own, 2))
        worst = min(worst, np.mean([bool(other[a] == other[b]) for a, b in pairs]))
    assert strength(one, other, 3) == pytest.approx(worst)


def test_separated_classes_are_the_most_stable(made):
    features, _, _, _ = made
    images = torch.arange(len(features)) % 40
    found = curve(features, images, [2, 5, 7, 12], repeats=4)
    assert max(found, key=lambda one: one.stability).classes == 5
    assert found[1].stability > 0.95
    assert found[1].strength > 0.9
    assert curve(features, images, [5], repeats=4) == found[1:2]  # whatever else is looked at


def test_kmeans_recovers_separated_directions(made):
    features, assigned, _, _ = made
    found = spherical_kmeans(features, 5, generator("test"))
    assert agreement((features @ found.T).argmax(1), assigned, 5) > 0.99


def test_candidates_and_ranges():
    assert candidates(2, 48) == parse_range("auto")
    assert parse_range("5-5") == [5]
    assert candidates(5, 40)[0] == 5
    assert candidates(5, 40)[-1] == 40
    assert len(candidates(2, 255)) == 12
    for text in ("a", "5-", "40-5", "1-4", "5-300", "-", "5.0-6"):
        with pytest.raises(ValueError, match="range"):
            parse_range(text)


def test_a_short_range_has_three_proposals():
    for stability in itertools.permutations((0.1, 0.5, 0.9)):
        found = choice_of([Evidence(k + 2, s, 0, 0, 0) for k, s in enumerate(stability)])
        assert {found.coarse, found.middle, found.fine} <= {2, 3, 4}
    assert choice_of([Evidence(7, 0.5, 0, 0, 0)]).middle == 7


def test_too_few_masks_is_one_sentence():
    features = F.normalize(torch.randn(10, 4), dim=1)
    with pytest.raises(ValueError, match="but 9 classes need"):
        curve(features, torch.arange(10), [2, 9])


def test_few_masks_limit_the_range():
    features = F.normalize(torch.randn(30, 4), dim=1)
    found = [one.classes for one in curve(features, torch.arange(10).repeat(3), repeats=2)]
    assert (found[0], found[-1]) == (2, 15 // 2)
    with pytest.raises(ValueError, match="but 2 classes need"):
        curve(features[:2], torch.arange(2))
    many = F.normalize(torch.randn(300, 4), dim=1)
    assert [one.classes for one in curve(many, torch.arange(300), repeats=1)] == candidates()
