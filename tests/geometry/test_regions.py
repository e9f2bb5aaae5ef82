import numpy as np
from hypothesis import given
from scipy.ndimage import label

from primaps.geometry.regions import class_regions, connected_regions
from tests.geometry.strategies import label_maps


@given(label_maps)
def test_connected_regions_are_the_components_of_each_value(labels):
    regions = connected_regions(labels)
    assert ((regions.numbers == 0) == (labels == 255)).all()
    for value in np.unique(labels[labels != 255]):
        components, count = label(labels == value)
        pairs = np.unique(
            np.stack([components[components > 0], regions.numbers[components > 0]]), axis=1
        )
        assert pairs.shape[1] == count == (regions.classes == value).sum()
    firsts = np.unique(regions.numbers, return_index=True)[1]
    assert (np.diff(firsts[-len(regions.classes) :]) > 0).all()  # in the order of rows


@given(label_maps)
def test_boxes_areas_and_masks_are_those_of_each_region(labels):
    for regions in (class_regions(labels), connected_regions(labels)):
        assert len(regions.classes) == regions.numbers.max()
        for i, (k, left, top, mask) in enumerate(regions.masks()):
            full = regions.numbers == i + 1
            rows, columns = np.nonzero(full)
            assert (labels[full] == k).all()
            assert regions.areas()[i] == full.sum() == mask.sum()
            assert regions.boxes()[i].tolist() == [left, top, *mask.shape[::-1]]
            assert (left, top) == (columns.min(), rows.min())
            assert mask.shape == (np.ptp(rows) + 1, np.ptp(columns) + 1)
