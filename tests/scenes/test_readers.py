"""Every reader returns the same pixels, for every layout of the file."""

import numpy as np
import pytest
from PIL import Image

from primaps.scenes.readers import (
    GDAL_TAGS,
    in_memory,
    open_geotiff,
    open_scene,
    open_tiff,
    tiff_tags,
)
from primaps.scenes.source import Box
from primaps.scenes.view import View, stretch_limits
from tests.scenes.conftest import bands, geotiff

BOX = Box(37, 141, 13, 203)


@pytest.fixture(scope="module")
def noise():
    random = np.random.default_rng(0)
    return random.integers(0, 4000, (187, 250, 3)).astype(np.uint16)


def part_of(values, box=BOX):
    return values[box.top : box.bottom, box.left : box.right].transpose(2, 0, 1)


LAYOUTS = {
    "strip": {},
    "strips": {"rowsperstrip": 20, "compression": "zlib"},
    "tiles": {"tile": (64, 80), "compression": "zlib"},
    "predictor": {"tile": (64, 64), "compression": "zlib", "predictor": True},
    "planes": {"tile": (64, 64), "planarconfig": "separate"},
    "plane strips": {"planarconfig": "separate"},
    "plane deflated strips": {
        "planarconfig": "separate", "rowsperstrip": 9, "compression": "zlib"},
    "big": {"bigtiff": True, "tile": (64, 64)},
    "big-endian": {"byteorder": ">"},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tiff_layout_returns_the_same_pixels(noise, tmp_path, layout):
    tifffile = pytest.importorskip("tifffile")
    planes = LAYOUTS[layout].get("planarconfig") == "separate"
    values = noise.transpose(2, 0, 1) if planes else noise
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="rgb", **LAYOUTS[layout])
    scene = open_tiff(path)
    found, valid = scene.read(0, BOX)
    assert (found == part_of(noise)).all()
    assert valid.all()
    assert not scene.eight_bit
    scene.close()
    turned = open_tiff(path, [3, 1, 2])
    assert (turned.read(0, BOX)[0] == part_of(noise)[[2, 0, 1]]).all()
    turned.close()


def test_rasterio_and_tifffile_return_the_same_pixels(noise, tmp_path):
    pytest.importorskip("tifffile")
    path = geotiff(tmp_path / "a.tif", noise.transpose(2, 0, 1), photometric="RGB")
    one, other = open_geotiff(path), open_tiff(path)
    assert (one.read(0, BOX)[0] == other.read(0, BOX)[0]).all()
    assert one.sizes == other.sizes == ((187, 250),)
    assert one.meters == 0.5
    assert open_scene(path).georeference is not None


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_georeference_is_detected_by_tiff_tags(tmp_path, order, big):
    tifffile = pytest.importorskip("tifffile")
    options = {"byteorder": order, "bigtiff": big, "photometric": "minisblack"}
    nodata = [(42113, "s", 0, "0", True)]
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((9, 8), np.uint8), **options)
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((9, 8), np.uint8), extratags=nodata, **options)
    for name, tagged in (("a.tif", False), ("b.tif", True)):
        with tifffile.TiffFile(tmp_path / name) as known, (tmp_path / name).open("rb") as file:
            found = tiff_tags(file)
            assert found == {tag.code for tag in known.pages[0].tags}
        assert found.isdisjoint(GDAL_TAGS) != tagged
    assert open_scene(tmp_path / "a.tif").sizes == ((9, 8),)


