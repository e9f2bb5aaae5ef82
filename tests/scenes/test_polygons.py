"""The GeoPackage of a scene, as a GIS reads it."""

import numpy as np
import pytest

import primaps
from tests.scenes.conftest import bands, geotiff


def test_polygons_are_valid_and_have_the_area_of_their_pixels(model, picture, tmp_path):
    pyogrio, shapely = pytest.importorskip("pyogrio"), pytest.importorskip("shapely")
    features = pytest.importorskip("rasterio.features")
    values = bands(picture).astype(np.uint16)
    values[:, 30:60, 100:140] = 0
    path = geotiff(tmp_path / "scene.tif", values, nodata=0)
    out, gpkg = tmp_path / "classes.tif", tmp_path / "classes.gpkg"
    names = ["a", "b", "c"]
    assert primaps.predict_scene(model, path, out, names=names, polygons=gpkg)
    about, _, shapes, columns = pyogrio.raw.read(gpkg)
    rows = dict(zip(about["fields"], columns, strict=True))
    found = shapely.from_wkb(shapes)
    assert about["crs"] == "EPSG:32633"
    assert shapely.is_valid(found).all()
    assert np.allclose(shapely.area(found), rows["area"])
    assert np.allclose(rows["area"], rows["pixels"] * 0.25)
    import rasterio

    with rasterio.open(out) as data:
        labels = data.read(1)
        other = [
            (int(value), shapely.geometry.shape(shape))
            for shape, value in features.shapes(labels, labels != 255, 4, data.transform)
        ]
    assert len(found) == len(other)
    for k in range(3):
        assert rows["pixels"][rows["class"] == k].sum() == (labels == k).sum()
        ours = shapely.union_all(found[rows["class"] == k])
        theirs = shapely.union_all([shape for value, shape in other if value == k])
        assert ours.symmetric_difference(theirs).area < 1e-6
    assert set(rows["name"]) == set(names)
    before = gpkg.read_bytes()
    assert not primaps.predict_scene(model, path, out, names=names, polygons=gpkg)
    assert gpkg.read_bytes() == before
