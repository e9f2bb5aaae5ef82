"""`primaps data prepare`: ISPRS tiles to Potsdam-3, COCO downloads to COCO-Stuff."""

import shutil
import zipfile

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

from primaps.cli import app
from primaps.data import DataError, ImageError, cocostuff, load_dataset, potsdam
from primaps.data.cocostuff import prepare_cocostuff
from primaps.data.images import read_mat
from primaps.data.potsdam import COLORS, LABELED, UNLABELED, patch_names, sampled_test_patches

cut = potsdam.prepare_potsdam


@pytest.fixture
def tiles(tmp_path, monkeypatch):
    """Two labeled tiles and one without label, of 2x2 patches instead of 15x15."""
    monkeypatch.setattr(potsdam, "TILE", 800)
    raw = tmp_path / "raw"
    generator = np.random.default_rng(0)
    for tile in ("2_10", "7_12", "2_13"):
        for folder in ("4_Ortho_RGBIR", "5_Labels_for_participants"):
            (raw / folder).mkdir(parents=True, exist_ok=True)
        classes = generator.integers(0, 6, (8, 8)).repeat(100, 0).repeat(100, 1)
        image = np.dstack([classes * 10 + i for i in range(4)]).astype(np.uint8)
        tifffile.imwrite(
            raw / "4_Ortho_RGBIR" / f"top_potsdam_{tile}_RGBIR.tif", image, photometric="rgb"
        )
        if tile != "2_13":
            label = Image.fromarray(np.array(COLORS, np.uint8)[classes])
            label.save(raw / "5_Labels_for_participants" / f"top_potsdam_{tile}_label.tif")
    return raw


def test_tiles_are_those_of_the_protocol():
    assert (len(LABELED), len(UNLABELED)) == (24, 14)
    assert 225 * 14 == 3_150
    assert len(sampled_test_patches()) == 855
    assert 225 * 24 - 855 == 4_545
    assert len({name for tile in LABELED for name in patch_names(tile)}) == 5_400


def test_patches_are_halved_in_the_order_of_rows(tiles, tmp_path):
    told = []
    lists = cut(tiles, tmp_path / "out", log=told.append)
    assert "35 of the 38 tiles are not in" in told[0]
    assert lists["labelled_train.txt"] + lists["labelled_test.txt"] == 8
    assert lists["unlabelled_train.txt"] == 4
    tile = tifffile.imread(next(tiles.rglob("*_7_12_RGBIR.tif")))
    patch = read_mat(tmp_path / "out" / "imgs" / "7_12_00_01.mat", "img")
    assert patch.shape == (200, 200, 4)
    assert (patch == tile[:400:2, 400::2]).all()  # blocks of 100 pixels, so means are values
    label = read_mat(tmp_path / "out" / "gt" / "7_12_00_01.mat", "gt")
    assert label.dtype == np.int32
    assert (label * 10 == patch[..., 0]).all()
    assert not (tmp_path / "out" / "gt" / "2_13_00_00.mat").exists()
    data = load_dataset("potsdam", tmp_path / "out", "train")
    assert len(data.samples) == lists["labelled_train.txt"]
    assert set(np.unique(data.label(data.samples[0]))) <= {0, 1, 2}


def test_a_run_that_was_stopped_goes_on(tiles, tmp_path):
    out = tmp_path / "out"
    cut(tiles, out, log=lambda sentence: None)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.mat")}
    (out / "gt" / "2_10_01_01.mat").unlink()
    (out / "labelled_test.txt").unlink()
    cut(tiles, out, log=lambda sentence: None)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.mat")}
    assert before.keys() == after.keys()
    again = {path.stem[:4] for path in before if before[path] != after[path]}
    assert again == {"2_10"}
    assert (out / "labelled_test.txt").is_file()


def test_colors_that_are_not_exact_and_those_of_no_class(tiles, tmp_path):
    path = next(tiles.rglob("*_2_10_label.tif"))
    colors = np.asarray(Image.open(path)).copy()
    blended = np.where(colors == 255, 252, 9).astype(np.uint8)
    blended[:2, :2] = (255, 0, 255)
    Image.fromarray(blended).save(path)
    told = []
    cut(tiles, tmp_path / "out", log=told.append)
    assert any("lacks the colors of 1 of" in text for text in told)
    label = read_mat(tmp_path / "out" / "gt" / "2_10_00_00.mat", "gt")
    assert label[0, 0] == 255
    assert set(np.unique(label[1:])) <= set(range(6))


