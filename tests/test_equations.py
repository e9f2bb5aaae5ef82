"""docs/equations.md: every function that it names computes its equation."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from primaps.em import em, em_compiled, kmeans
from primaps.proposals import batched, compiled
from primaps.utils.bilinear import axes

TEXT = (Path(__file__).parents[1] / "docs/equations.md").read_text("utf-8")
ROWS = re.findall(r"^\| (\d+) \| .+ \| `primaps\.([\w.]+)` \|$", TEXT, flags=re.MULTILINE)


def features(channels: int, tokens: int) -> np.ndarray:
    """Four clusters of features with noise, (C, N)."""
    random = np.random.default_rng(channels)
    centers = random.normal(size=(channels, 4))
    noise = 0.3 * random.normal(size=(channels, tokens))
    return centers[:, random.integers(0, 4, tokens)] + noise


def transcribed(f: np.ndarray, psi: float, coverage: float) -> tuple[np.ndarray, ...]:
    """Eq. 2-8 in float64: masks, similarities, anchors and shares of variance."""
    masks, values, anchors, shares = np.zeros(f.shape[1], int), np.zeros(f.shape[1]), [], []
    unit = f / np.linalg.norm(f, axis=0)
    while (free := masks == 0).sum() > (1 - coverage) * len(free):  # Eq. 7 and 8
        centered = f[:, free] - f[:, free].mean(1, keepdims=True)
        variances, components = np.linalg.eigh(centered @ centered.T / free.sum())  # Eq. 2 and 3
        anchor = np.argmax(np.abs(components[:, -1] @ unit) * free)  # Eq. 4
        similarity = unit[:, anchor] @ unit  # Eq. 5
        top = similarity[free].max()
        taken = free & (similarity > psi * top)  # Eq. 6
        masks[taken], values[taken] = len(anchors) + 1, similarity[taken] / top
        anchors.append(anchor)
        shares.append(variances[-1] / variances.sum())
    return masks, values, np.array(anchors), np.array(shares)


def check_masks(channels: int, tokens: int, coverage: float, torch_operations: bool = False):
    f = features(channels, tokens)
    expected = transcribed(f, 0.4, coverage)
    f32 = f.astype(np.float32)
    if torch_operations:
        (found,) = batched.propose_torch(torch.from_numpy(f32)[None], 0.4, coverage, True, True)
    else:
        found = compiled.propose_image(f32, np.float32(0.4), coverage, True)
    assert len(expected[2]) > 2
    for value, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(value), reference, rtol=2e-4, atol=1e-5)


def check_principal():
    f = features(6, 40)
    x, free = torch.from_numpy(f.T.copy())[None], torch.arange(40)[None] % 3 > 0
    component, share = batched._principal(x, x.norm(dim=2), free)
    values, vectors = np.linalg.eigh(np.cov(f[:, free[0].numpy()]))
    assert abs(component[0].numpy() @ vectors[:, -1]) == pytest.approx(1, abs=1e-6)
    assert share.item() == pytest.approx(values[-1] / values.sum(), rel=1e-6)


def check_anchor():
    cosines = np.array([0.3, -0.9, 0.8], np.float32)
    assert compiled._signed_anchor(cosines) == 1
    np.testing.assert_allclose(cosines, [-0.3, 0.9, -0.8], rtol=1e-6)


def check_assignment():
    cosines, free = np.array([0.9, 0.2, 0.5], np.float32), np.array([4, 1, 2])
    out = (np.zeros(5, int), np.zeros(5, np.float32), np.zeros(5, int), np.zeros(5, np.float32))
    keep = compiled._assign(cosines, np.float32(0.4), free, 0, np.float32(0.7), out, 2)
    assert keep.tolist() == [False, True, False]
    assert out[0].tolist() == [0, 0, 3, 0, 3]
    np.testing.assert_allclose(out[1], [0, 0, 0.5 / 0.9, 0, 1], rtol=1e-6)
    assert (out[2][2], out[3][2]) == (4, pytest.approx(0.7))


def check_kmeans_loss():
    cosines = torch.rand(2, 3, 4, 5).double() * 2 - 1
    expected = -np.mean([max(column) for column in cosines.movedim(1, -1).reshape(-1, 3).tolist()])
    assert kmeans.kmeans_loss(cosines).item() == pytest.approx(expected)


def check_focal_weights():
    assert em.focal_weights(torch.tensor([0.1, 0.6])).tolist() == pytest.approx([0.81, 0.16])


def check_loss(quantity: str, torch_operations: bool):
    """Eq. 10 by autograd in float64: chi, the focal loss, and its gradient, times pixels."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 4, 5, generator=random).double().requires_grad_()
    labels = torch.randint(-1, 3, (1, 8, 12), generator=random)
    log = F.interpolate(logits, (8, 12), mode="bilinear").log_softmax(1)
    chi = log.detach().exp().sum((0, 2, 3))
    weights = (1 - chi / 96) ** 2
    inside = labels >= 0
    chosen = log.gather(1, labels.clamp_min(0)[:, None])[:, 0]
    loss = -(weights[labels.clamp_min(0)] * chosen * inside).sum()
    loss.backward()
    small, spans = logits.detach().float(), axes((4, 5), (8, 12))
    if quantity == "chi":
        found = em_compiled._confidence(small[0].numpy(), *spans)
        found = em.confidence_sum_torch(small, (8, 12)) if torch_operations else found
        np.testing.assert_allclose(np.asarray(found), chi, rtol=1e-5)
        return
    if torch_operations:
        value, gradient = em.weighted_cross_entropy_torch(small, labels, weights)
    else:
        gradient, label = torch.zeros_like(small), labels[0].to(torch.int16).numpy()
        weights = weights.float().numpy()
        value = em_compiled._gradient(small[0].numpy(), *spans, label, weights, gradient[0].numpy())
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(gradient.double(), logits.grad, rtol=1e-4, atol=1e-5)


