"""Polygons against outlines in memory, and as a GIS reads them."""

import numpy as np
import pytest

import primaps
from primaps.exchange.outlines import trace
from primaps.exchange.regions import parts
from primaps.scenes import outlines
from tests.scenes.conftest import bands, geotiff


def canonical(ring):
    points = [tuple(point) for point in ring.tolist()]
    at = points.index(min(points))
    return (*points[at:], *points[:at])


def regions(labels):
    found = outlines.outlines(lambda top, bottom: labels[top:bottom], *labels.shape, 255)
    return sorted(
        (r.label, r.pixels, canonical(r.rings[0]), *sorted(map(canonical, r.rings[1:])))
        for r in found
    )


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_strips_give_the_rings_of_the_whole(monkeypatch, rows):
    random = np.random.default_rng(rows)
    for trial in range(10):
        height, width = random.integers(1, 24, 2)
        labels = random.choice([0, 1, 255], (height, width), p=[0.5, 0.35, 0.15])
        monkeypatch.setattr(outlines, "STRIP_PIXELS", int(rows * width))
        wanted = []
        for k, left, top, mask in parts(labels, labels).boxes():
            rings = [canonical(ring.corners + np.array([left, top])) for ring in trace(mask)]
            wanted.append((k, int(mask.sum()), rings[0], *sorted(rings[1:])))
        assert regions(labels) == sorted(wanted), trial


def test_a_geopackage_has_valid_polygons_whose_area_is_that_of_the_pixels(
    model, picture, tmp_path, monkeypatch
):
    pyogrio, shapely = pytest.importorskip("pyogrio"), pytest.importorskip("shapely")
    features = pytest.importorskip("rasterio.features")
    monkeypatch.setattr(outlines, "STRIP_PIXELS", 250 * 30)  # regions reach over many strips
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
