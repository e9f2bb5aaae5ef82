"""One odd image among good ones is named and left out; the rest goes on, and nothing hangs."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from primaps.data import (
    ImageError,
    ImageFile,
    find_images,
    load_image,
    read,
    resize_shorter,
    square,
)
from primaps.data.images import image_size, opened, quiet
from primaps.utils.errors import NotFoundError
from tests.conftest import painted


@pytest.fixture
def folder(tmp_path):
    for seed in range(3):
        painted(seed)[0].save(tmp_path / f"{seed}.png")
    return tmp_path


def squares(folder, size=32):
    """What a fit would see, and what it would say."""
    told = []
    files = find_images(folder)
    found = list(read(files, lambda file: square(load_image(file.source), size), told.append))
    return [file.key for file, _ in found], told


def test_an_image_as_thin_as_a_line_is_named_and_the_rest_goes_on(folder):
    Image.new("RGB", (30_000, 1)).save(folder / "line.png")
    used, told = squares(folder, 322)
    assert used == ["0", "1", "2"]
    assert len(told) == 1
    assert told[0].startswith(f"{folder / 'line.png'}: an image of 30000x1 pixels would have")


def test_what_is_as_long_as_panoramas_are_is_scaled():
    assert resize_shorter(Image.new("L", (9000, 30)), 322).size == (96_600, 322)
    with pytest.raises(ImageError, match="would have 322x322000 pixels at size 322"):
        resize_shorter(Image.new("L", (30, 30_000)), 322)


@pytest.mark.parametrize("end", ["avif", "webp", "jpg", "tif", "jp2", "gif"])
def test_a_damaged_image_of_every_kind_is_named(folder, end):
    path = folder / f"x.{end}"
    painted(7)[0].resize((300, 200)).save(path)
    whole = path.read_bytes()
    for cut in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * cut)])
        used, told = squares(folder)
        assert used[:3] == ["0", "1", "2"]
        assert len(told) == 4 - len(used)
        assert all(str(path) in sentence and "\n" not in sentence for sentence in told)


@pytest.mark.parametrize("end", ["jpg", "webp", "avif", "png", "tif"])
def test_odd_exif_is_no_reason_to_leave_an_image_out(folder, end):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    data = exif.tobytes()
    for odd in (
        data[:20],
        data.replace(b"\x12\x01\x03\x00", b"\x12\x01\x0c\x00"),  # a turn that is no whole number
        data.replace(b"maker", b"\xff\xfe\0\0\0"),
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM",
    ):
        path = folder / f"x.{end}"
        try:
            painted(7)[0].save(path, **({} if end == "tif" else {"exif": odd}))
        except SyntaxError:  # Pillow does not write such a file
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            used, told = squares(folder)
            image_size(path)
        assert (used, told) == (["0", "1", "2", "x"], [])


def test_remarks_of_libraries_stay_away_in_threads_too(tmp_path):
    image = np.full((8, 8), 3e38, np.float32)
    image[0] = -3e38
    image[1] = np.nan
    Image.fromarray(image).save(tmp_path / "f.tif")
    with Image.open(tmp_path / "f.tif") as file:
        file.convert("L").save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    shown = []

    def show(message, *_, **__):
        shown.append(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        with ThreadPoolExecutor(8) as pool:
            paths = [tmp_path / "f.tif", tmp_path / "x.jpg"] * 40
            assert {image.mode for image in pool.map(load_image, paths)} == {"RGB"}
        filters = list(warnings.filters)
        warnings.warn("of others", UserWarning, stacklevel=1)
    assert shown == ["of others"]
    with quiet():
        pass
    assert not [one for one in filters if "PIL" in str(one[3])]


def test_pipes_devices_and_links_that_lead_nowhere_hang_nothing(folder):
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe.mat")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "dangling.png").symlink_to(folder / "absent.png")
    (folder / "around").symlink_to(folder)
    keys = [file.key for file in find_images(folder)]
    assert keys == ["0", "1", "2"]
    assert [file.key for file in find_images(str(folder / "*.png"))] == keys
    for name in ("pipe.png", "zero.png", "loop.png", "dangling.png"):
        with pytest.raises(NotFoundError, match=f"{name} is (neither a file|a link)"):
            find_images(folder / name)
    for name in ("pipe.png", "pipe.mat", "zero.png", "loop.png", "dangling.png", "around"):
        with pytest.raises(
            ImageError,
            match=f"{name}.* (is not a regular file|is not a file|does not exist|is damaged)",
        ):
            load_image(folder / name)
    with pytest.raises(ImageError):
        load_image("x" * 5000 + ".png")


def test_an_error_that_knows_no_file_is_given_its_name(tmp_path):
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(ImageError, match="nan.tif: a floating-point image has no finite value"):
        load_image(tmp_path / "nan.tif")
    with pytest.raises(ImageError, match="inner: odd"), opened("inner", _png()):
        raise ImageError("odd")
    file, told = ImageFile(painted(0)[0], "memory"), []
    assert (
        list(read([file], lambda _: resize_shorter(Image.new("L", (1, 10**6)), 322), told.append))
        == []
    )
    assert told[0].startswith("memory: an image of 1x1000000 pixels")


def _png():
    import io

    file = io.BytesIO()
    painted(0)[0].save(file, "png")
    return file.getvalue()
