"""Images of more than 8 bits: all bits are read, and a collection has one depth."""

import io
import json
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from primaps import Predictor
from primaps.batch import predict_files, propose_files
from primaps.data import ImageError, ImageFile, at_depth, find_images, load_image, pixel_digest
from primaps.data import images as images_module
from primaps.data.depth import collection_depth
from primaps.model import PriMaPsEM
from tests.conftest import painted
from tests.test_model import QUICK

BASE = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint16)
BASE[0, 0] = 255
TWELVE = BASE * 16 + BASE // 16
"""Values of 12 bits that are those of BASE in 8 bits."""


def png(values, color):
    """A PNG of 16 bits, which Pillow cannot write in color. ``color`` is the type in its header."""

    def chunk(name, content):
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff(path, values, **options):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(path, values, **options)
    return path


def pixels(path, depth=None):
    return np.asarray(load_image(path, depth)).astype(int)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"compression": "deflate"},
        {"compression": "lzw", "predictor": True, "byteorder": ">"},
        {"tile": (32, 32)},
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "compression": "deflate", "tile": (16, 16)},
    ],
)
def test_twelve_bits_in_color_tiffs_are_scaled_as_gray_is(tmp_path, options):
    if options.get("compression") == "lzw":
        pytest.importorskip("imagecodecs")
    values = TWELVE.astype(f"{options.get('byteorder', '<')}u2")
    planes = values.transpose(2, 0, 1).copy() if "planarconfig" in options else values
    path = tiff(tmp_path / "a.tif", planes, photometric="rgb", **options)
    assert np.array_equal(pixels(path), BASE)
    with Image.open(path) as lazy:  # opened by the caller, and not decoded
        assert np.array_equal(pixels(lazy), BASE)
    gray = tiff(tmp_path / "gray.tif", TWELVE[..., 1], photometric="minisblack")
    assert np.array_equal(pixels(gray)[..., 0], BASE[..., 1])


@pytest.mark.parametrize("color", [0, 2, 4, 6])
def test_twelve_bits_in_pngs_of_every_color_type(tmp_path, color):
    opaque = np.full((*BASE.shape[:2], 1), 65535, np.uint16)
    opaque[:4] = 0
    values = TWELVE if color in (2, 6) else TWELVE[..., 1:2]
    values = np.concatenate([values, opaque], 2) if color in (4, 6) else values
    (tmp_path / "a.png").write_bytes(png(values, color))
    expected = BASE.copy() if color in (2, 6) else BASE[..., 1:2].repeat(3, 2)
    if color in (4, 6):
        expected[:4] = 255  # transparent on white
    assert np.array_equal(pixels(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_planes_are_rotated_as_other_images_are(tmp_path, orientation):
    tag = [(274, "H", 1, orientation, True)]
    planes = TWELVE.transpose(2, 0, 1).copy()
    separate = {"photometric": "rgb", "planarconfig": "separate", "extratags": tag}
    one = tiff(tmp_path / "one.tif", planes, **separate)
    other = tiff(tmp_path / "other.tif", TWELVE, photometric="rgb", extratags=tag)
    assert np.array_equal(pixels(one), pixels(other))


def test_planes_without_tifffile_are_refused(tmp_path, monkeypatch):
    planes = TWELVE.transpose(2, 0, 1).copy()
    path = tiff(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ImageError, match=r"a.tif: RGB of 16 bits in separate planes needs tifff"):
        load_image(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_white_is_zero_in_miniswhite(tmp_path, dtype):
    values = {np.uint8: BASE, np.uint16: TWELVE, np.float32: BASE / 255}[dtype][..., 0]
    values = values.astype(dtype)
    values[0, :2] = values.min(), values.max()
    white = tiff(tmp_path / "white.tif", values, photometric="miniswhite")
    black = tiff(tmp_path / "black.tif", values, photometric="minisblack")
    assert np.array_equal(pixels(white), 255 - pixels(black))
    if dtype is np.float32:
        values[3, 3] = np.nan
        assert pixels(tiff(white, values, photometric="miniswhite"))[3, 3, 0] == 0


@pytest.fixture
def twelve(tmp_path):
    """A folder of painted images with values of 12 bits, of which the last is dark."""
    folder = tmp_path / "twelve"
    folder.mkdir()
    for seed in range(5):
        image = np.asarray(painted(seed)[0]).astype(np.uint16)
        image[0, 0] = 255 if seed < 4 else image[0, 0]
        scale = 16 if seed < 4 else 4
        (folder / f"{seed}.png").write_bytes(png(image * scale + (15 if seed < 4 else 0), 2))
    return folder


def test_a_collection_has_the_smallest_depth_that_holds_all_its_images(twelve):
    files = at_depth(find_images(twelve))
    assert {file.depth for file in files} == {12}
    dark = np.asarray(painted(4)[0]).astype(float)
    assert np.array_equal(np.asarray(files[4].load()), np.floor(dark * 4 / 4095 * 255 + 0.5))
    assert load_image(files[4].source).getextrema()[0][1] > 200  # alone it has 10 bits
    beyond = np.asarray(painted(5)[0]).astype(np.uint16) * 16
    beyond[0, 0] = 4200
    (twelve / "5.png").write_bytes(png(beyond, 2))
    assert {file.depth for file in at_depth(find_images(twelve))} == {14}
    assert at_depth(find_images(twelve), 16)[0].depth == 16


def test_the_digest_for_caches_has_the_depth_of_deep_images_only(twelve, tmp_path):
    painted(0)[0].save(tmp_path / "8.png")
    eight = ImageFile(tmp_path / "8.png", "8")
    deep = ImageFile(twelve / "0.png", "0")
    assert pixel_digest(eight) == pixel_digest(ImageFile(eight.source, "8", depth=12))
    digests = [pixel_digest(ImageFile(deep.source, "0", depth=depth)) for depth in (None, 12, 14)]
    assert len(set(digests)) == 3


def test_jpeg_files_are_not_opened_and_a_large_collection_is_sampled(monkeypatch):
    files = [ImageFile(images_module.Path(f"{i}.jpg"), str(i)) for i in range(1000)]
    monkeypatch.setattr(images_module, "opened", None)
    assert collection_depth(files) is None
    monkeypatch.undo()
    read = []

    def values(image):
        read.append(image)
        return (12, 16)

    monkeypatch.setattr("primaps.data.depth.value_bits", values)
    files = [ImageFile(images_module.Path(f"{i}.tif"), str(i)) for i in range(1000)]
    assert collection_depth(files) == 12
    first, read[:] = list(read), []
    assert collection_depth(files) == 12
    assert (read, len(read)) == (first, 128)
    monkeypatch.setattr("primaps.data.depth.value_bits", lambda image: None)
    assert collection_depth(files) == 8  # later images with more bits are refused


def test_a_model_reads_images_with_the_depth_of_its_fit(colors, twelve, tmp_path):
    model = PriMaPsEM(3, backbone=colors, **QUICK).fit(twelve)
    assert model.depth_ == 12
    model.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["training"]["depth"] == 12
    model = PriMaPsEM.from_pretrained(tmp_path / "model", backbone=colors, device="cpu")
    (tmp_path / "dark").mkdir()
    dark = tmp_path / "dark" / "4.png"
    dark.write_bytes((twelve / "4.png").read_bytes())
    scaled = Image.fromarray(np.asarray(load_image(dark, 12)))
    expected = model.predict(scaled).numpy()
    assert np.array_equal(model.predict(dark).numpy(), expected)
    predict_files(model, dark.parent, tmp_path / "out")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "4.png")), expected)
    rows = Predictor(model)({"image": [dark.read_bytes()]})
    assert np.array_equal(rows["labels"][0], expected)
    bright = np.full((64, 64, 3), 5000, np.uint16)
    (tmp_path / "dark" / "bright.png").write_bytes(png(bright, 2))
    done = predict_files(model, dark.parent, tmp_path / "out", log=lambda sentence: None)
    (problem,) = done.problems
    assert "bright.png: the value 5000 needs 14 bits, but the images are read with 12" in problem
    eight = PriMaPsEM(3, backbone=colors, **QUICK).fit([painted(seed)[0] for seed in range(3)])
    assert eight.depth_ is None
    rows = Predictor(eight)({"image": [dark.read_bytes()]})  # a batch is no collection
    assert "bits, but the images are read with 8" in rows["problem"][0]
    rows = Predictor(eight, depth=12)({"image": [dark.read_bytes()]})
    assert np.array_equal(rows["labels"][0], eight.predict(scaled).numpy())


