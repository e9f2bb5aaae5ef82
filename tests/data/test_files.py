"""Files and folders as people have them: links, odd names, file systems that lack something."""

import errno
import fcntl
import io
import json
import mmap
import os
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from primaps import batch
from primaps.backbones.load import load_backbone
from primaps.batch import predict_files, propose_files
from primaps.data import find_images, find_label, load_dataset, load_image, pair_up
from primaps.evaluation.protocol import evaluate
from primaps.exchange.transfer import export_labels, image_keys
from primaps.features.extract import _preview_images
from primaps.features.feature_cache import ArrayCache
from primaps.results import write_marked_json
from primaps.utils.errors import InputError
from primaps.utils.files import fitting_name, locked, write_json
from tests.conftest import painted
from tests.data.test_elsewhere import encoded, shard


def save(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    painted(seed)[0].save(path, None if path.suffix else "PNG")
    return path


def listed(inputs, **options):
    said = []
    files = find_images(inputs, log=said.append, **options)
    return [file.key for file in files], said


@pytest.fixture
def network(colors):
    return load_backbone(colors, device="cpu", patch_size=8)


# Links


def test_links_are_followed_and_name_the_results(network, tmp_path):
    save(tmp_path / "blobs" / "5f3e")
    save(tmp_path / "elsewhere" / "deep" / "b.png", 1)
    images = tmp_path / "images"
    save(images / "plain" / "c.png", 2)
    (images / "a.png").symlink_to(tmp_path / "blobs" / "5f3e")
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    (images / "plain" / "up").symlink_to(images)
    (images / "linked" / "deep" / "back").symlink_to(images / "linked")
    assert listed(images) == (["a", "linked/deep/b", "plain/c"], [])
    (file, *_) = find_images(images)
    assert file.source == images / "a.png"
    for pattern, found in (
        ("*.png", ["a"]),
        ("*/deep/*.png", ["linked/deep/b"]),
        ("**/*.png", ["a", "linked/deep/b", "plain/c"]),
        ("linked/**", ["deep/b"]),
        ("**/plain", ["plain/c"]),
        ("*", ["a", "linked/deep/b", "plain/c"]),
    ):
        assert listed(str(images / pattern))[0] == found
    assert listed([images / "a.png", images / "linked"])[0] == ["a", "linked/deep/b"]
    propose_files(images, tmp_path / "out", backbone=network, size=64)
    assert (tmp_path / "out" / "linked" / "deep" / "b.overlay.jpg").is_file()
    assert listed(tmp_path / "images" / "linked", exclude=tmp_path / "elsewhere" / "none")[0]


def test_an_output_folder_is_recognized_behind_a_link(tmp_path):
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "out" / "b.png")
    (tmp_path / "in" / "c").symlink_to(tmp_path / "in" / "out")
    assert listed(tmp_path / "in", exclude=tmp_path / "in" / "out")[0] == ["a"]


def test_what_is_left_out_is_counted_and_said_once(network, tmp_path):
    out, tmp_path = tmp_path / "out", tmp_path / "in"
    save(tmp_path / "a.png")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "absent.jpg")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    (tmp_path / "notes").symlink_to(tmp_path / "absent")
    for name in ("b.heic", "c.HEIC", "d.jxl", "e.dng", "f.nef", "g.txt"):
        (tmp_path / name).touch()
    expected = (
        "left out: 5 images of formats that are not read (.dng, .heic, .jxl, .nef) and 2 links "
        f"without a target; first {tmp_path / 'b.heic'}; convert the images to JPEG, PNG or TIFF"
    )
    for given in (tmp_path, str(tmp_path / "*"), str(tmp_path / "**")):
        assert listed(given) == (["a"], [expected])
    said = []
    propose_files(tmp_path, out, backbone=network, size=64, log=said.append)
    assert said == [expected]
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no image in .*; left out: 5 images of formats"):
        find_images(tmp_path)


