"""The linear learner of tokens, against direct transcriptions in float64."""

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from primaps.teach import tokens
from primaps.teach.tokens import (
    TokenClassifier,
    balanced,
    class_prior,
    fit_temperature,
    learn_tokens,
    objective,
    reject_threshold,
)


def examples(count: int, classes: int = 3, channels: int = 6, seed: int = 0):
    """Features of well separated classes, their classes and weights."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, channels, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    features = centers[labels] + 0.4 * torch.randn(count, channels, generator=generator)
    return features, labels, 0.2 + 0.8 * torch.rand(count, generator=generator), centers


def test_the_objective_and_its_gradient_are_those_of_the_definition():
    features, labels, weights, centers = examples(20)
    x = F.normalize(features.double(), dim=1)
    weight = torch.randn(3, 6, dtype=torch.double, requires_grad=True)
    bias = torch.randn(3, dtype=torch.double, requires_grad=True)
    target = centers.double()
    negatives = x[:5], (labels[:5] + 1) % 3, weights[:5].double()

    p = torch.exp(x @ weight.T + bias)
    p = p / p.sum(1, keepdim=True)
    expected = sum(-weights[i].double() * p[i, labels[i]].log() for i in range(20))
    for i in range(5):
        expected = expected - negatives[2][i] * (1 - p[i, negatives[1][i]]).log()
    expected = expected + 0.3 / 2 * ((weight - target) ** 2).sum() + 1e-3 / 2 * (bias**2).sum()
    expected.backward()

    loss, by_weight, by_bias = objective(
        weight.detach(), bias.detach(), x, labels, weights.double(), target, negatives, 0.3
    )
    assert loss == pytest.approx(float(expected.detach()), rel=1e-10)
    torch.testing.assert_close(by_weight, weight.grad)
    torch.testing.assert_close(by_bias, bias.grad)


def test_the_classifier_is_the_minimum_found_by_brute_force():
    features, labels, weights, centers = examples(40)
    anchored = torch.tensor([True, False, False])
    found, bias = learn_tokens(features, labels, weights, centers, anchored, penalty=0.5)
    x = F.normalize(features.double(), dim=1)
    x = torch.cat([x, F.normalize(centers[:1].double(), dim=1)])  # the prototype is an example
    labels = torch.cat([labels, torch.tensor([0])])
    w = balanced(labels, torch.cat([weights, torch.ones(1)]).double(), 3)
    target = torch.zeros(3, 6, dtype=torch.double)
    target[0] = tokens.ANCHOR_SCALE * F.normalize(centers[0].double(), dim=0)

    def loss(both):  # without the gradient
        weight, b = torch.from_numpy(both[:18]).view(3, 6), torch.from_numpy(both[18:])
        return objective(weight, b, x, labels, w, target, penalty=0.5)[0]

    both = torch.from_numpy(minimize(loss, np.zeros(21), method="BFGS").x)
    weight, b = both[:18].view(3, 6), both[18:]
    torch.testing.assert_close(found, weight, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(bias - bias.mean(), b - b.mean(), atol=5e-3, rtol=5e-3)


def test_a_class_without_examples_keeps_its_prototype():
    features, labels, weights, centers = examples(30)
    only = labels < 2
    anchored = torch.tensor([False, False, True])
    weight, bias = learn_tokens(features[only], labels[only], weights[only], centers, anchored)
    guess = (F.normalize(features, dim=1).double() @ weight.T + bias).argmax(1)
    assert (guess[labels == 2] == 2).all()
    assert (guess[only] == labels[only]).float().mean() > 0.95


def test_negative_examples_keep_a_class_away():
    features, labels, weights, centers = examples(60, channels=4)
    none = torch.zeros(3, dtype=torch.bool)
    few = torch.tensor([int((labels == k).nonzero()[0]) for k in range(3)])
    between = F.normalize(centers[0] + centers[1], dim=0)[None]
    args = (features[few], labels[few], weights[few], centers, none)
    before, b = learn_tokens(*args)
    k = int((before @ between[0].double() + b).argmax())
    negatives = between.repeat(5, 1), torch.full((5,), k), torch.ones(5)
    after, b = learn_tokens(*args, negatives)
    assert int((after @ between[0].double() + b).argmax()) != k


def test_class_frequencies_are_those_of_em_by_hand(monkeypatch):
    monkeypatch.setattr(tokens, "EM_SMOOTHING", 0.02)
    generator = torch.Generator().manual_seed(3)
    true = torch.tensor([0] * 800 + [1] * 150 + [2] * 50)
    logits = torch.randn(1000, 3, generator=generator).double()
    logits[torch.arange(1000), true] += 4
    prior, p = np.full(3, 1 / 3), torch.softmax(logits, 1).numpy()
    for _ in range(tokens.EM_ITERATIONS):
        total = np.zeros(3)
        for row in p:
            total += row * prior / (row * prior).sum()
        prior = (1 - tokens.EM_SMOOTHING) * total / 1000 + tokens.EM_SMOOTHING / 3
    found = class_prior(logits).numpy()
    np.testing.assert_allclose(found, prior, atol=1e-6)
    np.testing.assert_allclose(found, [0.8, 0.15, 0.05], atol=0.04)


def test_learning_twice_gives_identical_bits_on_any_number_of_threads():
    args = (*examples(300)[:3], torch.zeros(3, 6), torch.zeros(3, dtype=torch.bool))
    before = torch.get_num_threads()
    one = learn_tokens(*args)
    torch.set_num_threads(1 if before > 1 else 2)
    other = learn_tokens(*args)
    torch.set_num_threads(before)
    assert all(map(torch.equal, one, other))


def test_temperature_and_threshold_are_the_minimum_of_a_grid():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (400,), generator=generator)
    logits = 3 * torch.randn(400, 3, generator=generator).double()
    logits[torch.arange(400), labels] += 3
    weights = torch.rand(400, generator=generator).double()

    def loss(t):
        share = 1 / (1 + float(weights.sum()))
        each = F.cross_entropy(logits / t, labels, reduction="none", label_smoothing=share)
        return float((weights * each).sum())

    temperature = fit_temperature(logits, labels, weights)
    grid = np.exp(np.linspace(np.log(0.01), np.log(20), 4000))
    assert temperature == pytest.approx(min(grid, key=loss), rel=2e-3)
    threshold = reject_threshold(logits / temperature, labels, weights, 0.9)
    p, guess = (logits / temperature).softmax(1).max(1)
    right = guess == labels
    share = weights[right & (p >= threshold)].sum() / weights[right].sum()
    above = weights[right & (p > threshold)].sum() / weights[right].sum()
    assert above < 0.9 <= share


def test_more_examples_than_the_limit_are_sampled_evenly_by_class(monkeypatch):
    labels = torch.tensor([0] * 100 + [1] * 5 + [3] * 40)
    chosen = tokens._subset(labels, 45)
    assert labels[chosen].bincount().tolist() == [20, 5, 0, 20]


def test_the_classifier_module_computes_normalized_logits_of_maps():
    weight, bias = torch.randn(3, 6), torch.randn(3)
    maps = torch.randn(2, 6, 4, 5)
    found = TokenClassifier(weight, bias)(maps)
    expected = torch.einsum("kc,bchw->bkhw", weight, maps) + bias[:, None, None]
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_five_hundred_annotations_learn_in_two_seconds():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(500, 384, generator=generator)
    labels = torch.randint(0, 20, (500,), generator=generator)
    prior = torch.randn(20_000, 384, generator=generator)
    start = time.process_time()
    weight, bias = learn_tokens(
        features, labels, torch.ones(500), torch.zeros(20, 384),
        torch.zeros(20, dtype=torch.bool),
    )  # fmt: skip
    class_prior(F.normalize(prior, dim=1).double() @ weight.T + bias)
    assert time.process_time() - start < 2
