"""Written class maps are read by other tools."""

import importlib.util
import warnings

import numpy as np
import pytest
from PIL import Image

import primaps
from tests.scenes.conftest import bands, geotiff

NAMES = ["water & ice", "<trees>", "Straße"]


def test_a_geotiff_has_georeference_colors_and_names(model, picture, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    path = geotiff(tmp_path / "scene.tif", bands(picture))
    out = tmp_path / "classes.tif"
    assert primaps.predict_scene(model, path, out, names=NAMES)
    with rasterio.open(path) as scene, rasterio.open(out) as found:
        assert found.crs == scene.crs
        assert found.transform == scene.transform
        assert found.shape == scene.shape
        assert found.nodata == 255
        assert found.dtypes == ("uint8",)
        assert found.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert found.colormap(1)[0] == (243, 195, 0, 255)
        assert found.colormap(1)[255] == (0, 0, 0, 0)
        assert [found.tags(1)[f"CLASS_{k}"] for k in range(3)] == NAMES
        labels = found.read(1)
        from rasterio import shutil

        shutil.copy(found, tmp_path / "seen.vrt", driver="VRT")
    assert (labels == primaps.predict_image(model, picture)).all()
    # GDAL reads the class names from the side file.
    text = (tmp_path / "seen.vrt").read_text("utf-8")
    assert "<Category>water &amp; ice</Category>" in text
    assert "Straße" in text
    assert not list(tmp_path.glob(".*"))


def test_the_georeference_of_the_scene_is_kept_or_absent(model, picture, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    path = geotiff(tmp_path / "a.tif", bands(picture), crs=None, transform=None)
    primaps.predict_scene(model, path, tmp_path / "out.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(tmp_path / "out.tif") as found:
            assert found.crs is None
            assert found.transform.is_identity
    wild = rasterio.crs.CRS.from_proj4("+proj=laea +lat_0=12 +lon_0=34 +units=m")
    path = geotiff(tmp_path / "b.tif", bands(picture), crs=wild)
    primaps.predict_scene(model, path, tmp_path / "b-out.tif")
    with rasterio.open(tmp_path / "b-out.tif") as found:
        assert found.crs == wild


def test_without_rasterio_a_plain_tiff_is_written(model, picture, tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "scene.tif", np.asarray(picture), tile=(64, 64), photometric="rgb")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "rasterio" else found(name)
    )
    out = tmp_path / "classes.tif"
    assert primaps.predict_scene(model, tmp_path / "scene.tif", out, names=NAMES)
    assert not primaps.predict_scene(model, tmp_path / "scene.tif", out, names=NAMES)
    with tifffile.TiffFile(out) as file:
        page = file.pages[0]
        assert page.is_tiled
        assert page.photometric.name == "PALETTE"
        assert "Stra" in page.description
        labels = page.asarray()
    assert (labels == primaps.predict_image(model, picture)).all()
    assert Image.open(out).convert("RGB").getpixel((0, 0)) in {(243, 195, 0), (135, 86, 146),
                                                               (243, 132, 0)}  # fmt: skip
