"""Scenes that cannot be processed are refused in one sentence, and no file changes."""

import contextlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import primaps
from primaps.scenes.readers import open_scene
from primaps.scenes.source import SceneError
from primaps.scenes.tiling import TilingOptions
from primaps.utils.errors import InputError, MissingPackageError, NotFoundError, PrimapsError
from tests.scenes.conftest import bands, geotiff

rasterio = pytest.importorskip("rasterio")


@pytest.fixture
def scene(picture, tmp_path):
    return geotiff(tmp_path / "scene.tif", bands(picture), compress="deflate")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.97])
@pytest.mark.parametrize("reader", ["rasterio", "tifffile"])
def test_a_truncated_tiff_is_one_sentence(model, picture, tmp_path, share, reader):
    path = tmp_path / "scene.tif"
    if reader == "rasterio":
        geotiff(path, bands(picture), compress="deflate")
    else:
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(path, np.asarray(picture), tile=(64, 64), photometric="rgb")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SceneError, match=r"scene\.tif is damaged or not in a supp") as error:
        primaps.predict_scene(model, path, tmp_path / "out.tif")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.tif").exists()
    assert len(path.read_bytes()) == int(len(data) * share)


def test_bands_that_the_file_does_not_declare_have_to_be_selected(model, picture, tmp_path):
    values = np.concatenate([bands(picture).astype(np.uint16) * 12] * 6)[:17]
    path = geotiff(tmp_path / "many.tif", values)
    with pytest.raises(SceneError, match="17 bands and does not declare red, green and blue"):
        primaps.predict_scene(model, path, tmp_path / "out.tif")
    with pytest.raises(InputError, match="bands 1 to 17, got 18"):
        primaps.predict_scene(model, path, tmp_path / "out.tif", bands=[1, 2, 18])
    with pytest.raises(InputError, match="names 2 bands"):
        primaps.predict_scene(model, path, tmp_path / "out.tif", bands=[1, 2])
    assert primaps.predict_scene(model, path, tmp_path / "out.tif", bands=[4, 5, 6])


