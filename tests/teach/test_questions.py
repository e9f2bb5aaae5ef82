"""Questions cover the collection, are never alike, and go on where answers end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from primaps.teach import questions
from primaps.teach.questions import Question, next_questions, region, sample

GRID = (6, 8)
CHANNELS = 16


@dataclass
class Collection:
    """Feature maps in memory; counts which images are read."""

    features: dict[str, torch.Tensor]

    def __post_init__(self):
        self.read = []

    @property
    def keys(self):
        return list(self.features)

    def tokens(self, key):
        self.read.append(key)
        return self.features[key]

    def grid(self, key):
        return GRID


def directions(count):
    """Orthogonal directions of classes."""
    return torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=torch.Generator()
                                       .manual_seed(3)))[0][:count]  # fmt: skip


def collection(images=12, classes=5, noise=0.05, seed=0):
    """Images of vertical halves of two classes each, and the class of every token."""
    random = torch.Generator().manual_seed(seed)
    centers, found, truth = directions(classes), {}, {}
    for n in range(images):
        label = torch.full(GRID, n % classes)
        label[:, GRID[1] // 2 :] = (n + 1) % classes
        features = centers[label.flatten()]
        features = features + noise * torch.randn(features.shape, generator=random)
        found[f"{n}.jpg"], truth[f"{n}.jpg"] = 3 * features, label.flatten()
    return Collection(found), truth


def linear(classes, scale=8.0):
    """Classifier that knows the directions of the classes."""
    weight = directions(classes)

    def probabilities(maps):
        return (scale * torch.einsum("kc,bchw->bkhw", weight, F.normalize(maps, dim=1))).softmax(1)

    return probabilities


def asked(found, maps):
    return [(q.image, *(v / s for v, s in zip(q.point(60, 80), (80, 60), strict=True)))
            for q in found]  # fmt: skip


def features_of(maps, found):
    return F.normalize(torch.stack([maps.features[q.image][q.token] for q in found]), dim=1)


def test_the_first_questions_are_one_of_each_class():
    maps, truth = collection()
    found = next_questions(5, maps)
    assert sorted(int(truth[q.image][q.token]) for q in found) == [0, 1, 2, 3, 4]
    assert {q.reason for q in found} == {"coverage"}
    assert all(q.guesses == () for q in found)


def test_a_region_is_the_part_of_its_class_around_the_point():
    maps, truth = collection()
    for question in next_questions(5, maps):
        label = truth[question.image]
        expected = (label == label[question.token]).nonzero()[:, 0]
        assert set(question.tokens.tolist()) <= set(expected.tolist())
        assert question.token in question.tokens.tolist()
        mask = question.mask(60, 80)
        assert mask.shape == (60, 80)
        assert mask.sum() == 100 * len(question.tokens)
        x, y = question.point(60, 80)
        assert mask[int(y), int(x)]


def test_regions_are_limited_to_a_share_of_the_image():
    features = F.normalize(torch.rand(48, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    found = region(features, GRID, 20)
    assert 20 in found.tolist()
    assert len(found) <= questions.REGION_SHARE * 48


def test_no_two_questions_are_alike():
    maps, _ = collection(noise=0.2)
    first = next_questions(20, maps, probabilities=linear(5))
    second = next_questions(20, maps, probabilities=linear(5), asked=asked(first, maps))
    both = features_of(maps, first + second)
    assert len(both) == 40
    cosines = both @ both.T
    cosines.fill_diagonal_(0)
    assert float(cosines.max()) < questions.ALIKE


def test_fewer_questions_if_all_other_tokens_are_alike():
    maps, _ = collection(noise=0.0)
    assert len(next_questions(50, maps)) == 5


def test_same_questions_with_the_same_seed():
    maps, _ = collection(noise=0.2)

    def ask(seed):
        found = next_questions(9, maps, probabilities=linear(5), seed=seed)
        return [(q.image, q.token, q.tokens.tolist(), q.guesses, q.reason) for q in found]

    assert ask(0) == ask(0)


def test_coverage_goes_on_where_it_ended():
    maps, _ = collection(noise=0.2)
    at_once = next_questions(12, maps)
    first = next_questions(7, maps)
    then = next_questions(5, maps, asked=asked(first, maps))
    assert [(q.image, q.token) for q in first + then] == [(q.image, q.token) for q in at_once]


def test_a_class_that_was_asked_about_is_not_asked_first():
    maps, truth = collection()
    first = next_questions(2, maps)
    known = {int(truth[q.image][q.token]) for q in first}
    others = next_questions(3, maps, asked=asked(first, maps))
    assert {int(truth[q.image][q.token]) for q in others} == set(range(5)) - known


def test_after_coverage_uncertain_regions_are_asked():
    maps, _ = collection(images=20)
    between = F.normalize(directions(5)[0] + directions(5)[1], dim=0)
    maps.features["7.jpg"][:4] = between + 0.01
    earlier = (asked(next_questions(5, maps), maps) * 5)[: questions.MIN_COVERAGE]
    (found,) = next_questions(1, maps, probabilities=linear(5), asked=earlier)
    assert (found.image, found.reason) == ("7.jpg", "margin")
    assert found.token < 4
    assert {k for k, _ in found.guesses[:2]} == {0, 1}
    assert [p for _, p in found.guesses] == sorted((p for _, p in found.guesses), reverse=True)


def test_points_in_other_images_have_no_effect():
    maps, _ = collection()
    assert next_questions(3, maps, asked=[("other.jpg", 0.5, 0.5)])[0].token == (
        next_questions(3, maps)[0].token
    )


def test_points_on_the_border_belong_to_the_last_token():
    maps, _ = collection()
    known = questions._asked_features(maps, [("0.jpg", 1.0, 1.0), ("0.jpg", 0.0, 0.0)], CHANNELS)
    expected = F.normalize(maps.features["0.jpg"][[47, 0]], dim=1)
    assert torch.allclose(known, expected)


def test_large_collections_are_sampled(monkeypatch):
    monkeypatch.setattr(questions, "IMAGES", 4)
    monkeypatch.setattr(questions, "TOKENS", 40)
    maps, _ = collection(images=30)
    found = sample(maps, 0)
    assert len(maps.read) == 4
    assert len(found.features) == 40
    assert len(set(found.images.tolist())) == 4


def test_no_images_and_no_questions():
    maps, _ = collection()
    assert next_questions(3, Collection({})) == []
    assert next_questions(0, maps) == []


def test_a_mask_has_the_size_of_the_image():
    question = Question("a", (2, 3), torch.tensor([0, 5]), 5, (), "coverage")
    mask = question.mask(7, 10)
    assert mask.shape == (7, 10)
    assert mask.dtype == np.bool_
    assert [bool(mask[at]) for at in ((0, 0), (6, 9), (0, 9), (6, 0))] == [True, True, False, False]


@pytest.mark.parametrize("known", [0, 30])
def test_choose_equals_the_greedy_solution_without_lazy_evaluation(known):
    random = torch.Generator().manual_seed(1)
    features = F.normalize(torch.rand(80, 6, generator=random) - 0.3, dim=1)
    weight = torch.rand(80, generator=random)
    before = features[:known]
    found = questions.choose(features, before, {"coverage": weight}, ["coverage"] * 8)
    similar, covered = (features @ features.T).clamp_min(0) ** questions.SHARPNESS, torch.zeros(80)
    if known:
        covered = similar[:, :known].amax(1)
    alike = questions.ALIKE**questions.SHARPNESS
    allowed = covered < alike
    expected = []
    for _ in range(8):
        gain = ((similar - covered).clamp_min(0) * weight).sum(1)
        gain[~allowed] = -1
        best = int(gain.argmax())
        expected.append(best)
        covered = torch.maximum(covered, similar[best])
        allowed &= similar[best] < alike
        allowed[best] = False
    assert [row for row, _ in found] == expected


def test_the_classes_of_a_model_are_asked_first():
    maps, truth = collection(images=20, noise=0.2)
    found = next_questions(5, maps, probabilities=linear(5))
    assert {int(truth[q.image][q.token]) for q in found} == {0, 1, 2, 3, 4}
    known = asked(found[:2], maps)
    others = next_questions(3, maps, probabilities=linear(5), asked=known)
    assert [q.guesses[0][0] for q in others] == [q.guesses[0][0] for q in found[2:]]
