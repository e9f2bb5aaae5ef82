import copy

import pytest
import torch

from primaps.em import Settings, Views, batches, diagnostics, fit_em, fit_kmeans
from primaps.imagesize import predict_classes
from primaps.prototypes import Prototypes, focal_loss, momentum_update, vote


@pytest.fixture
def views() -> Views:
    """Eight images of three well separated kinds of features in vertical stripes."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.eye(3, 12) * 6
    kind = torch.randint(0, 3, (8, 1, 6), generator=generator).expand(8, 6, 6)
    features = kinds[kind].permute(0, 3, 1, 2)
    features = features + 0.3 * torch.randn(features.shape, generator=generator)
    clean = torch.stack([features, features.flip(-1)]).half()
    return Views(clean, clean[:0], torch.zeros(0, 8, dtype=torch.bool))


def truth(views: Views) -> torch.Tensor:
    return views.clean[0, :, :3].float().argmax(1)


def purity(prediction: torch.Tensor, label: torch.Tensor) -> float:
    counts = torch.bincount((label * 3 + prediction.long()).flatten(), minlength=9).view(3, 3)
    return float(counts.amax(1).sum() / counts.sum())


def test_kmeans_finds_separated_classes(views):
    prototypes = fit_kmeans(views, 3, steps=60)
    prediction = prototypes(views.clean[0].float()).argmax(1)
    assert purity(prediction, truth(views)) > 0.99
    assert (prototypes.scale == 1).all()


def test_em_keeps_separated_classes_and_grows_confident(views):
    masks = (truth(views) + 1).repeat_interleave(4, 1).repeat_interleave(4, 2).to(torch.int16)
    start = fit_kmeans(views, 3, steps=60)
    before = copy.deepcopy(start.state_dict())
    result = fit_em(views, masks, start, steps=40)
    prediction = result(views.clean[0].float()).argmax(1)
    assert purity(prediction, truth(views)) > 0.99
    assert (result.scale > 1).all()
    assert all(torch.equal(before[k], v) for k, v in start.state_dict().items())  # left alone


def test_a_seed_gives_the_same_bytes_and_another_seed_does_not(views):
    masks = torch.randint(0, 4, (8, 24, 24), generator=torch.Generator().manual_seed(1))
    settings = Settings(batch_size=4)

    def run(seed):
        return fit_em(views, masks, fit_kmeans(views, 3, 5, settings, seed), 15, settings, seed)

    first, again, other = run(0), run(0), run(1)
    assert torch.equal(first.direction, again.direction)
    assert torch.equal(first.scale, again.scale)
    assert not torch.equal(first.direction, other.direction)


def test_em_step_by_step_against_the_equations(views):
    """Autograd on the paper's own order of operations, in float64, without our shortcuts."""
    masks = torch.randint(0, 4, (8, 24, 24), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(3)
    start = Prototypes(torch.randn(3, 12))
    settings = Settings(batch_size=8, momentum_every=2)
    found = fit_em(views, masks, start, 5, settings, seed=7)

    generator = torch.Generator().manual_seed(7)
    student = copy.deepcopy(start).double()
    momentum = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.005)
    order = batches(8, 8, 5, generator)
    for step in range(1, 6):
        index = next(order)
        mirror = torch.rand(8, generator=generator) < 0.5
        features = views.clean[mirror.long(), index].double()
        mask = masks[index]
        mask[mirror] = mask[mirror].flip(-1)
        large = torch.nn.functional.interpolate(features, size=(24, 24), mode="bilinear")
        pseudo = vote(momentum(large).argmax(1), mask, 3).long()
        logits = student(large)
        chi = logits.detach().softmax(1).mean((0, 2, 3))
        loss = focal_loss(logits, pseudo, chi)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 2 == 0:
            momentum_update(momentum, student, min(1 - 1 / (step // 2 + 1), 0.98))
    torch.testing.assert_close(found.direction.double(), momentum.direction, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.scale.double(), momentum.scale, rtol=1e-4, atol=1e-5)


def test_augmented_views_are_what_the_student_sees(views):
    """With views of zeros the student learns nothing from the features: directions stay."""
    augmented = torch.zeros(1, *views.clean.shape[1:]).half()
    blind = Views(views.clean, augmented, torch.zeros(1, 8, dtype=torch.bool))
    start = Prototypes(torch.randn(3, 12))
    masks = torch.ones(8, 24, 24, dtype=torch.int16)
    result = fit_em(blind, masks, start, 12)
    torch.testing.assert_close(result.direction.data, start.direction.data, rtol=1e-5, atol=1e-6)


def test_constant_momentum_is_equation_11(views):
    masks = torch.ones(8, 24, 24, dtype=torch.int16)
    start = Prototypes(torch.randn(3, 12))
    ramped = fit_em(views, masks, start, 10, Settings())
    constant = fit_em(views, masks, start, 10, Settings(momentum_ramp=False))
    # One update each: half of the student's way with the ramp, a fiftieth without.
    moved = (ramped.direction - start.direction).detach()
    torch.testing.assert_close(
        (constant.direction - start.direction).detach(), moved / 25, rtol=1e-3, atol=1e-5
    )


def test_batches_cover_each_epoch_once_and_drop_the_rest():
    found = list(batches(10, 4, 5, torch.Generator().manual_seed(0)))
    assert [len(index) for index in found] == [4] * 5
    assert len(set(torch.cat(found[:2]).tolist())) == 8
    assert len(set(torch.cat(found[2:4]).tolist())) == 8


def test_fewer_images_than_a_batch():
    assert [len(i) for i in batches(3, 32, 2, torch.Generator())] == [3, 3]


def test_diagnostics_by_hand():
    prediction = torch.tensor([[[0, 0, 1, 1]]])
    pseudo = torch.tensor([[[0, 1, 1, -1]]])
    found = diagnostics(prediction, pseudo, 3)
    assert found["ignored"] == pytest.approx(0.25)
    assert found["agreement"] == pytest.approx(2 / 3)
    assert found["entropy"] == pytest.approx(torch.tensor(2.0).log() / torch.tensor(3.0).log())
    assert found["empty_classes"] == 1


def test_one_class_per_image_predictions_have_the_size_of_the_masks(views):
    assert predict_classes(torch.randn(2, 3, 6, 6), (24, 30)).shape == (2, 24, 30)
