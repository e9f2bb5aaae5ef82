import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from primaps.geometry.regions import Regions, class_regions, connected_regions
from primaps.geometry.rle import (
    _decompress,
    decode_coco,
    encode_coco,
    run_lengths,
    set_positions,
)
from primaps.utils.errors import InputError
from tests.geometry.strategies import label_maps, masks


@given(label_maps)
def test_encodings_are_those_of_pycocotools_for_each_mask(labels):
    height, width = labels.shape
    for regions in (class_regions(labels), connected_regions(labels)):
        for i, code in enumerate(encode_coco(regions)):
            mask = regions.numbers == i + 1
            expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            assert code == expected["counts"].decode()
            down = np.flatnonzero(mask.ravel(order="F"))
            assert decode_coco(code, height * width, "a.json").tolist() == down.tolist()


@given(masks)
def test_run_lengths_are_decoded_to_the_mask(mask):
    flat = mask.ravel()
    for lengths in (run_lengths(flat), run_lengths(flat).tolist()):
        found = set_positions(lengths, flat.size, "")
        assert found.tolist() == np.flatnonzero(flat).tolist()


@pytest.mark.parametrize("code", ["p", "0P", "\x00", "é", "Z" * 9, "P", "", "33P", "1" * 99])
def test_damaged_text_is_rejected(code):
    with pytest.raises(InputError, match=r"a\.json: .*mask"):
        decode_coco(code, 4, "a.json")


def test_an_image_that_pycocotools_would_write_beyond_its_memory_for_is_rejected():
    regions = Regions(np.broadcast_to(np.zeros((), np.int32), (2**15, 2**14)), np.array([1]))
    with pytest.raises(InputError, match="32768 x 16384 pixels is too large for COCO masks"):
        next(encode_coco(regions))


@given(st.lists(st.integers(0, 2**29 - 1), min_size=1, max_size=20))
def test_text_holds_lengths_of_any_size(lengths):
    text = coco.frPyObjects({"size": [1, 1], "counts": lengths}, 1, 1)["counts"].decode()
    assert _decompress(text, "").tolist() == lengths


@pytest.mark.parametrize(
    "lengths",
    [[10**15], [2**70], [3], [1, -1, 4], [1.5, 2.5], ["4"], [[4]], None, 4, [4, None], [2, 2**63]],
)
def test_run_lengths_with_another_sum_are_rejected_before_memory_is_allocated(lengths):
    with pytest.raises(InputError, match=r"a\.json: the run lengths of a mask"):
        decode_coco(lengths, 4, "a.json")
