"""The place of a scene on a map: ground control points, side files, and folders of scenes."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import primaps
from primaps.geometry.vectors import label_polygons, read_georeference
from primaps.results import OutputError
from primaps.scenes.readers import open_scene
from primaps.scenes.source import Box
from primaps.scenes.tiling import is_scene
from primaps.utils.errors import InputError
from tests.scenes.conftest import bands, geotiff

rasterio = pytest.importorskip("rasterio")
CASES = Path(__file__).parents[1] / "cases" / "scenes"
TRANSFORM = rasterio.Affine(10, 0, 500000, 0, -10, 4000000)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def copied(name: str, folder: Path) -> Path:
    """Copy a case with its side files."""
    for path in CASES.glob(f"{Path(name).stem}.*"):
        shutil.copy(path, folder)
    return folder / name


def test_ground_control_points_are_kept_and_place_polygons(model, tmp_path):
    pyogrio, shapely = pytest.importorskip("pyogrio"), pytest.importorskip("shapely")
    path, out = copied("gcps.tif", tmp_path), tmp_path / "classes.tif"
    with rasterio.open(path) as scene:
        points, crs = scene.gcps
        shape = scene.shape
    gpkg = tmp_path / "classes.gpkg"
    assert primaps.predict_scene(model, path, out, polygons=gpkg)
    with rasterio.open(out) as found:
        kept, kept_crs = found.gcps
        labels = found.read(1)
    assert kept_crs == crs == rasterio.crs.CRS.from_epsg(4326)
    for one, other in zip(points, kept, strict=True):
        assert (one.row, one.col, one.x, one.y) == (other.row, other.col, other.x, other.y)
    regions = pyogrio.raw.read(gpkg)
    assert "4326" in str(regions[0]["crs"])
    columns = list(regions[0]["fields"])
    polygons = [shapely.from_wkb(one) for one in regions[2]]
    # The points lie in the corners: the regions together cover what they span.
    corners = {(one.row, one.col): (one.x, one.y) for one in points}
    assert set(corners) == {(0, 0), (0, shape[1]), (shape[0], 0), shape}
    whole = shapely.Polygon([corners[0, 0], corners[0, shape[1]], corners[shape],
                             corners[shape[0], 0]])  # fmt: skip
    joined = shapely.union_all(polygons)
    assert shapely.symmetric_difference(joined, whole).area < 1e-6 * whole.area
    areas = regions[3][columns.index("area")]
    assert areas == pytest.approx([one.area for one in polygons])
    # Every region has the class of its pixels.
    fit = rasterio.transform.from_gcps(points)
    for polygon, k in zip(polygons, regions[3][columns.index("class")], strict=True):
        column, row = ~fit * polygon.representative_point().coords[0]
        assert labels[int(row), int(column)] == k


def test_points_of_a_curved_place_move_every_corner():
    pytest.importorskip("shapely")
    point = rasterio.control.GroundControlPoint
    from primaps.geometry.vectors import Georeference

    places = [(row, col, 100 + col + 0.01 * row * col, 50 - row + 0.02 * col**2)
              for row in (0, 5, 10) for col in (0, 6, 12)]  # fmt: skip
    points = tuple(point(*each) for each in places)
    place = Georeference(rasterio.transform.from_gcps(points), None, points)
    (region,) = label_polygons(np.ones((10, 12), np.uint8), 0, place)
    corners = {(round(x, 6), round(y, 6)) for x, y in region.polygon.exterior.coords}
    assert corners == {(100, 50), (112, 52.88), (113.2, 42.88), (100, 40)}


def test_points_that_place_nothing_are_refused(picture, tmp_path):
    point = rasterio.control.GroundControlPoint
    points = [point(0, 0, 1, 1), point(5, 5, 2, 2), point(9, 9, 3, 3)]
    path = geotiff(tmp_path / "a.tif", bands(picture), crs="EPSG:4326", transform=None, gcps=points)
    with pytest.raises(InputError, match=r"a\.tif: 3 ground control points do not determine"):
        open_scene(path)


def test_rational_polynomials_are_kept_and_polygons_refused(model, picture, tmp_path):
    zeros = [0.0] * 20
    line, sample, one = [0.0, 0, -1, *zeros[3:]], [0.0, 1, *zeros[2:]], [1.0, *zeros[1:]]
    rpcs = rasterio.rpc.RPC(
        height_off=0, height_scale=100, lat_off=48, lat_scale=0.1, line_den_coeff=one,
        line_num_coeff=line, line_off=90, line_scale=90, long_off=11, long_scale=0.1,
        samp_den_coeff=one, samp_num_coeff=sample, samp_off=120, samp_scale=120, err_bias=None,
        err_rand=None,
    )  # fmt: skip
    path = geotiff(tmp_path / "a.tif", bands(picture), crs=None, transform=None, rpcs=rpcs)
    assert primaps.predict_scene(model, path, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as found:
        assert found.rpcs.lat_off == 48
        assert found.rpcs.samp_num_coeff[1] == 1
    with pytest.raises(InputError, match="rational polynomial coefficients .*gdalwarp -rpc"):
        primaps.predict_scene(model, path, tmp_path / "out.tif", polygons=tmp_path / "out.gpkg")
    assert not (tmp_path / "out.gpkg").exists()


@pytest.mark.parametrize(("name", "epsg"), [("aux.tif", 32633), ("wld.tif", None)])
def test_reported_side_files_place_a_tiff(model, tmp_path, name, epsg):
    path = copied(name, tmp_path)
    assert primaps.predict_scene(model, path, tmp_path / "out.tif")
    with rasterio.open(path) as scene, rasterio.open(tmp_path / "out.tif") as found:
        assert found.transform == scene.transform == TRANSFORM
        assert found.crs == scene.crs
        assert (found.crs.to_epsg() if found.crs else None) == epsg


@pytest.mark.parametrize("side", [".tfw", ".tifw", ".TFW", ".wld", ".tif.aux.xml"])
def test_every_side_file_of_a_tiff_is_found(picture, tmp_path, side):
    path = tmp_path / "a.b.tif"
    picture.save(path)
    assert open_scene(path).georeference is None
    _write_side(path, side)
    assert open_scene(path).georeference.transform == TRANSFORM
    whole = Box(0, picture.height, 0, picture.width)
    assert (open_scene(path).read(0, whole)[0] == bands(picture)).all()


def _write_side(path: Path, side: str) -> None:
    if side.endswith("xml"):
        content = (CASES / "aux.tif.aux.xml").read_text()
        path.with_name(path.name + ".aux.xml").write_text(content)
    else:
        path.with_suffix(side).write_text((CASES / "wld.wld").read_text())


@pytest.mark.parametrize(
    ("name", "side"),
    [("a.jpg", ".jgw"), ("a.jpg", ".wld"), ("a.jpeg", ".jpegw"), ("a.jpeg", ".jgw"),
     ("a.png", ".pgw"), ("a.png", ".aux.xml"), ("a.bmp", ".bpw")],
)  # fmt: skip
def test_side_files_place_a_plain_image(model, picture, tmp_path, name, side):
    path, out = tmp_path / name, tmp_path / "out.tif"
    picture.save(path)
    _write_side(path, side)
    assert primaps.predict_scene(model, path, out)
    with rasterio.open(out) as found:
        assert found.transform == TRANSFORM
        assert (found.crs is not None) == side.endswith("xml")
        labels = found.read(1)
    assert (labels == primaps.predict_image(model, Image.open(path))).all()


def test_a_placed_image_is_not_rotated_by_exif(picture, tmp_path):
    path, exif = tmp_path / "a.jpg", Image.Exif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)
    assert open_scene(path).sizes == ((250, 187),)
    _write_side(path, ".jgw")
    assert open_scene(path).sizes == ((187, 250),)  # as the side file counts pixels


def test_statistics_beside_an_image_are_no_place(picture, tmp_path, monkeypatch):
    picture.save(tmp_path / "a.png")
    (tmp_path / "a.png.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><Metadata><MDI key="STATISTICS_MEAN">3</MDI>'
        "</Metadata></PAMRasterBand></PAMDataset>"
    )
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    assert open_scene(tmp_path / "a.png").georeference is None


def test_statistics_that_qgis_adds_do_not_stop_the_same_command(model, picture, tmp_path):
    path, out = geotiff(tmp_path / "scene.tif", bands(picture)), tmp_path / "classes.tif"
    names = ["water & ice", "<trees>", "Straße"]
    assert primaps.predict_scene(model, path, out, names=names)
    side = tmp_path / "classes.tif.aux.xml"
    before = side.read_bytes()
    with rasterio.open(out) as found:
        found.statistics(1)  # GDAL writes it to the side file
    if side.read_bytes() == before:
        text = before.decode().replace(
            "</CategoryNames>", '</CategoryNames><Metadata><MDI key="STATISTICS_MEAN">1</MDI>'
            "</Metadata>")  # fmt: skip
        side.write_text(text, "utf-8")
    changed = side.read_bytes()
    assert b"STATISTICS" in changed
    assert not primaps.predict_scene(model, path, out, names=names)
    assert side.read_bytes() == changed
    out.rename(tmp_path / "old.tif")
    assert primaps.predict_scene(model, path, out, names=names)
    assert side.read_bytes() == changed
    out.unlink()
    side.write_text("<PAMDataset/>")
    with pytest.raises(OutputError, match=r"classes\.tif\.aux\.xml was not written by primaps"):
        primaps.predict_scene(model, path, out, names=names)
    assert side.read_text() == "<PAMDataset/>"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["photos/*.jpg"], r"photos/\*\.jpg is a pattern of several files"),
        (["a.jpg", "b.jpg"], "there are 2 inputs"),
        (["."], r"\. is a folder"),
        (["a.tar"], r"a\.tar is an archive or a URL"),
    ],
)
def test_many_images_with_the_output_of_one_scene_are_refused(inputs, message, tmp_path):
    out = tmp_path / "x.tif"
    with pytest.raises(
        InputError, match=f"--out .*x.tif is the result of one scene, but {message}"
    ):
        is_scene(inputs, out)
    assert not is_scene(inputs, tmp_path / "x")
    out.mkdir()
    assert not is_scene(inputs, out)


def test_a_name_with_brackets_is_one_scene(picture, tmp_path):
    picture.save(tmp_path / "a[1].png")
    assert is_scene([str(tmp_path / "a[1].png")], tmp_path / "x.tif")


def test_a_folder_of_scenes_keeps_every_place(model, picture, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "maps"
    photos.mkdir()
    geotiff(photos / "a.tif", bands(picture))
    geotiff(photos / "b.tiff", bands(picture), crs="EPSG:25832",
            transform=rasterio.Affine(2, 0, 7e5, 0, -2, 5.5e6))  # fmt: skip
    copied("gcps.tif", photos)
    copied("aux.tif", photos)
    picture.save(photos / "c.jpg")
    picture.save(photos / "d.png")
    _write_side(photos / "d.png", ".pgw")
    done = primaps.predict_files(model, photos, out)
    names = ["a.tif", "aux.tif", "b.tif", "c.png", "d.tif", "gcps.tif"]
    assert sorted(path.name for path in done.written) == names
    assert sorted(p.name for p in out.iterdir() if p.suffix in (".png", ".tif")) == names
    for image in sorted(photos.iterdir()):
        if image.suffix in (".tif", ".tiff", ".png"):
            place, found = read_georeference(image), read_georeference(out / f"{image.stem}.tif")
            assert place is not None
            assert (found.transform, found.crs) == (place.transform, place.crs)
            assert len(found.gcps) == len(place.gcps) == (4 if image.stem == "gcps" else 0)
    wanted = model.predict(picture)
    with rasterio.open(out / "a.tif") as one:
        assert one.nodata == 255
        assert one.colormap(1)[0] == (243, 195, 0, 255)
        assert (one.read(1) == np.asarray(wanted)).all()
    again = primaps.predict_files(model, photos, out)
    assert sorted(path.name for path in again.kept) == names
    assert not again.written