def test_jpe_and_mpo_files_are_read(tmp_path):
    image = painted(0)[0]
    image.save(tmp_path / "a.jpe", "JPEG")
    image.save(tmp_path / "b.mpo", "MPO", save_all=True, append_images=[painted(1)[0]])
    assert listed(tmp_path)[0] == ["a", "b"]
    assert np.array_equal(*(np.asarray(load_image(one.source)) for one in find_images(tmp_path)))


# Names


def test_three_images_have_three_keys(network, tmp_path):
    for seed, name in enumerate(("a.jpg", "a.png", "a.jpg.png", "A.tif", "b.png")):
        save(tmp_path / "in" / name, seed)
    keys = ["A.tif", "a.jpg", "a.jpg.png", "a.png", "b"]
    assert listed(tmp_path / "in")[0] == keys
    done = propose_files(tmp_path / "in", tmp_path / "out", backbone=network, size=64)
    assert [path.name for path in done.written] == [f"{key}.png" for key in keys]
    assert len({path.read_bytes() for path in done.written}) == 5
    assert image_keys(["a.jpg", "a.png", "a.jpg.png", "b.png"]) == [
        "a.jpg", "a.png", "a.jpg.png", "b",
    ]  # fmt: skip


@pytest.mark.parametrize("given", ["", [""], ["a.png", ""]])
def test_an_empty_input_is_refused(tmp_path, monkeypatch, given):
    save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="an input is ''; give files, folders or globs"):
        find_images(given)


