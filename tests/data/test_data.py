import re

import numpy as np
import pytest
from PIL import Image

from primaps.data import (
    ImageError,
    center_crop,
    find_images,
    find_label,
    fit_to_patches,
    load_image,
    load_label,
    read_classes,
    resize_shorter,
)


def save(path, mode="RGB", size=(12, 10), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 100 if mode != "RGB" else (100, 50, 20)).save(path, **options)
    return path


def keys(*args, **kwargs):
    return [file.key for file in find_images(*args, **kwargs)]


def test_folders_are_searched_recursively_and_sorted(tmp_path):
    for name in ("b.png", "a/c.jpg", "a/b/d.TIF", ".hidden/e.png", "a/.f.png"):
        save(tmp_path / name)
    (tmp_path / "classes.json").write_text("{}")
    assert keys(tmp_path) == ["a/b/d", "a/c", "b"]
    assert keys([tmp_path / "a"]) == ["b/d", "c"]
    assert keys(tmp_path, exclude=tmp_path / "a") == ["b"]


def test_globs_and_several_inputs_share_a_root(tmp_path):
    for name in ("x/1.png", "x/2.png", "y/1.png", "y/3.jpg"):
        save(tmp_path / name)
    assert keys(str(tmp_path / "*" / "1.png")) == ["x/1", "y/1"]
    assert keys([tmp_path / "x", tmp_path / "y" / "1.png"]) == ["x/1", "x/2", "y/1"]
    assert keys([tmp_path / "x", tmp_path / "x" / "1.png"]) == ["1", "2"]  # once each


def test_two_files_with_one_stem_keep_their_suffix(tmp_path):
    for name in ("a.png", "a.jpg", "b.v1.png", "b.v2.png"):
        save(tmp_path / name)
    assert keys(tmp_path) == ["a.jpg", "a.png", "b.v1", "b.v2"]


def test_labels_are_found_by_key(tmp_path):
    for name in ("images/s/a.jpg", "images/b.v1.jpg", "images/c.jpg", "images/c.png"):
        save(tmp_path / name)
    for name in ("labels/s/a.png", "labels/b.v1.png", "labels/b.png", "labels/c.png"):
        save(tmp_path / name, "L")
    found = [find_label(f, tmp_path / "labels") for f in find_images(tmp_path / "images")]
    names = [str(path.relative_to(tmp_path / "labels")) for path in found]
    assert names == ["b.v1.png", "c.png", "c.png", "s/a.png"]


@pytest.mark.parametrize("given", ["nowhere", "*.png", ""])
def test_no_image_is_one_sentence(tmp_path, given):
    with pytest.raises(FileNotFoundError, match="no image in|does not exist and matches no file"):
        find_images(tmp_path / given)


def test_gray_palette_alpha_and_cmyk_become_rgb(tmp_path):
    save(tmp_path / "gray.png", "L")
    save(tmp_path / "cmyk.jpg", "CMYK")
    Image.new("RGB", (3, 3), (10, 20, 30)).quantize().save(tmp_path / "palette.png")
    Image.new("RGBA", (3, 3), (10, 20, 30, 0)).save(tmp_path / "alpha.png")
    pixels = {p.name: np.asarray(load_image(p))[0, 0].tolist() for p in tmp_path.iterdir()}
    assert pixels["gray.png"] == [100, 100, 100]
    assert pixels["palette.png"] == [10, 20, 30]
    assert pixels["alpha.png"] == [255, 255, 255]  # transparent on white
    assert len(pixels["cmyk.jpg"]) == 3


def test_16_bits_are_scaled_by_the_bits_in_use(tmp_path):
    full, twelve = np.zeros((4, 4), np.uint16), np.zeros((4, 4), np.uint16)
    full[0], twelve[0] = 65535, 4095
    full[1], twelve[1] = 32768, 2048
    Image.fromarray(full).save(tmp_path / "full.png")
    Image.fromarray(twelve).save(tmp_path / "twelve.tif")
    for name in ("full.png", "twelve.tif"):
        assert np.asarray(load_image(tmp_path / name))[:3, 0, 1].tolist() == [255, 128, 0]


