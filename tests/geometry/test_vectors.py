import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings

from primaps.geometry.outlines import fill
from primaps.geometry.regions import connected_regions
from primaps.geometry.vectors import (
    Georeference,
    geo_module,
    label_polygons,
    layer_description,
    read_georeference,
    write_polygons,
)
from primaps.utils.errors import MissingPackageError
from tests.geometry.strategies import label_maps

shapely = pytest.importorskip("shapely")
rasterio = pytest.importorskip("rasterio")
features = pytest.importorskip("rasterio.features")
pyogrio = pytest.importorskip("pyogrio")


@settings(max_examples=200)
@given(label_maps)
def test_a_label_map_comes_back_from_its_polygons(labels):
    place = Georeference(rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_500_000))
    found = list(label_polygons(labels, 255, place))
    assert all(one.polygon.is_valid and one.polygon.exterior.is_ccw for one in found)
    back = np.full(labels.shape, 255, np.uint8)
    if found:
        shapes = [(one.polygon, one.label) for one in found]
        back = features.rasterize(shapes, labels.shape, 255, transform=place.transform)
    np.testing.assert_array_equal(back, labels)

    painted = np.full(labels.shape, 255, np.uint8)
    for one in label_polygons(labels, 255):
        rings = [np.asarray(ring.coords)[:-1, :2] * [1, -1] for ring in
                 (one.polygon.exterior, *one.polygon.interiors)]  # fmt: skip
        mask = fill(rings, *labels.shape)
        assert one.pixels == mask.sum()
        painted[mask] = one.label
    np.testing.assert_array_equal(painted, labels)
    regions = connected_regions(labels)
    assert sorted((one.label, one.pixels) for one in found) == sorted(
        zip(regions.classes.tolist(), regions.areas().tolist(), strict=True)
    )


def test_a_tiff_has_the_polygons_of_its_array(tmp_path):
    labels = np.random.default_rng(0).choice([0, 1, 255], (40, 30)).astype(np.uint8)
    place = Georeference(rasterio.Affine(0.3, 0.01, 4e5, 0.01, -0.3, 5.8e6), rasterio.CRS())
    size = {"height": 40, "width": 30, "count": 1, "dtype": "uint8"}
    with rasterio.open(tmp_path / "a.tif", "w", "GTiff", transform=place.transform, **size) as new:
        new.write(labels, 1)
    assert list(label_polygons(tmp_path / "a.tif", 255, place)) == list(
        label_polygons(labels, 255, place)
    )


def square(left):
    return shapely.box(left, 0, left + 1, 1)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
@pytest.mark.parametrize("epsg", [None, 4326, 32633])
@pytest.mark.parametrize("count", [0, 3, 8])
def test_batches_give_one_layer_and_identical_bytes(tmp_path, monkeypatch, suffix, epsg, count):
    monkeypatch.setattr("primaps.geometry.vectors.BATCH", 4)
    crs = rasterio.crs.CRS.from_epsg(epsg) if epsg else None
    contents = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}{suffix}"
        rows = ((square(i), i, f"name {i}") for i in range(count))
        write_polygons(path, "regions", {"class": np.int32, "name": object}, rows, crs, "about")
        contents.append(path.read_bytes())
        time.sleep(0.01)
    assert contents[0] == contents[1]
    info = pyogrio.read_info(path)
    assert info["features"] == count
    if count or suffix == ".gpkg":
        assert info["crs"] == (f"EPSG:{epsg}" if epsg else "EPSG:4326" if count and
                               suffix == ".geojson" else None)  # fmt: skip
        assert layer_description(path) == "about"
        _, _, shapes, (classes, names) = pyogrio.raw.read(path)
        assert classes.tolist() == list(range(count))
        assert list(names) == [f"name {i}" for i in range(count)]
        assert shapely.equals(shapely.from_wkb(shapes), [square(i) for i in range(count)]).all()


def test_the_date_is_the_current_one_again_after_writing(tmp_path):
    write_polygons(tmp_path / "a.gpkg", "regions", {}, [(square(0),)])
    assert pyogrio.get_gdal_config_option("OGR_CURRENT_DATE") is None


def test_a_file_that_is_not_a_geopackage_has_no_description(tmp_path):
    (tmp_path / "a.gpkg").write_bytes(b"text")
    assert layer_description(tmp_path / "a.gpkg") is None
    assert layer_description(tmp_path / "absent.gpkg") is None


@pytest.mark.parametrize(
    ("epsg", "step", "meters"), [(32633, 0.5, 0.5), (4326, 1e-5, 0.7872), (None, 0.5, None)]
)
def test_the_georeference_of_a_file_is_read(tmp_path, epsg, step, meters):
    transform = rasterio.Affine(step, 0, 10, 0, -step, 60)
    profile = {"driver": "GTiff", "height": 4, "width": 6, "count": 1, "dtype": "uint8"}
    crs = rasterio.crs.CRS.from_epsg(epsg) if epsg else None
    with rasterio.open(tmp_path / "a.tif", "w", transform=transform, crs=crs, **profile) as data:
        data.write(np.zeros((1, 4, 6), np.uint8))
    found = read_georeference(tmp_path / "a.tif")
    assert (found.transform, found.epsg) == (transform, epsg or 0)
    assert found.pixel_area == pytest.approx(step**2)
    size = found.meters_per_pixel(4, 6)
    assert size == (meters and pytest.approx(meters, rel=1e-3))


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyogrio", None)
    with pytest.raises(MissingPackageError, match=r"need pyogrio: pip install \"primaps\[geo\]\""):
        geo_module("pyogrio")