def test_tiles_that_are_missing_or_of_another_size(tiles, tmp_path):
    with pytest.raises(DataError, match="has no top_potsdam_.*get 4_Ortho_RGBIR.zip"):
        cut(tmp_path / "nowhere", tmp_path / "out")
    tifffile.imwrite(
        next(tiles.rglob("*_2_10_RGBIR.tif")), np.zeros((400, 800, 4), np.uint8), photometric="rgb"
    )
    with pytest.raises(ImageError, match="2_10_RGBIR.tif has the shape \\(400, 800, 4\\)"):
        cut(tiles, tmp_path / "out", log=lambda sentence: None)
    next(tiles.rglob("*_7_12_label.tif")).unlink()
    with pytest.raises(DataError, match="top_potsdam_7_12_label.tif"):
        cut(tiles, tmp_path / "out", log=lambda sentence: None)


def test_published_lists_are_not_overwritten(tiles, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "labelled_train.txt").write_text("17\n4\n")
    with pytest.raises(DataError, match="has unknown ids"):
        cut(tiles, out, log=lambda sentence: None)
    assert (out / "labelled_train.txt").read_text() == "17\n4\n"


def coco_download(raw, packed=False):
    """Images as folders, stuffthingmaps beside them, or all as archives; one image of each kind."""
    maps = {"000000000001": (400, 157, 1.0), "000000000002": (400, 0, 0.5)}  # on and off the list
    maps |= {"000000000003": (359, 157, 1.0), "000000000004": (360, 157, 0.75)}
    for folder in ("train2017", "val2017"):
        for name, (side, value, share) in maps.items():
            label = np.zeros((side, 400), np.uint8)
            label[: round(side * share)] = value
            for kind, suffix in (("", ".jpg"), ("stuffthingmaps_trainval2017", ".png")):
                path = raw / kind / folder / f"{name}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(label).save(path)
    if packed:
        for name, base in (
            ("train2017", raw),
            ("val2017", raw),
            ("stuffthingmaps_trainval2017", raw / "stuffthingmaps_trainval2017"),
        ):
            with zipfile.ZipFile(raw / f"{name}.zip", "w") as archive:
                for path in sorted((raw / name).rglob("*.*")):
                    archive.write(path, path.relative_to(base))
            shutil.rmtree(raw / name)
    return raw


@pytest.mark.parametrize("packed", [False, True])
def test_downloads_become_the_layout_and_lists_are_made_by_the_rule(tmp_path, packed):
    raw, out = coco_download(tmp_path / "raw", packed), tmp_path / "out"
    told = []
    done = prepare_cocostuff(raw, out, log=told.append)
    assert done["images/val2017"] == done["annotations/train2017"] == 4
    assert len(told) == 2  # both lists
    assert "add --make-lists" in told[0]
    done = prepare_cocostuff(raw, out, make_lists=True, log=told.append)
    assert done["curated/train2017"] == 2
    assert cocostuff.list_path(out, "val").read_text() == "000000000001\n000000000004\n"
    assert "has 2 ids; the published list has 49,629" in told[2]
    image = out / "images" / "val2017" / "000000000001.jpg"
    if not packed:
        assert image.stat().st_nlink == 2  # no copy
    image.unlink()
    before = (out / "images" / "val2017" / "000000000002.jpg").stat().st_mtime_ns
    prepare_cocostuff(raw, out, log=told.append)
    assert image.is_file()
    assert (out / "images" / "val2017" / "000000000002.jpg").stat().st_mtime_ns == before


def test_lists_in_the_download_are_taken(tmp_path):
    raw, out = coco_download(tmp_path / "raw"), tmp_path / "out"
    given = raw / "curated" / "val2017" / cocostuff.LIST
    given.parent.mkdir(parents=True)
    given.write_text("000000000003\n")
    prepare_cocostuff(raw, out, make_lists=True, log=lambda sentence: None)
    assert cocostuff.list_path(out, "val").read_text() == "000000000003\n"
    assert [s.key for s in load_dataset("cocostuff", out, "val").samples] == ["000000000003"]