def test_a_pyramid_is_read_at_the_smallest_sufficient_level(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    levels = [np.full((512 >> i, 512 >> i, 3), 40 * i, np.uint8) for i in range(4)]
    path = tmp_path / "slide.svs"
    with tifffile.TiffWriter(path) as file:
        options = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
        file.write(levels[0], subifds=3, description="Aperio\n|MPP = 0.25", **options)
        for level in levels[1:]:
            file.write(level, subfiletype=1, **options)
    scene = open_scene(path)
    assert scene.sizes == ((512, 512), (256, 256), (128, 128), (64, 64))
    assert scene.meters == pytest.approx(0.25e-6)
    for scale, level in ((1, 0), (1.9, 0), (2, 1), (5, 2), (8, 3), (20, 3)):
        colors, _ = View(scene, scale).rows(0, 4)
        assert (colors == 40 * level).all(), scale


def test_overviews_of_a_geotiff_are_used(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    path = geotiff(tmp_path / "a.tif", np.zeros((3, 256, 256), np.uint8))
    with rasterio.open(path, "r+") as data:
        data.build_overviews([2, 4])
    scene = open_scene(path)
    assert scene.sizes == ((256, 256), (128, 128), (64, 64))
    assert View(scene, 4.5).level == 2


def test_alpha_masks_nodata_and_nan_make_pixels_invalid(tmp_path):
    pytest.importorskip("rasterio")
    random = np.random.default_rng(1)
    gap = np.zeros((100, 90), bool)
    gap[20:60, 10:50] = True
    values = random.integers(1, 250, (3, 100, 90))
    alpha = np.where(gap, 0, 255)[None]
    rgba = np.concatenate([values, alpha]).astype(np.uint8)
    floats = np.where(gap, np.nan, values).astype(np.float32)
    zeros = np.where(gap, 0, values).astype(np.uint16)
    zeros[1] = 0  # a band that is zero everywhere does not make pixels invalid
    files = [
        geotiff(tmp_path / "a.tif", rgba, photometric="RGB", alpha="YES"),
        geotiff(tmp_path / "b.tif", floats),
        geotiff(tmp_path / "c.tif", zeros, nodata=0),
    ]
    for path in files:
        scene = open_scene(path)
        assert not scene.all_valid
        assert (scene.read(0, Box(0, 100, 0, 90))[1] == ~gap).all(), path.name
        colors, valid = View(scene, 1.0, stretch_limits(scene)).rows(0, 100)
        assert (colors[gap] == (124, 116, 104)).all()
        assert (valid == ~gap).all()
        scene.close()


def test_palettes_and_miniswhite_become_colors(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    table = np.zeros((3, 256), np.uint16)
    table[:, :3] = np.array([[255, 0, 9], [0, 255, 8], [7, 0, 255]]).T * 257
    tifffile.imwrite(tmp_path / "p.tif", indices, photometric="palette", colormap=table)
    tifffile.imwrite(tmp_path / "w.tif", indices, photometric="miniswhite")
    found = open_scene(tmp_path / "p.tif").read(0, Box(0, 2, 0, 2))[0]
    wanted = [[[255, 0, 9], [0, 255, 8]], [[7, 0, 255], [0, 255, 8]]]
    assert found.transpose(1, 2, 0).tolist() == wanted
    assert open_scene(tmp_path / "w.tif").read(0, Box(0, 2, 0, 2))[0].tolist() == [
        [[255, 254], [253, 254]]
    ]


@pytest.mark.parametrize("scale", [1.0, 2.0, 2.6, 0.7])
def test_a_piece_of_a_view_equals_the_same_part_of_the_whole(scale):
    random = np.random.default_rng(2)
    small = random.integers(0, 256, (20, 25, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((250, 187), Image.Resampling.BICUBIC)
    view = View(in_memory(image), scale)
    whole, _ = view.piece(Box(0, view.height, 0, view.width))
    part, _ = view.piece(Box(11, 40, 17, 60))
    assert np.abs(part.astype(int) - whole[11:40, 17:60]).max() <= 1
    if scale == 2:
        plain = np.asarray(image.reduce(2)).astype(int)
        assert np.abs(whole[5:80, 5:-5].astype(int) - plain[5:80, 5:-5]).mean() < 4


def test_the_stretch_is_one_for_the_scene_and_seeded(tmp_path):
    ramp = np.linspace(100, 3100, 800 * 900).reshape(1, 800, 900).astype(np.uint16)
    values = np.concatenate([ramp, 2 * ramp, ramp])
    path = geotiff(tmp_path / "a.tif", values)
    scene = open_scene(path)
    limits = stretch_limits(scene)
    assert limits.tolist() == stretch_limits(scene).tolist()
    assert limits.tolist() != stretch_limits(scene, seed=1).tolist()
    exact = np.percentile(values.reshape(3, -1), (2, 98), axis=1).T
    assert np.abs(limits - exact).max() < 0.1 * 6000
    assert stretch_limits(scene, limits=(0, 3000)).tolist() == [[0, 3000]] * 3
    view = View(scene, 1.0, limits)
    rows = [view.rows(top, top + 100)[0] for top in range(0, 800, 100)]
    assert (np.diff(np.concatenate(rows)[:, 450].astype(int), axis=0) >= 0).all()


def test_eight_bit_values_are_not_stretched(picture, tmp_path):
    scene = open_scene(geotiff(tmp_path / "a.tif", bands(picture)))
    assert stretch_limits(scene) is None
    assert (View(scene).rows(0, 187)[0] == np.asarray(picture)).all()