def test_proposals_of_a_dark_image_do_not_depend_on_how_it_is_stored(colors, twelve, tmp_path):
    from primaps.backbones.load import load_backbone

    network = load_backbone(colors, device="cpu", patch_size=8)
    (tmp_path / "eight").mkdir()
    for file in at_depth(find_images(twelve)):
        file.load().save(tmp_path / "eight" / f"{file.key}.png")
    for name in ("twelve", "eight"):
        propose_files(tmp_path / name, tmp_path / f"{name}-out", backbone=network, size=64)
    for key in "01234":
        one, other = (tmp_path / f"{name}-out" / f"{key}.png" for name in ("twelve", "eight"))
        assert np.array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(other)))


def profile_of_swapped_colors():
    """A color profile in which red and green are exchanged, so that its use can be seen."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entries = {}
    for number in range(int.from_bytes(content[128:132], "big")):
        place = 132 + 12 * number
        entries[bytes(content[place : place + 4])] = place + 4
    red, green = entries[b"rXYZ"], entries[b"gXYZ"]
    content[red : red + 8], content[green : green + 8] = (
        content[green : green + 8],
        content[red : red + 8],
    )
    return bytes(content)


def test_color_profiles_are_applied_once_for_network_pictures_and_studio(tmp_path):
    from primaps.studio.images import display_image, encode_jpeg

    image = Image.new("RGB", (64, 48), (250, 10, 30))
    image.save(tmp_path / "plain.png")
    swapped = profile_of_swapped_colors()
    for name in ("a.png", "a.jpg", "a.webp"):
        image.save(tmp_path / name, icc_profile=swapped, quality=100)
        (file,) = find_images(tmp_path / name)
        found = file.load()
        assert np.abs(np.asarray(found).astype(int) - (10, 250, 30)).max() <= 6
        assert "icc_profile" not in found.info
        assert np.array_equal(np.asarray(load_image(found)), np.asarray(found))
        shown = Image.open(io.BytesIO(encode_jpeg(display_image(file))))
        assert np.abs(np.asarray(shown).astype(int) - np.asarray(found)).max() <= 8
    same = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(tmp_path / "srgb.png", icc_profile=same)
    for profile in (same, b"damaged", b""):
        image.save(tmp_path / "srgb.png", icc_profile=profile)
        found = load_image(tmp_path / "srgb.png")
        assert np.array_equal(np.asarray(found), np.asarray(image))
    deep = tiff(
        tmp_path / "deep.tif",
        np.asarray(image).astype(np.uint16) * 257,
        photometric="rgb",
        extratags=[(34675, 7, len(swapped), swapped, True)],
    )
    assert np.abs(pixels(deep) - (10, 250, 30)).max() <= 6
