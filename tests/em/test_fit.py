"""Numbers of steps of a fit."""

import pytest

from primaps.config import Config
from primaps.em.fit import schedule


@pytest.mark.parametrize(
    ("images", "steps"),
    [(2975, (184, 4600)), (367, (184, 550)), (8, (184, 150)), (49629, (3100, 77500))],
)
def test_schedules(images, steps):
    assert schedule(Config(classes=27, recipe="paper"), images)[1:] == steps