def test_names_that_are_not_utf8_keep_their_bytes(fitted, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    save(tmp_path / "in" / name)
    save(tmp_path / "in" / "b.png", 1)
    done = predict_files(fitted, tmp_path / "in", tmp_path / "out")
    assert [os.fsencode(path.name) for path in done.written] == [b"b.png", b"caf\xe9.png"]
    assert len(predict_files(fitted, tmp_path / "in", tmp_path / "out").kept) == 2
    journal = (tmp_path / "out" / "primaps.jsonl").read_text("utf-8")
    assert [json.loads(line) for line in journal.splitlines()]
    for write in (write_json, write_marked_json):
        write(tmp_path / f"{write.__name__}.json", {"by_image": {name: 1, "é": 2}})
        text = (tmp_path / f"{write.__name__}.json").read_text("utf-8")
        assert json.loads(text)["by_image"] == {name: 1, "é": 2}
        assert '"é"' in text
    with locked(tmp_path / name):
        pass
    with pytest.raises(InputError, match="has the unsupported character .* rename it"):
        export_labels(tmp_path / "out", tmp_path / "in", "coco", tmp_path / "coco")


@pytest.mark.parametrize("letter", ["x", "ü"])
def test_names_of_250_bytes_have_results(network, tmp_path, letter):
    stem = letter * (246 // len(letter.encode()))
    save(tmp_path / "in" / f"{stem}.png")
    save(tmp_path / "in" / f"{stem[:-1]}y.png", 1)
    for _ in range(2):
        done = propose_files(tmp_path / "in", tmp_path / "out", backbone=network, size=64)
    assert {path.stem for path in done.kept} == {stem, f"{stem[:-1]}y"}
    overlays = list((tmp_path / "out").glob("*.overlay.jpg"))
    assert len(overlays) == 2
    assert all(len(os.fsencode(path.name)) <= 255 for path in overlays)
    long = "y" * 240 + "." + letter * 7
    write_json(tmp_path / long, [])
    assert (tmp_path / long).read_text() == "[]\n"
    assert len(os.fsencode(fitting_name(stem, ".safetensors"))) <= 255
    save(tmp_path / "in" / f"{stem}yyyyy.png")
    save(tmp_path / "in" / f"{stem}yyyyy.tif")
    with pytest.raises(ValueError, match="longer name than file systems allow .*rename the image"):
        propose_files(tmp_path / "in", tmp_path / "other", backbone=network, size=64)


def test_labels_are_found_however_accents_are_composed(fitted, tmp_path):
    tmp_path = tmp_path / "accents"
    composed, apart = (unicodedata.normalize(form, "Ä/café") for form in ("NFC", "NFD"))
    assert composed != apart
    for kind, name in (("images", composed), ("labels", apart)):
        (tmp_path / kind / name).parent.mkdir(parents=True)
    image, label = painted(3)
    image.save(tmp_path / "images" / f"{composed}.png")
    Image.fromarray(label).save(tmp_path / "labels" / f"{apart}.png")
    (file,) = find_images(tmp_path / "images")
    assert find_label(file, tmp_path / "labels") == tmp_path / "labels" / f"{apart}.png"
    data = pair_up(tmp_path / "images", tmp_path / "labels")
    assert np.array_equal(data.label(data.samples[0]), label)
    predict_files(fitted, tmp_path / "images", tmp_path / "maps")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / unicodedata.normalize("NFD", "Ä")).mkdir()
    (tmp_path / "maps" / f"{composed}.png").rename(tmp_path / "moved" / f"{apart}.png")
    classes = tmp_path / "classes.json"
    classes.write_text('{"classes": ["a", "b", "c"]}')
    done = export_labels(
        tmp_path / "moved", tmp_path / "images", "coco", tmp_path / "coco", classes=classes
    )
    assert done.images == 1


# What changes during a run, and what a file system lacks


def test_a_file_that_vanishes_is_skipped_with_a_sentence(network, tmp_path, monkeypatch):
    for seed in range(3):
        save(tmp_path / "in" / f"{seed}.png", seed)
    real = batch.find_images

    def find_and_lose(*given, **options):
        files = real(*given, **options)
        Path(files[1].source).unlink(missing_ok=True)
        return files

    monkeypatch.setattr(batch, "find_images", find_and_lose)
    files = real(tmp_path / "in")
    done = propose_files(tmp_path / "in", tmp_path / "out", backbone=network, size=64)
    assert [path.stem for path in done.written] == ["0", "2"]
    assert done.problems == [
        f"{tmp_path / 'in' / '1.png'} cannot be read (No such file or directory)"
    ]
    preview = _preview_images(files, [file.key for file in files], 32)
    assert preview.shape == (2, 3, 32, 32)


def lacking(number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EROFS])
def test_a_file_system_without_permissions(network, tmp_path, monkeypatch, number):
    save(tmp_path / "in" / "a.png")
    for module in (os, Path):
        monkeypatch.setattr(module, "chmod", lacking(number))
    done = propose_files(tmp_path / "in", tmp_path / "out", backbone=network, size=64)
    assert [path.name for path in done.written] == ["a.png"]
    export_labels(tmp_path / "out", tmp_path / "in", "coco", tmp_path / "coco")
    assert (tmp_path / "coco").is_dir()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_locks(network, tmp_path, monkeypatch, number):
    save(tmp_path / "in" / "a.png")
    monkeypatch.setattr(fcntl, "flock", lacking(number))
    done = propose_files(tmp_path / "in", tmp_path / "out", backbone=network, size=64)
    assert [path.name for path in done.written] == ["a.png"]
    with locked(tmp_path / "a"), locked(tmp_path / "a"):
        pass


def test_a_file_system_without_memory_maps(tmp_path, monkeypatch):
    rows = np.arange(24, dtype=np.float16).reshape(4, 2, 3)
    one, several = ArrayCache((2, 3), np.float16, tmp_path / "one"), tmp_path / "several"
    with one.writing():
        one.append(list("abcd"), rows)
    cache = ArrayCache((3,), np.float16, several, several=True)
    with cache.writing():
        cache.append(["a", "b"], [rows[0], rows[1, :1]])
    monkeypatch.setattr(mmap, "mmap", lacking(errno.ENODEV))
    again = ArrayCache((2, 3), np.float16, tmp_path / "one")
    assert again.missing(["a", "x"]) == ["x"]
    found = again.rows(["c", "a"])
    assert np.array_equal(np.stack(found.arrays), rows[[2, 0]])
    parts = ArrayCache((3,), np.float16, several, several=True).rows(["b", "a"])
    assert [part.tolist() for part in parts.arrays] == [rows[1, :1].tolist(), rows[0].tolist()]