def test_what_is_missing_or_damaged_is_told(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        prepare_cocostuff(tmp_path / "nowhere", tmp_path / "out")
    raw = tmp_path / "raw"
    raw.mkdir()
    told = []
    with pytest.raises(DataError, match="has no file of COCO-Stuff"):
        prepare_cocostuff(raw, tmp_path / "out", log=told.append)
    assert len(told) == 4
    (raw / "val2017.zip").write_bytes(b"PK half a download")
    with pytest.raises(DataError, match="has no file of COCO-Stuff"):
        prepare_cocostuff(raw, tmp_path / "out", log=told.append)
    assert any("val2017.zip is damaged or incomplete" in text for text in told)
    with zipfile.ZipFile(raw / "val2017.zip", "w") as packed:
        packed.writestr("val2017/a.jpg", b"")
    data = bytearray((raw / "val2017.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 255  # a version that there is not
    (raw / "val2017.zip").write_bytes(data)
    with pytest.raises(DataError, match="has no file of COCO-Stuff"):
        prepare_cocostuff(raw, tmp_path / "out", log=told.append)
    assert any("zip file version 25.5" in text for text in told)


def test_members_of_an_archive_that_are_damaged_encrypted_or_foreign_are_named(tmp_path):
    raw, out, told = tmp_path / "raw", tmp_path / "out", []
    raw.mkdir()
    path = raw / "val2017.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in ("good", "damaged", "secret", "odd"):
            packed.writestr(f"val2017/{name}.jpg", name.encode() * 50)
    data = bytearray(path.read_bytes())
    place = {n: data.index(f"val2017/{n}.jpg".encode()) for n in ("damaged", "secret", "odd")}
    data[place["damaged"] + 24] ^= 255  # a byte of what is packed
    for name, field in (("secret", 8), ("odd", 10)):  # encryption; a packing of number 97
        central = data.rindex(f"val2017/{name}.jpg".encode()) - 46
        for at in (place[name] - 30 + field - 2, central + field):
            data[at] = 1 if name == "secret" else 97
    path.write_bytes(data)
    prepare_cocostuff(raw, out, log=told.append)
    assert [one.name for one in (out / "images" / "val2017").iterdir()] == ["good.jpg"]
    for name in ("damaged", "secret", "odd"):
        assert sum(f"val2017.zip/val2017/{name}.jpg" in text for text in told) == 1, told


def test_label_maps_that_cannot_be_read_are_named_and_the_list_goes_on(tmp_path):
    out, told = tmp_path / "out", []
    coco_download(tmp_path / "raw")
    prepare_cocostuff(tmp_path / "raw", out, make_lists=True, log=lambda sentence: None)
    labels = out / "annotations" / "val2017"
    whole = cocostuff.list_path(out, "val").read_text()
    (labels / "000000000009.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    cocostuff.list_path(out, "val").unlink()
    prepare_cocostuff(tmp_path / "raw", out, make_lists=True, log=told.append)
    assert cocostuff.list_path(out, "val").read_text() == whole
    assert any("000000000009.png" in text for text in told)


def test_a_list_that_is_no_text_is_named(tmp_path):
    out = tmp_path / "out"
    coco_download(tmp_path / "raw")
    prepare_cocostuff(tmp_path / "raw", out, make_lists=True, log=lambda sentence: None)
    for content in (b"\xff\xfe1\0", b"../../secret\n"):
        cocostuff.list_path(out, "val").write_bytes(content)
        with pytest.raises(DataError, match="val2017.*is not (UTF-8 text|a file name)"):
            load_dataset("cocostuff", out, "val")


def test_the_rule_gives_the_published_lists(data_root):
    """On the official maps of the sample, on the lists and off them."""
    from primaps.data.cocostuff import _fits_rule

    root = data_root / "cocostuff_sample"
    for split, folder in cocostuff.FOLDERS.items():
        published = set(cocostuff.list_path(root, split).read_text().split())
        for path in (root / "annotations" / folder).iterdir():
            assert _fits_rule(path) == (path.stem in published), path


def test_the_command_names_what_it_knows(tiles, tmp_path):
    runner = CliRunner()
    done = runner.invoke(app, ["data", "prepare", "potsdam", str(tiles), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "unlabelled_train.txt: 4" in done.output
    done = runner.invoke(app, ["data", "prepare", "cityscapes", str(tiles), str(tmp_path / "o")])
    assert done.exit_code == 1
    assert "Cityscapes needs no preparation" in done.output
