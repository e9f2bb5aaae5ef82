import numpy as np
import pytest
from PIL import Image

import primaps
from primaps.backbones.load import load_backbone
from primaps.scenes.propose import agreeing
from tests.conftest import Colors, painted
from tests.scenes.conftest import bands, geotiff


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(Colors(), "cpu", 8)


def labels_of(path):
    return np.asarray(Image.open(path))


def test_masks_that_agree_on_the_overlap_become_one(backbone, tmp_path):
    pytest.importorskip("rasterio")
    shades = np.repeat([[[220, 40, 40]], [[40, 40, 220]]], 120, 0)  # two stripes over all tiles
    noise = np.random.default_rng(0).integers(-6, 7, (240, 400, 3))
    picture = Image.fromarray((shades + noise).clip(0, 255).astype(np.uint8))
    path = geotiff(tmp_path / "a.tif", bands(picture))
    look = {"size": 128, "tile_overlap": 48, "mask_crf": False}
    count = primaps.propose_scene(path, tmp_path / "out.tif", backbone=backbone, **look)
    found = labels_of(tmp_path / "out.tif")
    assert found.shape == (240, 400)
    assert set(np.unique(found)) - {0} == set(range(1, count + 1))
    top, bottom = np.unique(found[10:100]), np.unique(found[140:230])
    assert len(top) == len(bottom) == 1
    assert top != bottom
    assert primaps.propose_scene(path, tmp_path / "out.tif", backbone=backbone, **look) is None


def test_an_interrupted_run_resumes_to_identical_masks(backbone, tmp_path):
    pytest.importorskip("rasterio")
    values = bands(painted(4, 256, 320)[0])
    values[:, 100:150, 30:90] = 0
    path = geotiff(tmp_path / "a.tif", values, nodata=0)
    look = {"backbone": backbone, "size": 96, "tile_overlap": 32, "mask_crf": False, "scale": 1.5}
    count = primaps.propose_scene(path, tmp_path / "whole.tif", **look)
    seen = 0

    def stop(stage, done, total, figures):
        nonlocal seen
        seen += 1
        if seen in (1, 3, 4, 6):
            raise KeyboardInterrupt

    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            primaps.propose_scene(path, tmp_path / "parts.tif", progress=stop, **look)
    assert primaps.propose_scene(path, tmp_path / "parts.tif", **look) == count > 3
    assert (tmp_path / "parts.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert (labels_of(tmp_path / "whole.tif")[100:150, 30:90] == 0).all()


def test_masks_agree_by_their_iou():
    one = np.array([[1, 1, 1, 2, 2, 0]])
    assert agreeing(one, np.array([[4, 4, 4, 4, 5, 5]])) == [[1, 4]]  # 3 of 4, and 1 of 3
    assert agreeing(one[:, :0], one[:, :0]) == []
