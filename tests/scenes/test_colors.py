"""Both readers show the right colors, for every color space and depth of TIFF."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from primaps.scenes.readers import open_geotiff, open_scene, open_tiff
from primaps.scenes.source import Box, SceneError
from primaps.scenes.view import View, stretch_limits
from primaps.utils.errors import InputError
from tests.scenes.conftest import geotiff

rasterio, tifffile = pytest.importorskip("rasterio"), pytest.importorskip("tifffile")
CASES = Path(__file__).parents[1] / "cases" / "scenes"
BASE = np.load(CASES / "base.npy")
GRAY = np.asarray(Image.fromarray(BASE).convert("L"))
WHOLE = Box(0, GRAY.shape[0], 0, GRAY.shape[1])
FILES = {"rasterio": open_geotiff, "tifffile": open_tiff}


@pytest.fixture(params=FILES)
def reader(request):
    return FILES[request.param]


def seen(scene, stretch=None) -> np.ndarray:
    """What the network gets: 8-bit RGB (H, W, 3)."""
    colors, valid = View(scene, 1.0, stretch_limits(scene, limits=stretch)).rows(0, scene.height)
    assert valid.all()
    scene.close()
    return colors


def near(found, wanted, most, mean=1.0):
    """Whether colors differ by at most ``most``, and by ``mean`` on average."""
    differ = np.abs(found.astype(int) - wanted.astype(int))
    assert differ.max() <= most, differ.max()
    assert differ.mean() <= mean, differ.mean()


def like(found, wanted):
    """Whether stretched colors follow the wanted ones."""
    for one, other in zip(np.atleast_3d(found).T, np.atleast_3d(wanted).T, strict=False):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99


def tiff(path: Path, values: np.ndarray, **options) -> Path:
    tifffile.imwrite(path, values, metadata=None, **options)
    return path


def plain(path: Path, values: np.ndarray, **options) -> Path:
    """Write bands (B, H, W) by GDAL without a georeference."""
    return geotiff(path, values, crs=None, transform=None, **options)


def by_hand(path: Path, width: int, height: int, data: bytes, tags: dict) -> Path:
    """Write a TIFF of one strip; ``tags`` are numbers by code, shorts except of code 532."""
    tags = {256: (width,), 257: (height,), 258: (8,), 259: (1,), 278: (height,)} | tags
    lengths = {273: 0, 279: len(data)}
    begin = 8 + 2 + 12 * (len(tags) + 2) + 4
    tail, entries = b"", []
    for code in sorted({*tags, *lengths}):
        if code in lengths:
            entries.append(struct.pack("<HHLL", code, 4, 1, lengths[code]))
            continue
        kind, unit, parts = (5, "L", 2) if code == 532 else (3, "H", 1)
        packed = struct.pack(f"<{len(tags[code])}{unit}", *tags[code])
        entry = struct.pack("<HHL", code, kind, len(tags[code]) // parts)
        if len(packed) > 4:
            entry += struct.pack("<L", begin + len(tail))
            tail += packed
        else:
            entry += packed.ljust(4, b"\0")
        entries.append(entry)
    at = begin + len(tail)
    entries = [struct.pack("<HHLL", 273, 4, 1, at) if e[:2] == b"\x11\x01" else e for e in entries]
    head = struct.pack("<2sHLH", b"II", 42, 8, len(entries))
    path.write_bytes(head + b"".join(entries) + bytes(4) + tail + data)
    return path


def cmyk(largest: int) -> np.ndarray:
    """The image as cyan, magenta, yellow and black."""
    colors = BASE / 255
    black = 1 - colors.max(2)
    inks = [(1 - colors[..., i] - black) / np.maximum(1 - black, 1e-6) for i in range(3)]
    values = np.stack([*inks, black], 2) * largest + 0.5
    return values.astype(np.uint8 if largest == 255 else np.uint16)


def lab() -> np.ndarray:
    """The image as CIELAB in 8 bits, by Pillow."""
    spaces = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.fromarray(BASE), *spaces, outputMode="LAB")
    return np.asarray(image)


YCBCR = np.asarray(Image.fromarray(BASE).convert("YCbCr"))
TILES = {"tile": (64, 80), "compression": "zlib"}


@pytest.mark.parametrize("name", ["aperio33003_ycbcr_rgb.svs", "t_cmyk.tif", "t_ycbcr_lzw.tif"])
def test_reported_colors_are_those_of_the_image(name):
    near(seen(open_scene(CASES / name)), BASE, most=6)


@pytest.mark.parametrize("options", [{}, TILES, {"planarconfig": "separate"}])
@pytest.mark.parametrize("largest", [255, 65535])
def test_cmyk_becomes_rgb(reader, tmp_path, largest, options):
    values = cmyk(largest)
    values = values.transpose(2, 0, 1).copy() if "planarconfig" in options else values
    path = tiff(tmp_path / "a.tif", values, photometric="separated", **options)
    near(seen(reader(path)), BASE, most=2)
    near(seen(reader(path, [3, 2, 1])), BASE[..., ::-1], most=2)
    near(seen(reader(path, [2])), BASE[..., [1, 1, 1]], most=2)


def test_inks_that_are_not_cmyk_are_refused(tmp_path):
    inks = [(332, "H", 1, 2, True)]
    path = tiff(tmp_path / "a.tif", cmyk(255), photometric="separated", extratags=inks)
    with pytest.raises(SceneError, match=r"a\.tif has 4 inks that are not cyan"):
        open_tiff(path)


@pytest.mark.parametrize(
    "options", [{}, {"tile": (64, 64), "compression": "lzw"}, {"planarconfig": "separate"}]
)
def test_ycbcr_becomes_rgb(reader, tmp_path, options):
    values = YCBCR.transpose(2, 0, 1).copy() if "planarconfig" in options else YCBCR
    path = tiff(tmp_path / "a.tif", values, photometric="ycbcr", **options)
    near(seen(reader(path)), BASE, most=6)


def test_ycbcr_of_16_bits_and_with_foot_and_head_room(reader, tmp_path):
    wide = tiff(tmp_path / "a.tif", YCBCR.astype(np.uint16) * 256, photometric="ycbcr")
    near(seen(reader(wide)), BASE, most=8, mean=2)
    video = np.empty(YCBCR.shape)
    video[..., 0] = 16 + YCBCR[..., 0] * (219 / 255)
    video[..., 1:] = 128 + (YCBCR[..., 1:] - 128.0) * (112 / 127)
    limits = (16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1)
    tags = {258: (8, 8, 8), 262: (6,), 277: (3,), 284: (1,), 530: (1, 1), 532: limits}
    data = (video + 0.5).astype(np.uint8).tobytes()
    path = by_hand(tmp_path / "b.tif", *GRAY.shape[::-1], data, tags)
    near(seen(reader(path)), BASE, most=10, mean=2)


@pytest.mark.parametrize("scene", ["gdal", "pillow", "tifffile"])
def test_jpeg_in_tiff_is_converted_once(reader, tmp_path, scene):
    path = tmp_path / "a.tif"
    if scene == "gdal":
        geotiff(path, BASE.transpose(2, 0, 1), photometric="YCBCR", compress="JPEG", tiled=True)
    elif scene == "pillow":
        Image.fromarray(BASE).save(path, compression="jpeg")
    else:
        tiff(path, BASE, photometric="rgb", tile=(64, 64), compression="jpeg")
    near(seen(reader(path)), BASE, most=60, mean=2)


def test_subsampled_ycbcr_is_read_by_rasterio_or_refused(tmp_path, monkeypatch):
    height, width = (n // 2 * 2 for n in GRAY.shape)
    luma = YCBCR[:height, :width, 0].reshape(height // 2, 2, width // 2, 2).swapaxes(1, 2)
    chroma = YCBCR[0:height:2, 0:width:2, 1:]
    units = np.concatenate([luma.reshape(*luma.shape[:2], 4), chroma], 2).tobytes()
    tags = {258: (8, 8, 8), 262: (6,), 277: (3,), 284: (1,), 530: (2, 2), 531: (2,)}
    path = by_hand(tmp_path / "a.tif", width, height, units, tags)
    like(seen(open_scene(path)), BASE[:height, :width])
    with pytest.raises(SceneError, match="chroma subsampling.*gdal_translate a.tif rgb.tif"):
        open_tiff(path)


@pytest.mark.parametrize("kind", ["cielab", "icclab", "16"])
def test_cielab_becomes_rgb(reader, tmp_path, kind):
    values, signed = lab(), lab().view(np.int8).astype(int)
    if kind == "icclab":
        values = np.concatenate([values[..., :1], (signed[..., 1:] + 128).astype(np.uint8)], 2)
    elif kind == "16":
        wide = values[..., :1].astype(np.uint16) * 257
        values = np.concatenate([wide, (signed[..., 1:] * 256).astype(np.uint16)], 2)
    path = tiff(tmp_path / "a.tif", values, photometric="icclab" if kind == "icclab" else "cielab")
    found = seen(reader(path))
    if kind == "cielab" and reader is open_geotiff:  # libtiff does not adapt the white point
        like(found[..., :2], BASE[..., :2])
        assert np.corrcoef(found[..., 2].ravel(), BASE[..., 2].ravel())[0, 1] > 0.95
    else:
        near(found, BASE, most=12)


MINISWHITE = {
    "1 bit": (lambda: (GRAY < 128).astype(np.uint8), {"nbits": 1}),
    "4 bits": (lambda: 15 - (GRAY >> 4), {"nbits": 4}),
    "8 bits": (lambda: 255 - GRAY, {}),
    "12 bits": (lambda: 4095 - GRAY.astype(np.uint16) * 16, {"nbits": 12}),
    "16 bits": (lambda: 65535 - GRAY.astype(np.uint16) * 257, {}),
    "signed": (lambda: 1000 - GRAY.astype(np.int16) * 8, {}),
    "float": (lambda: (1 - GRAY / 255).astype(np.float32), {}),
    "double": (lambda: 1e9 - GRAY.astype(np.float64), {}),
}


@pytest.mark.parametrize("kind", MINISWHITE)
def test_zero_is_white_at_every_depth(reader, tmp_path, kind):
    make, options = MINISWHITE[kind]
    found = seen(reader(geotiff(tmp_path / "a.tif", make()[None], photometric="MINISWHITE",
                                **options)))  # fmt: skip
    assert (found == found[..., :1]).all()
    if kind == "1 bit":
        assert (found[..., 0] == np.where(GRAY < 128, 0, 255)).all()
    elif kind == "4 bits":
        assert (found[..., 0] == (GRAY >> 4) * 17).all()
    elif kind == "8 bits":
        assert (found[..., 0] == GRAY).all()
    else:
        like(found[..., 0], GRAY)


def test_reported_files_whose_zero_is_white(reader):
    for name in ("miniswhite.tif", "mwbit.tif"):
        shown = np.asarray(Image.open(CASES / name).convert("L"))  # Pillow inverts them as well
        assert (seen(reader(CASES / name))[..., 0] == shown).all(), name
    assert np.corrcoef(shown.ravel(), GRAY.ravel())[0, 1] > 0.7


def test_a_stretch_is_given_in_values_of_the_file(reader, tmp_path):
    white = plain(tmp_path / "a.tif", 4095 - GRAY[None].astype(np.uint16), photometric="MINISWHITE")
    near(seen(reader(white), (4095 - 255, 4095))[..., 0], GRAY, most=1)
    few = plain(tmp_path / "b.tif", GRAY[None] >> 4, nbits=4)
    found = seen(reader(few), (0, 7.5))[..., 0]
    near(found, ((GRAY >> 4).astype(int) * 34).clip(0, 255), most=1)


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("bands", [1, 3])
def test_samples_of_1_to_16_bits_are_scaled(reader, tmp_path, bits, bands):
    largest, shown = (1 << bits) - 1, GRAY[None] if bands == 1 else BASE.transpose(2, 0, 1)
    values = (shown / 255 * largest + 0.5).astype(np.uint8 if bits <= 8 else np.uint16)
    kind = {"photometric": "RGB"} if bands == 3 else {}
    found = seen(reader(plain(tmp_path / "a.tif", values, nbits=bits, **kind)))
    wanted = np.broadcast_to(values / largest * 255, (3, *GRAY.shape)).transpose(1, 2, 0)
    if bits <= 8:
        near(found, (wanted + 0.5).astype(np.uint8), most=0)
    else:  # the stretch is between percentiles
        like(found, wanted)


def test_reported_4_bits(reader):
    found = seen(reader(CASES / "nbits4.tif"))[..., 0]
    assert found.max() == 255
    like(found, GRAY)


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "complex_int16"])
def test_complex_samples_become_amplitudes(reader, tmp_path, dtype):
    turns = np.exp(1j * np.arange(GRAY.size).reshape(GRAY.shape))
    path = tmp_path / "a.tif"
    values = (GRAY * 100.0 * turns).astype("complex128" if dtype == "complex128" else "complex64")
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=GRAY.shape[0], width=GRAY.shape[1],
        dtype=dtype, crs="EPSG:32633", transform=rasterio.Affine(2, 0, 0, 0, -2, 0),
    ) as new:  # fmt: skip
        new.write(values, 1)
    scene = reader(path)
    assert not scene.eight_bit
    like(seen(scene)[..., 0], GRAY)


@pytest.mark.parametrize("order", ["none", "bits"])
def test_reversed_bits(reader, tmp_path, order):
    """FillOrder 2, in which the first pixel of a byte is its lowest bit."""
    reverse = np.array([int(f"{i:08b}"[::-1], 2) for i in range(256)], np.uint8)
    height, width = GRAY.shape
    if order == "bits":
        packed, tags, wanted = np.packbits(GRAY > 127, 1), {258: (1,)}, (GRAY > 127) * 255
    else:
        packed, tags, wanted = GRAY, {258: (8,)}, GRAY
    data = reverse[packed].tobytes()
    path = by_hand(tmp_path / "a.tif", width, height, data, tags | {262: (1,), 266: (2,)})
    assert (seen(reader(path))[..., 0] == wanted).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("scale", [1, 257])
def test_palettes_of_8_and_16_bits(reader, tmp_path, dtype, scale):
    random, count = np.random.default_rng(0), 256 if dtype == np.uint8 else 65536
    colors = random.integers(0, 256, (3, count))
    values = random.integers(0, 256 if dtype == np.uint8 else 1000, GRAY.shape).astype(dtype)
    path = tiff(tmp_path / "a.tif", values, photometric="palette",
                colormap=(colors * scale).astype(np.uint16))  # fmt: skip
    scene = reader(path)
    assert scene.eight_bit
    if scale == 1 and reader is open_geotiff:
        pytest.skip("GDAL decides by itself whether a palette of 8 bits was meant")
    assert (seen(scene) == colors[:, values].transpose(1, 2, 0)).all()


@pytest.mark.parametrize(("code", "name"), [(10, "ITULAB"), (32803, "a color filter array")])
def test_other_color_spaces_are_refused_in_one_sentence(reader, tmp_path, code, name):
    tags = {262: (code,), 277: (1,)}
    path = by_hand(tmp_path / "a.tif", *GRAY.shape[::-1], GRAY.tobytes(), tags)
    with pytest.raises(SceneError, match=f"is stored as {name}, which is not supported; convert"):
        reader(path)


def test_nodata_is_a_value_of_the_file(reader, tmp_path):
    gap = np.zeros(GRAY.shape, bool)
    gap[:80, :100] = True
    kinds = [
        (np.where(gap, -9999.0, GRAY).astype(np.float32), -9999, {}),
        (np.where(gap, 0, GRAY // 2 + 1).astype(np.uint8), 0, {"photometric": "MINISWHITE"}),
        (np.where(gap, 15, GRAY >> 5).astype(np.uint8), 15, {"nbits": 4}),
        (np.where(gap, 65535, GRAY * 5.0).astype(np.uint16), 65535, {}),
    ]
    for number, (values, nodata, options) in enumerate(kinds):
        path = geotiff(tmp_path / f"{number}.tif", values[None], **options)
        assert reader(path).read(0, WHOLE)[1].all()
        scene = reader(path, nodata=nodata)
        assert not scene.all_valid
        assert (scene.read(0, WHOLE)[1] == ~gap).all()
        limits = stretch_limits(scene)
        assert limits is None or abs(limits).max() < 1300  # without nodata
        scene.close()
    with pytest.raises(
        InputError, match=r"--nodata -9999: .*3\.tif holds integers from 0 to 65535"
    ):
        reader(path, nodata=-9999)


def test_alpha_that_is_data(reader, tmp_path):
    """Four bands of aerial images, in which near infrared is marked as alpha."""
    infrared = np.where(GRAY < 40, 0, GRAY)
    values = np.concatenate([BASE.transpose(2, 0, 1), infrared[None]])
    path = geotiff(tmp_path / "a.tif", values, photometric="RGB", alpha="YES")
    assert (reader(path).read(0, WHOLE)[1] == (infrared > 0)).all()
    scene = reader(path, alpha=False)
    assert scene.all_valid
    assert (seen(scene) == BASE).all()
    selected = reader(path, [4, 1, 2])  # a band that is selected is data
    assert (seen(selected) == values[[3, 0, 1]].transpose(1, 2, 0)).all()
