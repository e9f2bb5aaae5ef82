import pytest

from primaps.model import PriMaPsEM
from tests.test_model import QUICK


@pytest.fixture
def fitted(colors, painted_folder):
    return PriMaPsEM(3, backbone=colors, **QUICK).fit(painted_folder / "images")
