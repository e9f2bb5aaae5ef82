from itertools import pairwise

import numpy as np
import pytest
import torch

from primaps.scenes.windows import cores, cosine_weights, plan_windows, starts
from primaps.support.errors import InputError


def test_windows_cover_every_place_overlap_enough_and_stay_inside():
    for length in range(1, 70):
        for side, overlap in ((1, 0), (4, 0), (5, 2), (8, 4), (23, 3)):
            begins = starts(length, side, overlap)
            covered = np.zeros(length, int)
            for begin in begins:
                covered[begin : begin + side] += 1
            assert covered.all()
            assert begins[0] == 0
            assert begins[-1] == max(0, length - side)
            for one, other in pairwise(begins):
                assert 0 < other - one <= side - overlap
            fewest = -(-max(0, length - side) // (side - overlap)) + 1
            assert len(begins) == fewest


def test_cores_are_a_partition_inside_their_windows():
    for length in range(1, 60):
        begins = starts(length, 7, 3)
        kept = cores(length, begins, min(7, length))
        assert [place for core in kept for place in range(*core)] == list(range(length))
        for (low, high), begin in zip(kept, begins, strict=True):
            assert begin <= low < high <= begin + 7


def test_blending_weights_sum_to_one_and_change_slowly():
    plan = plan_windows(8 * 40, 8 * 50, 8, 64, 24)
    total, own = torch.zeros(plan.rows, plan.columns), []
    weights = cosine_weights(plan.side)
    for top in plan.tops:
        for left in plan.lefts:
            at = torch.zeros(plan.rows, plan.columns)
            at[top : top + plan.side[0], left : left + plan.side[1]] = weights
            own.append(at)
            total += at
    shares = torch.stack(own) / total
    assert (total > 0).all()
    assert torch.allclose(shares.sum(0), torch.ones(()), atol=1e-6)
    # Without blending a share jumps from 0 to 1 between neighbours.
    assert float(shares.diff(dim=2).abs().max()) < 0.6


@pytest.mark.parametrize(
    ("window", "overlap", "words"),
    [(60, 8, "64 is"), (64, 40, "half of the window"), (64, -8, "between 0")],
)
def test_windows_that_cannot_be_are_refused(window, overlap, words):
    with pytest.raises(InputError, match=words):
        plan_windows(200, 200, 8, window, overlap)
