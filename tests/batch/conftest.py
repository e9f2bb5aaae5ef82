import pytest

from primaps.backbones.load import load_backbone
from primaps.model import PriMaPsEM
from tests.test_model import QUICK


@pytest.fixture
def network(colors):
    return load_backbone(colors, device="cpu", patch_size=8)


@pytest.fixture
def fitted(network, painted_folder):
    return PriMaPsEM(3, backbone=network, **QUICK).fit(painted_folder / "images")
