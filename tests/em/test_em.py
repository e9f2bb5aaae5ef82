import copy

import pytest
import torch

from primaps.config import Config
from primaps.em import fit, kmeans
from primaps.em.em import diagnostics, fit_em, focal_weights, momentum_update, vote
from primaps.em.kmeans import Prototypes, fit_kmeans, pca_init
from primaps.em.orthogonal import RESTARTS
from primaps.em.training import Recorder
from primaps.features.training_data import ImageArrays, Views, batch_indices, mask_table


def stripes() -> torch.Tensor:
    """Eight images of three well separated kinds of features in stripes: (8, 2, C, h, w)."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.eye(3, 12) * 6
    kind = torch.randint(0, 3, (8, 1, 6), generator=generator).expand(8, 6, 6)
    features = kinds[kind].permute(0, 3, 1, 2)
    features = features + 0.3 * torch.randn(features.shape, generator=generator)
    return torch.stack([features, features.flip(-1)], dim=1).half()


CLEAN = stripes()
TRUTH = CLEAN[:, 0, :3].float().argmax(1)


@pytest.fixture
def views() -> Views:
    return Views(ImageArrays(CLEAN))


def enlarged(labels: torch.Tensor) -> ImageArrays:
    return ImageArrays(labels.repeat_interleave(4, 1).repeat_interleave(4, 2).to(torch.uint8))


def random_masks() -> ImageArrays:
    generator = torch.Generator().manual_seed(1)
    return ImageArrays(torch.randint(0, 4, (8, 24, 24), generator=generator).to(torch.uint8))


def purity(prediction: torch.Tensor) -> float:
    counts = torch.bincount((TRUTH * 3 + prediction.long()).flatten(), minlength=9).view(3, 3)
    return float(counts.amax(1).sum() / counts.sum())


def test_kmeans_finds_separated_classes(views):
    prototypes = fit_kmeans(views, pca_init(views, 3), 60, Config(3))
    assert purity(prototypes(CLEAN[:, 0].float()).argmax(1)) > 0.99
    assert (prototypes.scale == 1).all()


@pytest.mark.parametrize(
    ("method", "expected"), [("em", RESTARTS * 7 * [8 * 20]), ("kmeans", 7 * [8 * 36])]
)
def test_restarts_read_sampled_tokens_and_the_baseline_all_tokens(
    views, monkeypatch, method, expected
):
    looked, forward = [], Prototypes.forward

    def noted(self, features):
        looked.append(features)
        return forward(self, features)

    monkeypatch.setattr(Prototypes, "forward", noted)
    monkeypatch.setattr(kmeans, "TOKENS_PER_STEP", 20)
    masks = enlarged(TRUTH + 1)
    config = Config(3, method=method, min_init_steps=7, min_steps=0, epochs=1, init_epochs=1)
    fit.fit_prototypes(config, views, masks, None, Recorder(), table=mask_table(views, masks))
    assert [len(each) * each[0, 0].numel() for each in looked] == expected
    if method == "em":
        assert not torch.equal(looked[0].sort(3).values, looked[1].sort(3).values)


@pytest.mark.parametrize("loss_size", ["image", "feature"])
def test_em_keeps_separated_classes_and_grows_confident(views, loss_size):
    start = fit_kmeans(views, pca_init(views, 3), 60, Config(3))
    before = copy.deepcopy(start.state_dict())
    config = Config(3, recipe="paper", loss_size=loss_size)
    result = fit_em(views, enlarged(TRUTH + 1), start, 40, config)
    assert purity(result(CLEAN[:, 0].float()).argmax(1)) > 0.99
    assert (result.scale > 1).all()
    assert all(torch.equal(before[k], v) for k, v in start.state_dict().items())  # left alone


def test_feature_size_equals_image_size_on_an_image_as_small_as_its_features(views):
    masks = ImageArrays((TRUTH + 1).to(torch.uint8))
    start = Prototypes(torch.randn(3, 12, generator=torch.Generator().manual_seed(2)))
    image, feature = (
        fit_em(views, masks, start, 12, Config(3, recipe="paper", loss_size=size))
        for size in ("image", "feature")
    )
    assert torch.equal(image.direction, feature.direction)


def test_results_depend_on_the_seed_alone(views):
    def run(seed):
        config = Config(3, batch_size=4, seed=seed)
        start = fit_kmeans(views, pca_init(views, 3), 5, config)
        return fit_em(views, random_masks(), start, 15, config)

    first, again, other = run(0), run(0), run(1)
    assert torch.equal(first.direction, again.direction)
    assert torch.equal(first.scale, again.scale)
    assert not torch.equal(first.direction, other.direction)


def test_em_step_by_step_against_the_equations(views):
    """Compare with autograd in float64, in the order of operations of the paper."""
    masks, config = (
        random_masks(),
        Config(3, recipe="paper", batch_size=8, momentum_every=2, seed=7),
    )
    torch.manual_seed(3)
    start = Prototypes(torch.randn(3, 12))
    found = fit_em(views, masks, start, 8, config)

    student = copy.deepcopy(start).double()
    momentum = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.005)
    for step in range(1, 9):
        index = batch_indices(step, 8, 8, "EM", 7)
        flip = views.batch(index, step, 7).flip
        features = CLEAN[index, flip.long()].double()
        mask = masks.take(index)
        mask[flip] = mask[flip].flip(-1)
        large = torch.nn.functional.interpolate(features, size=(24, 24), mode="bilinear")
        pseudo = vote(momentum(large).argmax(1), mask, 3)[0].long()
        logits = student(large)
        chi = logits.detach().softmax(1).mean((0, 2, 3))
        losses = torch.nn.functional.cross_entropy(
            logits, pseudo, focal_weights(chi), ignore_index=-1, reduction="none"
        )
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        if step in (3, 5):  # the first two updates copy, the third keeps two thirds
            momentum.load_state_dict(student.state_dict())
        elif step == 7:
            momentum_update(momentum, student, 2 / 3)
    torch.testing.assert_close(found.direction.double(), momentum.direction, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.scale.double(), momentum.scale, rtol=1e-4, atol=1e-5)


def test_augmented_views_are_what_the_student_sees():
    """With views of zeros the gradient of the directions is zero."""
    blind = Views(
        ImageArrays(CLEAN),
        augmented=(ImageArrays(torch.zeros_like(CLEAN[:, 0])),),
        flipped=torch.zeros(1, 8, dtype=torch.bool),
    )
    start = Prototypes(torch.randn(3, 12))
    result = fit_em(
        blind, ImageArrays(torch.ones(8, 24, 24, dtype=torch.uint8)), start, 12, Config(3)
    )
    torch.testing.assert_close(result.direction.data, start.direction.data, rtol=1e-5, atol=1e-6)


def test_constant_momentum_is_equation_11(views):
    masks = ImageArrays(torch.ones(8, 24, 24, dtype=torch.uint8))
    start = Prototypes(torch.randn(3, 12))
    student = fit_em(
        views, masks, start, 10, Config(3, recipe="paper", momentum=0.0, momentum_ramp=False)
    )
    constant = fit_em(views, masks, start, 10, Config(3, recipe="paper", momentum_ramp=False))
    # One update each, after the tenth step: all of the student's way, or a fiftieth of it.
    moved = (student.direction - start.direction).detach()
    torch.testing.assert_close(
        (constant.direction - start.direction).detach(), moved / 50, rtol=1e-3, atol=1e-5
    )


def test_momentum_zero_in_every_step_uses_pseudo_labels_of_the_student(views):
    """The row "+ pseudo label" of Table 4b: without a moving average."""
    start = Prototypes(torch.randn(3, 12, generator=torch.Generator().manual_seed(3)))
    plain = Config(3, recipe="paper", batch_size=8, momentum=0.0, momentum_every=1)
    found = fit_em(views, random_masks(), start, 3, plain)
    student = copy.deepcopy(start)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.005)
    for step in range(1, 4):
        index = batch_indices(step, 8, 8, "EM", 0)
        batch = views.batch(index, step, 0)
        clean, flip, rows = batch.clean, batch.flip, batch.rows
        mask = random_masks().take(rows)
        mask[flip] = mask[flip].flip(-1)
        logits = torch.nn.functional.interpolate(student(clean), size=(24, 24), mode="bilinear")
        pseudo = vote(logits.argmax(1), mask, 3)[0].long()
        weights = focal_weights(logits.detach().softmax(1).mean((0, 2, 3)))
        losses = torch.nn.functional.cross_entropy(
            logits, pseudo, weights, ignore_index=-1, reduction="none"
        )
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    torch.testing.assert_close(found.direction, student.direction, rtol=1e-4, atol=1e-5)


def test_diagnostics_by_hand():
    sums = {
        "loss": torch.tensor(6.0),
        "pixels": torch.tensor(8.0),
        "assigned": torch.tensor(6.0),
        "agreeing": torch.tensor(4.0),
        "classes": torch.tensor([4.0, 4.0, 0.0]),
    }
    found = diagnostics(sums, steps=3)
    assert found["loss"] == 2
    assert found["ignored"] == pytest.approx(0.25)
    assert found["agreement"] == pytest.approx(2 / 3)
    assert found["entropy"] == pytest.approx(torch.tensor(2.0).log() / torch.tensor(3.0).log())
    assert found["empty"] == [2]


def test_diagnostics_of_an_epoch_are_those_of_its_masks_and_predictions(views):
    recorder = Recorder(per_epoch=2)
    start = Prototypes(torch.eye(3, 12))
    fit_em(views, enlarged(TRUTH + 1), start, 4, Config(3, batch_size=4), recorder)
    assert [line["step"] for line in recorder.epochs] == [2, 4]
    line = recorder.epochs[0]
    assert line["ignored"] == 0
    assert line["agreement"] > 0.9  # the classes of the start are those of the masks
    assert line["empty"] == []
    recorder = Recorder(per_epoch=1)
    fit_em(
        views, ImageArrays(torch.zeros(8, 24, 24, dtype=torch.uint8)), start, 1, Config(3), recorder
    )
    assert recorder.epochs[0]["ignored"] == 1
    assert recorder.epochs[0]["loss"] == 0
