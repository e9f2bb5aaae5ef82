from itertools import pairwise

import numpy as np
import pytest
import torch

from primaps.scenes.crops import cores, cosine_weights, plan_crops, starts
from primaps.scenes.refine import _windows
from primaps.utils.errors import InputError


def test_crops_cover_every_place_overlap_enough_and_stay_inside():
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
    plan = plan_crops(8 * 40, 8 * 50, 8, 64, 24)
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
    # Without blending a share jumps from 0 to 1 between neighbors.
    assert float(shares.diff(dim=2).abs().max()) < 0.6


@pytest.mark.parametrize(
    ("overlap", "words"),
    [(40, "half of the size 64"), (-8, "between 0")],
)
def test_overlaps_that_cannot_be_are_refused(overlap, words):
    with pytest.raises(InputError, match=words):
        plan_crops(200, 200, 8, 64, overlap)


def test_windows_are_as_few_as_their_side_allows_and_no_longer_than_that_takes():
    for length in range(1, 90):
        for side, margin in ((13, 4), (22, 7), (43, 4)):
            windows = _windows(length, side, margin)
            assert len(windows) == len(starts(length, side, 2 * margin))
            assert [c for _, core in windows for c in range(*core)] == list(range(length))
            for (begin, end), (first, last) in windows:
                assert end - begin <= side
                assert first == 0 or first - begin >= margin
                assert last == length or end - last >= margin
            together = sum(end - begin for (begin, end), _ in windows)
            assert together < length + 2 * margin * (len(windows) - 1) + len(windows)
