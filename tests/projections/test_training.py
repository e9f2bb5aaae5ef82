import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from primaps.config import Config
from primaps.em.kmeans import fit_kmeans, pca_init
from primaps.features.training_data import ImageArrays, Views
from primaps.projections import Head, Projection
from primaps.projections.hp import (
    HPSettings,
    contrastive_loss,
    hidden_positives,
    neighborhood,
)
from primaps.projections.sampling import (
    descriptors,
    interpolate,
    nearest_images,
    partners,
    random_points,
)
from primaps.projections.stego import (
    LARGEST_SHARE,
    Pairs,
    StegoSettings,
    automatic_shifts,
    centered,
    correlation,
    correspondence_loss,
    train_stego,
)
from primaps.projections.training import train_projection


def blocks(images=12, channels=16, side=6, noise=0.1, classes=3, across=2):
    """Cached features of ``classes`` directions in noise, and the class of every position."""
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(classes, channels, generator=generator), dim=1)
    label = torch.randint(classes, (images, across, across), generator=generator)
    label = label.repeat_interleave(side // across, 1).repeat_interleave(side // across, 2)
    clean = directions[label].permute(0, 3, 1, 2) + 0.5  # a common part, as real features have
    both = torch.stack([clean, clean.flip(-1)], 1)
    noisy = both + noise * torch.randn(both.shape, generator=generator)
    return ImageArrays(noisy.half()), label


def separation(projection, features, label):
    """Mean cosine of codes within classes and between them."""
    codes = (
        F.normalize(projection(features.arrays[:, 0].float()), dim=1)
        .permute(0, 2, 3, 1)
        .flatten(0, 2)
    )
    same = label.flatten()[:, None] == label.flatten()
    cosines = codes @ codes.T
    return cosines[same].mean().item(), cosines[~same].mean().item()


def test_sampling_agrees_with_bilinear_interpolation_by_hand():
    maps = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    points = 2 * torch.rand(2, 11, 2, dtype=torch.float64) - 1
    found = interpolate(maps, points)
    for b in range(2):
        for i, (x, y) in enumerate(points[b].tolist()):
            x, y = (x + 1) / 2 * 6, (y + 1) / 2 * 4
            x0, y0 = min(math.floor(x), 5), min(math.floor(y), 3)
            u, v = x - x0, y - y0
            m = maps[b, :, y0 : y0 + 2, x0 : x0 + 2]
            by_hand = (1 - v) * ((1 - u) * m[:, 0, 0] + u * m[:, 0, 1])
            by_hand += v * ((1 - u) * m[:, 1, 0] + u * m[:, 1, 1])
            torch.testing.assert_close(found[b, :, i], by_hand)


def test_nearest_images_agree_with_sorting_all_pairs_and_leave_the_image_out():
    features, _ = blocks(images=9)
    images = descriptors(features)
    means = features.arrays[:, 0].double().mean((2, 3))
    for i, row in enumerate(nearest_images(images, 4).tolist()):
        cosines = [
            (float(F.cosine_similarity(means[i], means[j], dim=0)), j) for j in range(9) if j != i
        ]
        assert row == [j for _, j in sorted(cosines, reverse=True)[:4]]
    assert nearest_images(images[:2], 7).tolist() == [[1], [0]]


@pytest.mark.parametrize("count", [2, 3, 32])
def test_a_random_partner_is_another_image_and_each_is_partner_once(count):
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        found = partners(count, generator)
        assert sorted(found.tolist()) == list(range(count))
        assert not (found == torch.arange(count)).any()


def test_the_loss_of_stego_agrees_with_the_sums_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    f, g = torch.randn(2, 3, 8, 5, generator=generator, dtype=torch.float64)
    s, t = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    plain = [
        [
            [float(F.cosine_similarity(f[b, :, p], g[b, :, q], dim=0)) for q in range(5)]
            for p in range(5)
        ]
        for b in range(3)
    ]
    mean = sum(v for image in plain for row in image for v in row) / 75
    total = 0.0
    for b in range(3):
        for p in range(5):
            for q in range(5):
                value = plain[b][p][q] - sum(plain[b][p]) / 5 + mean
                code = float(F.cosine_similarity(s[b, :, p], t[b, :, q], dim=0))
                total -= max(code, 0) * (value - 0.2)
    found = correspondence_loss(centered(correlation(f, g)), correlation(s, t), 0.2)
    assert found.item() == pytest.approx(total / 75, abs=1e-12)


@pytest.mark.parametrize(("classes", "across"), [(5, 2), (8, 4)])
def test_automatic_shifts_let_twice_as_many_pairs_attract_as_are_of_one_class(classes, across):
    """Of random pairs 1 / K attract, and of no pairs more than a limit."""
    features, _ = blocks(images=40, side=12, noise=0.5, classes=classes, across=across)
    shifts = automatic_shifts(features, StegoSettings(batch_size=8, points=60), classes)
    views = Views(features)
    prototypes = fit_kmeans(views, pca_init(views, classes), 184, Config(classes))
    points = random_points(40, 200, torch.Generator().manual_seed(5))
    one = interpolate(features.arrays[:, 0].float(), points)
    label = prototypes(one[..., None]).argmax(1)[..., 0]
    neighbors = nearest_images(descriptors(features), 7)
    near = one[neighbors.T[3]]  # the fourth of seven stands for all

    def alike(labels):
        return (label[:, :, None] == labels[:, None]).float().mean().item()

    for other, shift, share in (
        (one, shifts.same, min(LARGEST_SHARE, 2 * alike(label))),
        (near, shifts.near, min(LARGEST_SHARE, 2 * alike(label[neighbors.T[3]]))),
        (one.roll(1, 0), shifts.random, 1 / classes),
    ):
        attracting = (centered(correlation(one, other)) > shift).float().mean().item()
        assert attracting == pytest.approx(share, abs=0.06)


def test_dropout_hides_whole_channels_of_a_list_and_others_from_each_branch():
    head = Head(40, 3, 5)
    with torch.no_grad():
        head.linear.weight.fill_(1), head.linear.bias.fill_(0)
        for layer in (head.branch[0], head.branch[2]):
            layer.weight.fill_(0), layer.bias.fill_(0)
    features = torch.ones(50, 7, 40)
    codes = head.tokens(features, 0.25, torch.Generator().manual_seed(0))[..., 0]
    kept = codes * 0.75  # channels that the linear branch saw
    torch.testing.assert_close(kept, kept.round())
    assert (kept == kept[:, :1]).all()  # the same ones at every position of a list
    assert kept[:, 0].unique().numel() > 3
    assert codes.mean().item() == pytest.approx(40, rel=0.03)
    with torch.no_grad():
        head.branch[0].weight.fill_(1), head.branch[2].weight.fill_(1)
    both = head.tokens(features, 0.25, torch.Generator().manual_seed(0))[..., 0]
    assert not torch.allclose((both - codes) / 5, codes)


SMALL = {
    "stego": StegoSettings(dim=8, batch_size=6, points=36, learning_rate=5e-3),
    "hp": HPSettings(dim=8, batch_size=6, positions=36, anchors=12, pool=64, learning_rate=5e-3),
}


def trained(features, method, steps, seed=0):
    return train_projection(
        features, method, classes=3, settings=SMALL[method], steps=steps, seed=seed
    )


@pytest.mark.parametrize("method", SMALL)
def test_training_draws_classes_apart_without_collapse(method):
    features, label = blocks()
    before = separation(trained(features, method, 1), features, label)
    within, between = separation(trained(features, method, 120), features, label)
    assert within > 0.8
    assert between < 0.3
    assert within - between > before[0] - before[1] + 0.2


@pytest.mark.parametrize("method", SMALL)
def test_the_same_seed_gives_the_same_projection_and_another_another(method):
    features, _ = blocks()
    state = torch.get_rng_state()
    one, again, other = (trained(features, method, 3, seed).digest for seed in (0, 0, 1))
    assert one == again != other
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("method", SMALL)
def test_a_trained_projection_is_saved_with_its_settings(method, tmp_path):
    features, _ = blocks()
    projection = trained(features, method, 2)
    projection.save(tmp_path)
    about = Projection.load(tmp_path).about
    assert about["method"] == method
    assert about["settings"]["dim"] == 8
    assert about["steps"] == 2


def test_one_image_has_nothing_to_be_compared_with():
    features, _ = blocks(images=1)
    with pytest.raises(ValueError, match="needs at least 2"):
        trained(features, "stego", 1)
    for classes, sentence in ((None, "or the number of classes"), (1, "classes is 1; it must be")):
        with pytest.raises(ValueError, match=sentence):
            train_projection(blocks()[0], "stego", classes=classes, steps=1)
    with pytest.raises(ValueError, match="needs shifts"):
        train_stego(blocks()[0], 1, StegoSettings())


def test_hidden_positives_agree_with_the_definition():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    pool = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    anchors = torch.tensor([0, 3, 4, 11])
    found = hidden_positives(vectors, anchors, pool)

    def cosine(a, b):
        return float(F.cosine_similarity(a, b, dim=0))

    best = [max(cosine(v, m) for m in pool) for v in vectors]
    for row, i in enumerate(anchors.tolist()):
        for j in range(12):
            alike = cosine(vectors[i], vectors[j])
            expected = i != j and (alike > best[i] or alike > best[j])
            assert found[row, j].item() == expected
    assert 0 < found.sum() < 40


@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [
        (StegoSettings, {"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        (StegoSettings, {"dropout": 1.0}, "dropout is 1.0; it must be below 1"),
        (HPSettings, {"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        (HPSettings, {"contrast": 0.0}, "contrast is 0.0; it must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, options, words):
    with pytest.raises(ValueError, match=words):
        settings(**options)


@pytest.mark.parametrize("method", SMALL)
def test_features_that_are_no_numbers_end_the_training(method):
    features, _ = blocks()
    features.arrays[:, :, 0, 0, 0] = torch.nan
    settings = SMALL[method]
    if method == "stego":
        settings = replace(settings, shifts=Pairs(0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="contain NaN"):
        train_projection(features, method, settings=settings, steps=2)


def test_the_loss_of_hp_agrees_with_its_definition_written_out():
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(4, 9, generator=generator, dtype=torch.float64) * 2 - 1
    positives = torch.rand(4, 9, generator=generator, dtype=torch.float64).round(decimals=1)
    positives[positives < 0.6] = 0
    positives[2] = 0  # an anchor without positives does not count
    contrasted = torch.rand(4, 9, generator=generator) < 0.7
    top = bottom = 0.0
    for i in (0, 1, 3):
        against = sum(math.exp(cosines[i, j] / 0.5) for j in range(9) if contrasted[i, j])
        weight = positives[i].sum().item()
        mean = (
            sum(
                positives[i, j].item() * (math.log(against) - cosines[i, j].item() / 0.5)
                for j in range(9)
            )
            / weight
        )
        top, bottom = top + weight * mean, bottom + weight
    found = contrastive_loss(cosines, positives, contrasted, 0.5)
    assert found.item() == pytest.approx(top / bottom, abs=1e-12)
    nothing = contrastive_loss(cosines, torch.zeros_like(positives), contrasted, 0.5)
    assert nothing.item() == 0


def test_a_neighborhood_has_the_anchor_in_the_middle_and_weights_only_alike_neighbors_inside():
    maps = torch.randn(2, 5, 4, 6) + 0.5
    position = torch.tensor([[0, 8, 23], [5, 18, 13]])
    near, weights = neighborhood(maps, position)
    for b in range(2):
        unit = F.normalize(maps[b].flatten(1), dim=0)
        for a, p in enumerate(position[b].tolist()):
            y, x = divmod(p, 6)
            typical = float((unit[:, p] @ unit).mean())
            by_hand = torch.zeros(9)
            for k in range(9):
                i, j = y + k // 3 - 1, x + k % 3 - 1
                if 0 <= i < 4 and 0 <= j < 6:
                    torch.testing.assert_close(near[b, a, k], maps[b, :, i, j])
                    alike = float(unit[:, p] @ unit[:, 6 * i + j])
                    by_hand[k] = alike if alike >= typical else 0
            torch.testing.assert_close(weights[b, a], by_hand / by_hand.sum())


def test_the_gradient_of_an_anchor_reaches_its_neighbors():
    maps = torch.ones(1, 3, 3, 3).requires_grad_()
    near, weights = neighborhood(maps, torch.tensor([[4]]))
    torch.einsum("bak,bakc->bac", weights.detach(), near).sum().backward()
    torch.testing.assert_close(maps.grad, torch.full((1, 3, 3, 3), 1 / 9))
