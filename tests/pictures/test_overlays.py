import numpy as np
import pytest
from PIL import Image

from primaps.pictures.overlays import grid, overlay, with_legend
from primaps.utils.colors import palette


def test_palettes_are_distinct_and_do_not_change_with_their_length():
    colors = palette(100)
    assert len(np.unique(colors, axis=0)) == 100
    assert (palette(7) == colors[:7]).all()


def test_overlay_blends_outlines_and_darkens():
    labels = np.array([[0, 0, 1, 1]]).repeat(3, 0)
    image = Image.new("RGB", (4, 3), (100, 100, 100))
    colors = np.array([[200, 0, 0], [0, 200, 0]], np.uint8)
    found = np.asarray(overlay(image, labels, colors, alpha=0.5))
    assert found[1, 0].tolist() == [150, 50, 50]
    assert found[1, 3].tolist() == [50, 150, 50]
    assert found[1, 2].min() > 150  # the outline
    ignored = np.asarray(overlay(image, labels, colors, ignore=0))
    assert ignored[1, 0].tolist() == [45, 45, 45]
    with pytest.raises(ValueError, match="differ in size"):
        overlay(image, labels[:2], colors)


def test_legends_and_grids_fit_their_content():
    image = Image.new("RGB", (60, 40))
    legend = with_legend(image, ["a rather long name", "short"], palette(2))
    assert legend.width >= image.width
    assert legend.height > image.height
    assert with_legend(image, [], palette(0)) is image
    sheet = grid([[image, image], [image]], ["left", "right"], height=80)
    assert sheet.width > 2 * 120
    assert sheet.height > 2 * 80
