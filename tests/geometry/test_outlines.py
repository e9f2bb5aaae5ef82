"""Outlines and fills against their definitions, pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from primaps.geometry import outlines
from primaps.geometry.outlines import fill, keyhole, parse_points, trace
from primaps.geometry.regions import connected_regions
from primaps.geometry.shapes import Polygon, paint
from primaps.utils.errors import InputError
from tests.geometry.strategies import masks


@settings(max_examples=200)
@given(masks)
def test_outlines_of_connected_masks_fill_to_the_mask(mask):
    regions = connected_regions(np.where(mask, 0, 255).astype(np.uint8))
    for _, _, _, component in regions.masks():
        height, width = component.shape
        rings = trace(component)
        for ring in rings:  # no ring meets itself
            assert len(np.unique(ring.corners, axis=0)) == len(ring.corners)
        exact = fill([ring.corners.astype(float) for ring in rings], height, width)
        np.testing.assert_array_equal(exact, component)
        image = Image.new("1", (width, height))
        line = [(x, y) for x, y in keyhole(component).tolist()]
        ImageDraw.Draw(image).polygon(line + line[-1:] * 2, fill=1, outline=1)
        np.testing.assert_array_equal(np.asarray(image), component)


@given(st.lists(st.tuples(st.floats(-9, 20), st.floats(-9, 20)), min_size=3, max_size=7))
def test_a_polygon_covers_the_pixels_whose_centers_lie_in_it(points):
    ring = np.array(points)
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
    paint(labels, Polygon([ring]), 3)
    np.testing.assert_array_equal(labels == 3, mask)


@given(st.lists(st.tuples(st.floats(-9, 20), st.floats(-9, 20)), min_size=3, max_size=30))
def test_a_polygon_of_many_points_is_filled_in_steps(points):
    ring = np.array(points)
    whole = fill([ring], 11, 9)
    before, outlines.CROSSINGS = outlines.CROSSINGS, 25
    try:
        np.testing.assert_array_equal(fill([ring], 11, 9), whole)
    finally:
        outlines.CROSSINGS = before


@pytest.mark.parametrize("content", [[], [1, 2], [[1, 2]] * 2, "abc", None, [0, 0, 9, 9, 1, 1e308]])
def test_points_that_are_not_a_polygon_are_rejected(content):
    with pytest.raises(InputError, match=r"a\.json: .*polygon"):
        parse_points(content, "a.json")
