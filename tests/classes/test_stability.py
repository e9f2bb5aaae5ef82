"""Stability of classes: real classes are reproduced, invented ones are not."""

import pytest
import torch

from primaps.classes.stability import class_stability, jaccard, stability


def test_jaccard_against_sets():
    random = torch.Generator().manual_seed(0)
    one, other = torch.randint(0, 4, (2, 50), generator=random)
    found = jaccard(one, other, 5)
    for k in range(4):
        own = set((one == k).nonzero()[:, 0].tolist())
        others = [set((other == j).nonzero()[:, 0].tolist()) for j in range(4)]
        assert float(found[k]) == pytest.approx(max(len(own & o) / len(own | o) for o in others))
    assert found[4].isnan()


def test_real_classes_are_stable_and_invented_ones_are_not(made):
    features, assigned, _, _ = made
    images = torch.arange(600) % 40
    assert (stability(features, images, assigned, 5) > 0.95).all()
    invented = assigned.clone()
    invented[assigned == 1] = 0  # one class of two, and a class of random masks
    invented[torch.arange(0, 600, 9)] = 1
    found = stability(features, images, invented, 5)
    assert found[1] < 0.5
    assert found[0] < 0.75


def test_statistics_are_counts(made):
    features, assigned, _, _ = made
    images = torch.arange(600) // 30
    areas = torch.arange(600).float() + 1
    found = class_stability(features, areas, images, assigned, 6, repeats=2)
    assert sum(one.share for one in found) == pytest.approx(1)
    for k in range(5):
        own = assigned == k
        assert found[k].share == pytest.approx(float(areas[own].sum() / areas.sum()), rel=1e-5)
        assert found[k].images == len(set(images[own].tolist()))
        means = torch.stack([features[assigned == j].mean(0) for j in range(5)])
        cosines = torch.cosine_similarity(means[k], means)
        cosines[k] = -2
        assert found[k].nearest == int(cosines.argmax())
        assert found[k].cosine == pytest.approx(float(cosines.max()), abs=1e-5)
    assert (found[5].images, found[5].nearest, found[5].share) == (0, -1, 0)
