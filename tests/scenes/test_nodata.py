"""Nodata that a scene does not declare is found, said once, and masked by an option."""

import numpy as np
import pytest
from PIL import Image

import primaps
from primaps.scenes.nodata import undeclared_nodata
from primaps.scenes.readers import open_scene, open_tiff
from primaps.utils.errors import InputError
from tests.conftest import Colors, painted
from tests.scenes.conftest import bands, geotiff

rasterio = pytest.importorskip("rasterio")
HEIGHT, WIDTH = 192, 256


@pytest.fixture
def values():
    return bands(painted(1, WIDTH, HEIGHT)[0]).astype(np.float32) + 1


@pytest.fixture
def gap():
    """A quarter of the scene."""
    found = np.zeros((HEIGHT, WIDTH), bool)
    found[:96, :128] = True
    return found


@pytest.mark.parametrize("nodata", [-9999, 0, 1e6])
@pytest.mark.parametrize("tiled", [True, False])
def test_a_quarter_without_data_is_found(values, gap, tmp_path, nodata, tiled):
    layout = {} if tiled else {"tiled": False, "blockxsize": None, "blockysize": None}
    path = geotiff(tmp_path / "a.tif", np.where(gap, np.float32(nodata), values), **layout)
    sentence, number = undeclared_nodata(open_scene(path)), f"{nodata:.9g}"
    assert f"a.tif: about 20% of the border has the value {number}, which is not de" in sentence
    assert sentence.endswith(f"pass --nodata {number}")


def test_values_of_the_file_are_named_whatever_the_colors(gap, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    gray = np.asarray(painted(1, WIDTH, HEIGHT)[0].convert("L"))
    inverted = np.where(gap, 255, gray // 2).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", inverted, photometric="miniswhite")
    assert undeclared_nodata(open_tiff(tmp_path / "a.tif")).endswith("--nodata 255")
    few = np.where(gap, 15, gray // 32).astype(np.uint8)
    path = geotiff(tmp_path / "b.tif", few[None], nbits=4)
    assert undeclared_nodata(open_scene(path)).endswith("--nodata 15")


def test_scenes_without_such_a_value_say_nothing(values, gap, tmp_path):
    whole = geotiff(tmp_path / "a.tif", values)
    declared = geotiff(tmp_path / "b.tif", np.where(gap, np.float32(-1), values), nodata=-1)
    inside = np.zeros_like(gap)
    inside[80:110, 80:160] = True  # not at the border: perhaps a lake
    hole = geotiff(tmp_path / "c.tif", np.where(inside, np.float32(0), values))
    middle = values.copy()
    middle[:, gap] = 100  # a value between others
    common = geotiff(tmp_path / "d.tif", middle)
    empty = geotiff(tmp_path / "e.tif", np.zeros_like(values))
    for path in (whole, declared, hole, common, empty):
        assert undeclared_nodata(open_scene(path)) is None, path.name


def test_nodata_is_said_once_and_masked_in_the_result(model, values, gap, tmp_path):
    path = geotiff(tmp_path / "a.tif", np.where(gap, np.float32(-9999), values))
    said: list[str] = []
    primaps.predict_scene(model, path, tmp_path / "plain.tif", log=said.append)
    assert len(said) == 1
    assert "pass --nodata -9999" in said[0]
    assert not (np.asarray(Image.open(tmp_path / "plain.tif")) == 255).any()
    declared = geotiff(tmp_path / "b.tif", np.where(gap, np.float32(-9999), values), nodata=-9999)
    primaps.predict_scene(model, declared, tmp_path / "known.tif", log=said.append)
    options = {"log": said.append, "nodata": -9999}
    primaps.predict_scene(model, path, tmp_path / "masked.tif", **options)
    assert len(said) == 1
    masked = np.asarray(Image.open(tmp_path / "masked.tif"))
    assert ((masked == 255) == gap).all()
    assert (masked == np.asarray(Image.open(tmp_path / "known.tif"))).all()
    with pytest.raises(InputError, match="nodata applies to scenes"):
        primaps.predict_image(model, painted(1, 64, 64)[0], nodata=0)
    with pytest.raises(InputError, match="alpha applies to scenes"):
        primaps.predict_image(model, painted(1, 64, 64)[0], alpha=False)


def test_propose_and_fit_mask_the_same_pixels(values, gap, tmp_path):
    path = geotiff(tmp_path / "a.tif", np.where(gap, np.float32(-9999), values))
    said: list[str] = []
    network = primaps.Backbone(Colors(), 8, "colors")
    options = {"backbone": network, "size": 64, "mask_crf": False, "log": said.append}
    primaps.propose_scene(path, tmp_path / "m.tif", nodata=-9999, **options)
    with rasterio.open(tmp_path / "m.tif") as found:
        assert (found.read(1)[gap] == 0).all()
    assert not said
    tiles = primaps.scene_tiles(
        path, 6, 48, folder=tmp_path / "tiles", log=said.append, nodata=-9999
    )
    for tile in tiles:
        pixels = np.asarray(Image.open(tile.source))
        assert (pixels == (124, 116, 104)).all(2).mean() <= 0.5
    primaps.scene_tiles(path, 2, 48, folder=tmp_path / "tiles", log=said.append)
    assert len(said) == 1


def test_no_alpha_keeps_every_pixel_in_the_result(model, tmp_path):
    picture, _ = painted(1, WIDTH, HEIGHT)
    infrared = np.zeros((1, HEIGHT, WIDTH), np.uint8)
    infrared[:, :, 100:] = 90
    path = geotiff(tmp_path / "a.tif", np.concatenate([bands(picture), infrared]),
                   photometric="RGB", alpha="YES")  # fmt: skip
    primaps.predict_scene(model, path, tmp_path / "masked.tif")
    assert (np.asarray(Image.open(tmp_path / "masked.tif")) == 255)[:, :100].all()
    primaps.predict_scene(model, path, tmp_path / "all.tif", alpha=False)
    found = np.asarray(Image.open(tmp_path / "all.tif"))
    assert (found == primaps.predict_image(model, picture)).all()