def check_momentum():
    slow, fast = (kmeans.Prototypes(torch.rand(2, 3)) for _ in range(2))
    expected = [
        0.98 * a + 0.02 * b for a, b in zip(slow.parameters(), fast.parameters(), strict=True)
    ]
    em.momentum_update(slow, fast, 0.98)
    for value, reference in zip(slow.parameters(), expected, strict=True):
        torch.testing.assert_close(value, reference)


CHECKS = {
    "proposals.compiled._by_scatter": lambda: check_masks(6, 80, 0.9),  # 8 tokens may stay free
    "proposals.compiled._by_gram": lambda: check_masks(40, 30, 0.95),  # fewer tokens than channels
    "proposals.compiled.propose_image": lambda: check_masks(12, 60, 1.0),  # both, without rest
    "proposals.compiled._signed_anchor": check_anchor,
    "proposals.compiled._assign": check_assignment,
    "proposals.batched._propose": lambda: check_masks(12, 60, 0.95, torch_operations=True),
    "proposals.batched._principal": check_principal,
    "em.kmeans.kmeans_loss": check_kmeans_loss,
    "em.em.focal_weights": check_focal_weights,
    "em.em_compiled._confidence": lambda: check_loss("chi", torch_operations=False),
    "em.em.confidence_sum_torch": lambda: check_loss("chi", torch_operations=True),
    "em.em_compiled._gradient": lambda: check_loss("loss", torch_operations=False),
    "em.em.weighted_cross_entropy_torch": lambda: check_loss("loss", torch_operations=True),
    "em.em.momentum_update": check_momentum,
}


@pytest.mark.parametrize("name", sorted({name for _, name in ROWS}))
def test_function_computes_its_equation(name):
    CHECKS[name]()


def test_every_equation_of_the_method_has_a_function():
    assert {int(equation) for equation, _ in ROWS} == set(range(2, 12))
