from itertools import pairwise

import numpy as np
import pytest
import torch

from primaps.scenes.tiling import (
    cosine_weights,
    crf_spans,
    inner_spans,
    plan_tiles,
    tile_starts,
)
from primaps.utils.errors import InputError


def test_tiles_cover_every_token_overlap_enough_and_stay_inside():
    for length in range(1, 70):
        for side, overlap in ((1, 0), (4, 0), (5, 2), (8, 4), (23, 3)):
            begins = tile_starts(length, side, overlap)
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


def test_tiles_without_their_margins_are_a_partition():
    for length in range(1, 60):
        begins = tile_starts(length, 7, 3)
        kept = inner_spans(length, begins, min(7, length))
        assert [cell for inner in kept for cell in range(*inner)] == list(range(length))
        for (low, high), begin in zip(kept, begins, strict=True):
            assert begin <= low < high <= begin + 7


def test_blending_weights_sum_to_one_and_change_slowly():
    plan = plan_tiles(8 * 40, 8 * 50, 8, 64, 24)
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
    ("overlap", "message"),
    [(40, "half of the size 64"), (-8, "between 0")],
)
def test_overlaps_out_of_range_are_refused(overlap, message):
    with pytest.raises(InputError, match=message):
        plan_tiles(200, 200, 8, 64, overlap)


def test_crf_tiles_are_as_few_as_their_side_allows_and_no_longer_than_needed():
    for length in range(1, 90):
        for side, margin in ((13, 4), (22, 7), (43, 4)):
            tiles = crf_spans(length, side, margin)
            assert len(tiles) == len(tile_starts(length, side, 2 * margin))
            assert [c for _, inner in tiles for c in range(*inner)] == list(range(length))
            for (begin, end), (first, last) in tiles:
                assert end - begin <= side
                assert first == 0 or first - begin >= margin
                assert last == length or end - last >= margin
            together = sum(end - begin for (begin, end), _ in tiles)
            assert together < length + 2 * margin * (len(tiles) - 1) + len(tiles)
