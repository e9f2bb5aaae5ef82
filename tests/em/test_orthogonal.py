import itertools

import pytest
import torch
import torch.nn.functional as F

from primaps.config import Config
from primaps.em.kmeans import Prototypes, fit_restarts, pca_init
from primaps.em.orthogonal import consensus, fit_orthogonal, orthogonal_kmeans, polar, restart_seeds
from primaps.em.training import Recorder
from primaps.features.training_data import ImageArrays, Views, mask_table, sample_tokens
from tests.em.test_em import CLEAN, TRUTH, enlarged, purity


def test_polar_is_the_nearest_matrix_with_orthonormal_rows():
    torch.manual_seed(0)
    matrix = torch.randn(3, 5).double()
    found = polar(matrix)
    torch.testing.assert_close(found @ found.T, torch.eye(3).double())
    for _ in range(200):
        other = torch.linalg.qr(found.T + 0.3 * torch.randn(5, 3).double())[0].T
        assert (found - matrix).norm() <= (other - matrix).norm() + 1e-12


def test_the_best_of_many_initializations_is_the_best_of_all_assignments():
    """For an assignment the best orthonormal prototypes have the nuclear norm of the sums."""
    torch.manual_seed(1)
    features = F.normalize(torch.randn(9, 3), dim=1)
    best = 0.0
    for assigned in itertools.product(range(2), repeat=9):
        sums = torch.zeros(2, 3).index_add_(0, torch.tensor(assigned), features)
        best = max(best, float(torch.linalg.matrix_norm(sums, "nuc")))
    found = 0.0
    for _ in range(60):
        prototypes = orthogonal_kmeans(features, F.normalize(torch.randn(2, 3), dim=1), 100)
        torch.testing.assert_close(prototypes @ prototypes.T, torch.eye(2), atol=1e-5, rtol=0)
        found = max(found, float((features @ prototypes.T).amax(1).sum()))
    assert found == pytest.approx(best, rel=1e-5)


def test_no_iteration_raises_the_loss():
    torch.manual_seed(2)
    features, start = F.normalize(torch.randn(200, 8), dim=1), torch.randn(5, 8)
    values = [
        float((features @ orthogonal_kmeans(features, start, most).T).amax(1).mean())
        for most in range(1, 12)
    ]
    assert values == sorted(values)
    assert values[-1] > values[0]


def test_an_oblique_initialization_determines_the_assignments():
    """Both features are nearer to the second prototype; at right angles to it, the first would
    take one of them."""
    features = F.normalize(torch.tensor([[1.0, 0.5], [1.0, 0.9]]), dim=1)
    start = F.normalize(torch.tensor([[1.0, 2.0], [1.0, 0.7]]), dim=1)
    found = orthogonal_kmeans(features, start, iterations=1)
    sums = torch.stack([torch.zeros(2), features.sum(0)])
    weak = 1e-3 * sums.norm(dim=1).max() * start
    expected = polar(torch.where(torch.tensor([[True], [False]]), weak, sums).double())
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_a_class_without_features_stays_orthogonal_to_the_others():
    features = F.normalize(torch.tensor([[1.0, 0.1, 0], [1, -0.1, 0]]), dim=1)
    found = orthogonal_kmeans(features, torch.eye(3)[[0, 2]])
    torch.testing.assert_close(found.abs(), torch.eye(3)[[0, 2]], atol=1e-5, rtol=0)


def test_mask_features_against_a_loop_over_pixels():
    torch.manual_seed(3)
    clean = torch.randn(2, 2, 4, 3, 3).half()
    masks = torch.randint(0, 4, (2, 12, 12)).to(torch.uint8)
    found = mask_table(Views(ImageArrays(clean)), ImageArrays(masks)).features
    expected = []
    for i in range(2):
        mean = (clean[i, 0].double() + clean[i, 1].double().flip(-1)) / 2
        for z in (1, 2, 3):
            total = torch.zeros(4).double()
            for y, x in (masks[i] == z).nonzero().tolist():
                total += mean[:, y // 4, x // 4]
            expected.append(total / total.norm())
    torch.testing.assert_close(found.double(), torch.stack(expected), atol=1e-5, rtol=0)


def test_consensus_does_not_depend_on_the_order_of_classes():
    torch.manual_seed(4)
    truth = polar(torch.randn(4, 6).double())
    noisy = [polar(truth + 0.05 * torch.randn(4, 6))[torch.randperm(4)] for _ in range(5)]
    found = consensus(noisy)
    cosines = found @ truth.T
    assert (cosines.amax(1) > 0.99).all()
    assert len(cosines.argmax(1).unique()) == 4


def test_consensus_averages_the_candidates_that_agree():
    """With two groups of candidates, the average of all is in neither group."""
    torch.manual_seed(5)
    one, other = (polar(torch.randn(4, 8).double()) for _ in range(2))

    def around(truth, count, noise):
        return [polar(truth + noise * torch.randn(4, 8))[torch.randperm(4)] for _ in range(count)]

    candidates = around(one, 4, 0.02) + around(other, 6, 0.3)
    found = consensus(candidates, 4)
    assert ((found @ one.T).amax(1) > 0.999).all()
    everyone = consensus(candidates, 10)
    assert ((everyone @ one.T).amax(1) < 0.99).any()


def test_separated_classes_are_found_and_recorded_in_the_history():
    recorder = Recorder()
    views, masks = Views(ImageArrays(CLEAN)), enlarged(TRUTH + 1)

    features = mask_table(views, masks).features
    seen, seeds = sample_tokens(views, 20, 0), restart_seeds(0)
    starts = fit_restarts(seen, pca_init(views, 3), seeds, 40, Config(3), recorder)
    model = fit_orthogonal(features, starts, recorder)
    assert purity(model(F.normalize(CLEAN[:, 0].float(), dim=1)).argmax(1)) > 0.99
    gram = model.direction @ model.direction.T
    torch.testing.assert_close(gram.detach(), torch.eye(3), atol=1e-5, rtol=0)
    last = recorder.epochs[-1]
    assert last["stage"] == "orthogonal"
    assert last["loss"] < -0.9
    assert last["empty"] == []
    with pytest.raises(ValueError, match="13 prototypes of 12 channels cannot be orthogonal"):
        fit_orthogonal(features, [Prototypes(torch.randn(13, 12))], recorder)


def test_parallel_restarts_equal_single_runs():
    seen = sample_tokens(Views(ImageArrays(CLEAN)), 20, 0)
    first = Prototypes(torch.randn(3, 12, generator=torch.Generator().manual_seed(0)))
    together = fit_restarts(seen, first, [4, 5, 6], 7, Config(3))
    for seed, one in zip([4, 5, 6], together, strict=True):
        (alone,) = fit_restarts(seen, first, [seed], 7, Config(3))
        assert torch.equal(one.direction, alone.direction)
    assert not torch.equal(together[0].direction, together[1].direction)
    assert not torch.equal(together[0].direction, first.direction)  # which is left alone