def test_floating_point_images_are_stretched(tmp_path):
    array = np.linspace(-3, 7, 16, dtype=np.float32).reshape(4, 4)
    array[2, 2] = np.nan
    Image.fromarray(array).save(tmp_path / "float.tif")
    found = np.asarray(load_image(tmp_path / "float.tif"))[..., 0]
    assert (found[0, 0], found[3, 3], found[2, 2]) == (0, 255, 0)


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "turned.jpg", size=(30, 20), exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (20, 30)


def test_files_that_are_no_image_are_named(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    whole = save(tmp_path / "cut.jpg", size=(300, 300)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    for name, words in (
        ("text.png", "not an image"),
        ("empty.png", "not an image"),
        ("cut.jpg", "is damaged"),
        ("absent.png", "does not exist"),
    ):
        with pytest.raises(ImageError, match=words) as error:
            load_image(tmp_path / name)
        assert name in str(error.value)


def test_labels_keep_their_values_and_colors_are_refused(tmp_path):
    values = np.array([[0, 7], [255, 3]], np.uint8)
    Image.fromarray(values).save(tmp_path / "8.png")
    Image.fromarray(values.astype(np.uint16) * 200).save(tmp_path / "16.png")
    assert (load_label(tmp_path / "8.png") == values).all()
    assert (load_label(tmp_path / "16.png") == values.astype(int) * 200).all()
    with pytest.raises(ImageError, match="has one channel of class indices"):
        load_label(save(tmp_path / "color.png"))


def test_classes_json_is_found_up_to_two_folders_above(tmp_path):
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "classes.json").write_text('{"classes": ["x", "y"], "ignore_index": 11}')
    assert read_classes(tmp_path / "a" / "b") == (["x", "y"], 11)
    assert read_classes(tmp_path / "a" / "b" / "c") == (None, None)
    (tmp_path / "a" / "classes.json").write_text("[]")
    with pytest.raises(ValueError, match="must contain"):
        read_classes(tmp_path / "a")


@pytest.mark.parametrize("size", [(480, 360), (360, 480), (10, 10), (33, 999), (322, 322)])
def test_protocol_sizes(size):
    scaled = resize_shorter(Image.new("RGB", size), 322)
    assert min(scaled.size) == 322
    assert max(scaled.size) == int(322 * max(size) / min(size))
    assert center_crop(scaled, 322).size == (322, 322)


def test_center_crop_is_centerd():
    image = Image.fromarray(np.arange(7, dtype=np.uint8)[None].repeat(3, 0))
    assert np.asarray(center_crop(image, 3))[0].tolist() == [2, 3, 4]


@pytest.mark.parametrize("size", [(480, 360), (10, 10), (8000, 300), (300, 8000), (1, 5000)])
def test_whole_images_become_multiples_of_the_patch(size):
    scaled = fit_to_patches(Image.new("RGB", size), 322, 14)
    assert all(side % 14 == 0 and side >= 14 for side in scaled.size)
    assert max(scaled.size) <= 4 * 322 + 14


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"classes": ["a", "a"]}', "two classes have the name 'a'"),
        ('{"classes": "abc"}', "field \"classes\" is 'abc'; it must be a list"),
        ('{"classes": []}', 'field "classes" has the length 0; it must be at least 1'),
        ('{"classes": ["a"], "ignore_index": 2000000000}', '"ignore_index" is 2000000000'),
        ('{"classes": ["a"], "ignore_index": "x"}', "\"ignore_index\" is 'x'"),
        ('{"classes": ["a"], "colors": [[1, 2]]}', 'field "colors[0][2]" is missing'),
        ('{"classes": ["a"], "colours": []}', 'field "colours" is unknown'),
        ('{"names": ["a"]}', 'field "names" is unknown'),
        ("[1]", "it must be an object"),
        ("[" * 100_000, "nested too deeply"),
        ("{", "is not JSON"),
    ],
)
def test_a_broken_list_of_classes_is_named_with_its_field(tmp_path, text, words):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        read_classes(tmp_path)
    assert str(tmp_path / "classes.json") in str(error.value)
    assert "\n" not in str(error.value)