def open_files() -> list[Path]:
    """Return the paths of open files; another thread may close one while they are listed."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(link.readlink())
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are not listed here")
@pytest.mark.parametrize("reader", ["rasterio", "tifffile"])
def test_a_refused_scene_is_closed(picture, tmp_path, reader):
    path = tmp_path / "scene.tif"
    if reader == "rasterio":
        geotiff(path, np.concatenate([bands(picture)] * 6)[:17])
    else:
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(path, np.asarray(picture)[..., [0] * 17], photometric="minisblack")
    for chosen in (None, [18]):
        with pytest.raises(PrimapsError, match="bands") as error:
            open_scene(path, chosen)
        assert path not in open_files(), error


def test_a_foreign_geopackage_is_refused_before_prediction(model, scene, tmp_path):
    import sqlite3

    other = tmp_path / "mine.gpkg"
    with contextlib.closing(sqlite3.connect(other)) as database:  # a GeoPackage without a layer
        database.execute("CREATE TABLE gpkg_contents (description TEXT)")
    before = other.read_bytes()
    with pytest.raises(PrimapsError, match=r"mine.gpkg was not written by primaps"):
        primaps.predict_scene(model, scene, tmp_path / "out.tif", polygons=other)
    assert other.read_bytes() == before
    assert not (tmp_path / "out.tif").exists()


def test_a_single_band_is_used_as_gray(model, picture, tmp_path):
    gray = np.asarray(picture.convert("L"))[None]
    primaps.predict_scene(model, geotiff(tmp_path / "g.tif", gray), tmp_path / "out.tif")
    found = np.asarray(Image.open(tmp_path / "out.tif"))
    assert (found == primaps.predict_image(model, picture.convert("L"))).all()


def test_floats_with_nan_and_scenes_of_nothing(model, picture, tmp_path):
    values = bands(picture).astype(np.float32) / 255
    values[:, :50] = np.nan
    path = geotiff(tmp_path / "f.tif", values)
    primaps.predict_scene(model, path, tmp_path / "out.tif")
    found = np.asarray(Image.open(tmp_path / "out.tif"))
    assert ((found == 255) == (np.arange(187) < 50)[:, None]).all()
    empty = geotiff(tmp_path / "e.tif", np.full_like(values, np.nan))
    with pytest.raises(SceneError, match="no valid pixel"):
        primaps.predict_scene(model, empty, tmp_path / "e-out.tif")
    blank = geotiff(tmp_path / "b.tif", np.zeros((3, 90, 90), np.uint8), nodata=0)
    primaps.predict_scene(model, blank, tmp_path / "b-out.tif")
    assert (np.asarray(Image.open(tmp_path / "b-out.tif")) == 255).all()


@pytest.mark.parametrize(
    ("tiling", "message"),
    [
        ({"size": 0}, "size is 0; it must be at least 1"),
        ({"crf_tile": 100}, "crf_tile is 100; it must be at least 168"),
        ({"tile_overlap": 40}, "half of the size"),
        ({"scale": 0}, "scale is 0; it must be at least 1e-06"),
        ({"scale": 1000}, "is larger than .*scene.tif"),
        ({"scale": 2, "mpp": 3}, "give one of them"),
        ({"stretch": (5, 5)}, "black value 5 must be below"),
        ({"bands": [0, 1, 2]}, "bands"),
    ],
)
def test_options_out_of_range_are_refused_in_one_sentence(model, scene, tmp_path, tiling, message):
    with pytest.raises(InputError, match=message):
        primaps.predict_scene(model, scene, tmp_path / "out.tif", **tiling)
    assert not (tmp_path / "out.tif").exists()


def test_mpp_needs_a_scene_with_a_ground_size(picture, scene, tmp_path):
    assert TilingOptions(mpp=2).view(open_scene(scene)).scale == 4
    picture.save(tmp_path / "a.png")
    with pytest.raises(InputError, match="does not declare its ground size"):
        TilingOptions(mpp=2).view(open_scene(tmp_path / "a.png"))
    degrees = geotiff(
        tmp_path / "d.tif", bands(picture), crs="EPSG:4326",
        transform=rasterio.Affine(1e-5, 0, 13, 0, -1e-5, 60),
    )  # fmt: skip
    assert open_scene(degrees).meters == pytest.approx(1.113 * 0.5**0.5, rel=0.01)


def test_files_that_are_missing_or_not_images_are_refused(tmp_path):
    (tmp_path / "text.tif").write_text("no image at all")
    with pytest.raises(SceneError, match="damaged or not in a supported image format"):
        open_scene(tmp_path / "text.tif")
    with pytest.raises(NotFoundError, match="does not exist"):
        open_scene(tmp_path / "none.tif")
    (tmp_path / "text.png").write_text("no image at all")
    with pytest.raises(PrimapsError, match="not an image"):
        open_scene(tmp_path / "text.png")


def test_a_volume_is_refused(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "v.tif", np.zeros((5, 6, 40, 50), np.uint8))
    with pytest.raises(SceneError, match="axes"):
        open_scene(tmp_path / "v.tif")


@pytest.mark.parametrize(("name", "extra"), [("rasterio", "geo"), ("tifffile", "slides")])
def test_the_error_about_a_missing_package_names_the_extra(
    picture, tmp_path, monkeypatch, name, extra
):
    if name == "rasterio":
        path = geotiff(tmp_path / "a.tif", bands(picture))
    else:
        path = tmp_path / "a.tif"
        picture.save(path)
    monkeypatch.setitem(sys.modules, name, None)  # an import raises ImportError
    with pytest.raises(MissingPackageError, match=rf"primaps\[{extra}\]"):
        open_scene(path)
