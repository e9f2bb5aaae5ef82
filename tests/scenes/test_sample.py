import numpy as np
import pytest
from PIL import Image

import primaps
from primaps.scenes.source import SceneError
from primaps.utils.errors import InputError
from tests.conftest import painted
from tests.scenes.conftest import bands, geotiff


@pytest.fixture
def scenes(tmp_path):
    pytest.importorskip("rasterio")
    half = bands(painted(1, 400, 300)[0])
    half[:, :, 200:] = 0
    (tmp_path / "scenes").mkdir()
    geotiff(tmp_path / "scenes" / "half.tif", half, nodata=0)
    geotiff(tmp_path / "scenes" / "small.tif", bands(painted(2, 200, 152)[0]))
    return tmp_path / "scenes"


def test_tiles_are_seeded_proportional_to_area_and_at_least_half_valid(scenes, tmp_path):
    found = primaps.scene_tiles(scenes, 20, 64, folder=tmp_path / "w")
    again = primaps.scene_tiles(scenes, 20, 64, folder=tmp_path / "w")
    other = primaps.scene_tiles(scenes, 20, 64, seed=1, folder=tmp_path / "w")
    assert found == again
    assert [f.key for f in found] != [f.key for f in other]
    assert len({f.key for f in found}) == 20
    of_half = [f for f in found if f.key.startswith("half/")]
    assert len(of_half) == round(20 * 400 * 300 / (400 * 300 + 200 * 152))
    whole = np.asarray(painted(1, 400, 300)[0])
    for file in of_half:
        top, left = map(int, file.key.partition("/")[2].split("-"))
        assert left <= 200 - 32  # at least half of it shows something
        shown = np.asarray(Image.open(file.source))[:, : 200 - left]
        assert (shown == whole[top : top + 64, left : min(200, left + 64)]).all()


def test_a_model_is_fitted_on_tiles_at_a_scale(scenes, tmp_path, colors):
    tiles = primaps.scene_tiles(scenes, 12, 64, scale=2, folder=tmp_path / "w")
    assert {Image.open(f.source).size for f in tiles} == {(64, 64)}
    quick = {"min_init_steps": 20, "mask_crf": False}
    model = primaps.PriMaPsEM(3, backbone=colors, patch_size=8, size=64, device="cpu", **quick)
    assert model.fit(tiles).prototypes_ is not None


def test_tiles_that_cannot_be_sampled_are_refused(scenes, tmp_path):
    with pytest.raises(InputError, match="less than a tile"):
        primaps.scene_tiles(scenes, 4, 256, folder=tmp_path / "w")
    with pytest.raises(InputError, match="at least 1"):
        primaps.scene_tiles(scenes, 0, 64, folder=tmp_path / "w")
    blank = geotiff(tmp_path / "blank.tif", np.zeros((3, 90, 90), np.uint8), nodata=0)
    with pytest.raises(SceneError, match="has only 0 of 3 tiles"):
        primaps.scene_tiles(blank, 3, 64, folder=tmp_path / "w")
