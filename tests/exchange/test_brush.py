"""The run-length encoding of Label Studio's brush, and colors that are told apart."""

import numpy as np
import pytest
from hypothesis import given

from primaps.exchange import labelstudio as brush
from primaps.exchange.classes import Classes, distinct_colors
from primaps.utils.colors import palette
from primaps.utils.errors import InputError
from tests.geometry.strategies import masks


@given(masks)
def test_masks_come_back(mask):
    height, width = mask.shape
    assert (brush.decode(brush.encode(mask), height, width, "") == mask).all()


def test_a_run_longer_than_a_block_comes_back():
    mask = np.zeros((300, 700), bool)
    mask[50:200] = True
    assert (brush.decode(brush.encode(mask), 300, 700, "") == mask).all()


@pytest.mark.parametrize("content", [[], [0], [0, 0, 0, 8, 57], "abc", [300], None, [0] * 40])
def test_damaged_brushes_are_rejected(content):
    with pytest.raises(InputError, match="a.json"):
        brush.decode(content, 1, 2, "a.json")


def test_the_255_colors_of_primaps_are_distinct_and_not_black():
    colors = palette(255)
    assert (distinct_colors(colors) == colors).all()
    assert Classes(tuple(map(str, range(255)))).colors.shape == (255, 3)
