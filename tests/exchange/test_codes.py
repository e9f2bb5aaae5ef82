"""Codes and outlines against their definitions, written out pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import label

from primaps.exchange import ExchangeError, brush
from primaps.exchange.classes import Classes, distinct_colors
from primaps.exchange.filling import fill, paint
from primaps.exchange.outlines import keyhole, trace
from primaps.exchange.regions import connected, split
from primaps.exchange.rle import column_runs, compress, decompress, runs, unrun
from primaps.utils.colors import palette

sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))
maps = arrays(np.uint8, sizes, elements=st.sampled_from([0, 1, 2, 255]))
masks = arrays(np.bool_, sizes)


@given(maps)
def test_connected_parts_are_those_of_every_value_on_its_own(labels):
    numbers, firsts = connected(labels)
    for value in np.unique(labels):
        own, count = label(labels == value)
        pairs = np.unique(np.stack([own[own > 0], numbers[own > 0]]), axis=1)
        assert pairs.shape[1] == count == len(np.unique(numbers[labels == value]))
    assert firsts.tolist() == np.unique(numbers.ravel(), return_index=True)[1].tolist()
    assert (np.diff(firsts) > 0).all()  # numbered in the order of rows


@given(maps, st.sampled_from(["class", "region"]))
def test_column_runs_boxes_and_areas_are_those_of_each_mask(labels, per):
    regions = split(labels, per)
    count = len(regions.classes)
    if not count:
        assert (labels == 255).all()
        return
    lengths, boxes, areas = column_runs(regions.numbers, count)
    for i in range(count):
        mask = regions.numbers == i + 1
        assert (labels[mask] == regions.classes[i]).all()
        assert lengths[i].tolist() == runs(mask.ravel(order="F")).tolist()
        rows, columns = np.nonzero(mask)
        extent = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert boxes[i].tolist() == extent
        assert areas[i] == mask.sum()
    codes = compress(lengths)
    for code, expected in zip(codes, lengths, strict=True):
        assert decompress(code, "").tolist() == expected.tolist()


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=20))
def test_letters_hold_any_length(lengths):
    (code,) = compress([np.array(lengths)])
    assert decompress(code, "").tolist() == lengths


@given(masks)
def test_runs_and_brushes_come_back(mask):
    flat = mask.ravel()
    assert (unrun(runs(flat), flat.size, "") == flat).all()
    height, width = mask.shape
    assert (brush.decode(brush.encode(mask), height, width, "") == mask).all()


def test_a_brush_longer_than_a_block_comes_back():
    mask = np.zeros((300, 700), bool)
    mask[50:200] = True
    assert (brush.decode(brush.encode(mask), 300, 700, "") == mask).all()


@settings(max_examples=200)
@given(masks)
def test_outlines_of_connected_masks_fill_to_the_mask(mask):
    for _, _, _, part in split(np.where(mask, 0, 255).astype(np.uint8), "region").boxes():
        height, width = part.shape
        rings = trace(part)
        for ring in rings:  # no ring meets itself
            assert len(np.unique(ring.vertices, axis=0)) == len(ring.vertices)
        exact = fill([ring.corners.astype(float) for ring in rings], height, width)
        np.testing.assert_array_equal(exact, part)
        line = keyhole(rings, part)
        closed = fill([line + 0.5], height, width, outline=True)
        np.testing.assert_array_equal(closed, part)


@given(st.lists(st.tuples(st.floats(-9, 20), st.floats(-9, 20)), min_size=3, max_size=7))
def test_a_polygon_covers_the_pixels_whose_centers_lie_in_it(corners):
    ring = np.array(corners)
    mask = fill([ring], 11, 9)
    y, x = np.mgrid[:11, :9] + 0.5
    crossings = np.zeros((11, 9), int)  # of a ray to the right, edge by edge
    for (ax, ay), (bx, by) in zip(ring, np.roll(ring, -1, 0), strict=True):
        over = (ay > y) != (by > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            at = ax + (y - ay) / (by - ay) * (bx - ax)
        crossings += over & (at > x)
        if np.abs(at[over] - x[over]).min(initial=1) < 1e-9:
            return  # a center on the line may be on either side
    np.testing.assert_array_equal(mask, crossings % 2 == 1)
    labels = np.full((11, 9), 255, np.uint8)
    paint(labels, [ring], 3)
    np.testing.assert_array_equal(labels == 3, mask)


@pytest.mark.parametrize("content", [[], [0], [0, 0, 0, 8, 57], "abc", [300], None, [0] * 40])
def test_damaged_brushes_are_refused(content):
    with pytest.raises(ExchangeError, match="a.json"):
        brush.decode(content, 1, 2, "a.json")


@pytest.mark.parametrize("code", ["p", "0P", "\x00", "é", "Z" * 9])
def test_damaged_letters_are_refused(code):
    with pytest.raises(ExchangeError, match="a.json"):
        unrun(decompress(code, "a.json"), 4, "a.json")


def test_the_255_colors_of_primaps_differ_and_are_not_black():
    colors = palette(255)
    assert (distinct_colors(colors) == colors).all()
    assert Classes(tuple(map(str, range(255)))).colors.shape == (255, 3)