# Archives


@pytest.fixture
def samples(tmp_path):
    """WebDataset: images, their label maps under the same name, and an image with dots."""
    members = {}
    (tmp_path / "maps-of-tar").mkdir()
    for number in range(3):
        members[f"{number:03}.png"] = encoded(number)
        label, file = painted(number)[1], io.BytesIO()
        Image.fromarray(label).save(file, "PNG")
        members[f"{number:03}.seg.png"] = file.getvalue()
        (tmp_path / "maps-of-tar" / f"{number:03}.png").write_bytes(file.getvalue())
    members["photo.v2.png"] = encoded(7)
    return shard(tmp_path / "s.tar", members)


def test_members_with_two_dots_belong_to_their_sample(samples):
    keys, said = listed(samples)
    assert keys == ["000", "001", "002", "photo.v2"]
    assert said == [
        "left out: 3 images that belong to another one, such as 0.seg.png to 0.jpg; first "
        f"{samples}: 000.seg.png"
    ]


def test_evaluate_and_export_read_archives(fitted, samples, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with tarfile.open(samples) as archive:
        archive.extractall(folder, filter="data")
    for path in folder.glob("*.seg.png"):
        path.unlink()
    scores = [
        evaluate(fitted, source, tmp_path / "maps-of-tar", log=lambda sentence: None)
        for source in (samples, folder)
    ]
    assert scores[0].images == 3
    assert scores[0].confusion == scores[1].confusion
    predict_files(fitted, samples, tmp_path / "maps", log=lambda sentence: None)
    for name, source in (("tar", samples), ("dir", folder)):
        for to in ("coco", "yolo", "voc"):
            out = tmp_path / f"{name}-{to}"
            export_labels(tmp_path / "maps", source, to, out, log=lambda sentence: None)
    for to in ("coco", "yolo", "voc"):
        one, other = (
            {
                path.relative_to(tmp_path / f"{name}-{to}"): path.read_bytes()
                for path in (tmp_path / f"{name}-{to}").rglob("*")
                if path.is_file() and path.name != ".primaps.jsonl"
            }
            for name in ("tar", "dir")
        )
        assert one == other
    with pytest.raises(InputError, match="Label Studio serves the image files of a folder"):
        export_labels(
            tmp_path / "maps", samples, "labelstudio", tmp_path / "ls", log=lambda sentence: None
        )


# Splits


def test_splits_have_any_name(tmp_path):
    for split in ("training", "validation", "test2017", "cam1"):
        for kind in ("images", "labels"):
            save(tmp_path / kind / split / f"{split}.png")
    keys = {
        split: [sample.key for sample in load_dataset("folder", tmp_path, split).samples]
        for split in ("training", "validation", "test2017", "cam1")
    }
    assert keys == {split: [split] for split in keys}
    assert len(load_dataset("folder", tmp_path, "all").samples) == 4
    assert list(load_dataset("folder", tmp_path, "cam1").layout.splits) == [
        "training", "validation", "test2017",
    ]  # fmt: skip
    for split in ("val", "other"):
        with pytest.raises(InputError, match=f"has no split '{split}'; choose one of training"):
            load_dataset("folder", tmp_path, split)


def test_a_folder_without_splits_has_no_test_split(tmp_path):
    for kind in ("images", "labels"):
        save(tmp_path / kind / "street" / "a.png")
    for split in ("train", "val", "all"):
        assert [s.key for s in load_dataset("folder", tmp_path, split).samples] == ["street/a"]
    assert [s.key for s in load_dataset("folder", tmp_path, "street").samples] == ["a"]
    with pytest.raises(InputError, match="has no split 'test'"):
        load_dataset("folder", tmp_path, "test")
