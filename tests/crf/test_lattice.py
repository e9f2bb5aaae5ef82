"""The permutohedral lattice as a filter of its own."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from primaps.crf import build_lattice, compiled_lattice
from primaps.crf.kernels import gaussian_filter


def cloud(n, d, spread, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.rand(n, d, generator=generator), generator


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5])
def test_filter_is_near_brute_force(d):
    positions, generator = cloud(3000, d, 3.0)
    values = torch.rand(3000, 4, generator=generator)
    ours = build_lattice(positions).filter(values)
    true = gaussian_filter(positions.double())(values.double()).float()
    # Normalized filtering is what the lattice is for: its gain is not the Gaussian's.
    ones = torch.ones(3000, 1)
    ours = ours / build_lattice(positions).filter(ones)
    true = true / gaussian_filter(positions)(ones)
    assert (ours - true).abs().mean() < 0.02
    assert np.corrcoef(ours[:, 0], true[:, 0])[0, 1] > 0.85


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_filter_is_symmetric(d):
    """W^T B W is symmetric where every neighbor exists, else nearly."""
    positions, _ = cloud(400, d, 2.0)
    lattice = build_lattice(positions)
    matrix = lattice.filter(torch.eye(400))
    difference = (matrix - matrix.T).abs().mean() / matrix.mean()
    assert difference < 0.1


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 60), d=st.integers(1, 5), spread=st.floats(0.01, 30), seed=st.integers(0, 999)
)
def test_compiled_lattice_is_the_same(n, d, spread, seed):
    positions, _ = cloud(n, d, spread, seed)
    lattice = build_lattice(positions)
    compiled = compiled_lattice.build(positions.numpy())
    assert compiled.size == len(lattice)
    # Both number the points differently; the map between them must be one to one.
    ours, theirs = torch.from_numpy(compiled.vertices).long(), lattice.vertices
    rename = torch.full((compiled.size + 1,), compiled.size)
    rename[ours.flatten()] = theirs.flatten()
    assert torch.equal(rename[ours], theirs)
    assert len(rename.unique()) == compiled.size + 1
    # Weights differ by the normalization, one factor per position.
    degree = lattice.filter(torch.ones(n, 1)).double()
    gain = 1 / (1 + 2.0**-d)
    expected = lattice.weights * math.sqrt(gain) / degree.sqrt()
    torch.testing.assert_close(
        torch.from_numpy(compiled.weights).double(), expected, atol=1e-4, rtol=1e-4
    )
    # Chains list every pair of neighbors once.
    for chain, (_, ahead) in zip(compiled.chains, lattice.neighbors, strict=True):
        ids = rename[torch.from_numpy(chain).long()]
        pairs = torch.stack([ids[:-1], ids[1:]])[:, (ids[:-1] < compiled.size)]
        pairs = pairs[:, pairs[1] < compiled.size]
        here = torch.nonzero(ahead < len(lattice)).flatten()
        assert set(map(tuple, pairs.T.tolist())) == set(
            zip(here.tolist(), ahead[here].tolist(), strict=True)
        )


def test_weights_are_barycentric():
    positions, _ = cloud(500, 5, 10.0)
    lattice = build_lattice(positions)
    assert lattice.weights.min() > -1e-5
    torch.testing.assert_close(lattice.weights.sum(1), torch.ones(500))
    assert (lattice.vertices.sort(1).values.diff(dim=1) > 0).all()  # d + 1 different corners


def test_blocks_do_not_see_each_other():
    positions, generator = cloud(120, 3, 2.0)
    values = torch.rand(120, 2, generator=generator)
    together = build_lattice(positions, blocks=3).filter(values)
    for part in range(3):
        rows = slice(40 * part, 40 * part + 40)
        alone = build_lattice(positions[rows]).filter(values[rows])
        torch.testing.assert_close(together[rows], alone)


def test_repeat_is_a_batch_of_equal_positions():
    positions, generator = cloud(40, 2, 3.0)
    values = torch.rand(120, 2, generator=generator)
    torch.testing.assert_close(
        build_lattice(positions).repeat(3).filter(values),
        build_lattice(positions.repeat(3, 1), blocks=3).filter(values),
    )


def test_errors():
    with pytest.raises(ValueError, match="positions: expected finite values"):
        build_lattice(torch.tensor([[0.0, math.nan]]))
    with pytest.raises(ValueError, match="spread over too many"):
        build_lattice(torch.tensor([[0.0] * 5, [1e8] * 5]))
