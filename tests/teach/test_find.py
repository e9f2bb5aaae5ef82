"""This, everywhere: score maps from one region."""

from dataclasses import replace

import numpy as np
import pytest

from primaps.teach.annotations import annotation_mask
from primaps.utils.errors import InputError
from tests.conftest import painted
from tests.teach.test_model import clicks, fitted, images  # noqa: F401


def test_one_region_finds_its_class_in_every_image(fitted, images):  # noqa: F811
    (region,) = (c for c in clicks([0]) if c.name == "grass")
    found = fitted.find(images, region)
    assert found.name == "grass"
    for key in map(str, range(8)):
        _, label = painted(int(key))
        scores = found.scores(key)
        assert scores.shape == (64, 64)
        assert 0 <= scores.min() <= scores.max() <= 1
        inside = label[4::8, 4::8] == 1  # tokens
        assert found.maps[key][inside].min(initial=1) > found.maps[key][~inside].max(initial=0)
        expected = (label == 1).mean()
        assert found.mask(key).mean() == pytest.approx(expected, abs=0.12)
    again = fitted.find(images, [region])
    assert all(np.array_equal(found.maps[key], again.maps[key]) for key in found.maps)


def test_what_is_found_can_be_accepted_and_taught(fitted, images):  # noqa: F811
    found = [fitted.find(images, one) for one in clicks([0])]
    accepted = [one for each in found for one in each.annotations(0.5, ["0", "1"])]
    assert {one.source for one in accepted} == {"find"}
    assert {one.image for one in accepted} == {"0", "1"}
    for one in accepted:
        mask = next(each for each in found if each.name == one.name).mask(one.image)
        assert (annotation_mask(one, 64, 64) == mask).all()
    taught = fitted.teach(images, accepted, level="tokens", log=lambda sentence: None)
    assert [one.name for one in taught.shown_classes] == ["brick", "grass", "water"]
    assert found[0].ranked(2.0) == []
    assert set(found[0].ranked(0.5)) <= set(found[0].maps)


def test_a_negative_region_lowers_the_scores_there(fitted, images):  # noqa: F811
    region, other = clicks([0])[:2]
    not_this = replace(other, name=region.name, negative=True)
    before, after = fitted.find(images, region), fitted.find(images, [region, not_this])
    row, column = int(other.geometry[1]) // 8, int(other.geometry[0]) // 8
    assert after.maps["0"][row, column] < before.maps["0"][row, column]


def test_regions_of_several_classes_are_refused(fitted, images):  # noqa: F811
    with pytest.raises(InputError, match="find needs regions of one class, got brick, grass"):
        fitted.find(images, clicks([0])[:2])
    with pytest.raises(InputError, match="find needs regions of one class, got brick; give at"):
        fitted.find(images, replace(clicks([0])[0], negative=True))
