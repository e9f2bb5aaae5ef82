import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from primaps.batch import predict_files, propose_files
from primaps.data import ImageError
from tests.conftest import painted


def read(path):
    return np.asarray(Image.open(path))


def test_propose_writes_masks_at_the_size_of_each_image(network, tmp_path):
    for name, size in (("a/wide.png", (130, 50)), ("tall.jpg", (40, 90))):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        painted(1, *((s // 8 * 8) for s in size))[0].resize(size).save(tmp_path / "in" / name)
    done = propose_files(tmp_path / "in", tmp_path / "out", backbone=network, size=64)
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in done.written) == [
        "a/wide.png",
        "tall.png",
    ]
    masks = Image.open(tmp_path / "out" / "a" / "wide.png")
    assert masks.mode == "L"
    assert masks.size == (130, 50)
    assert 2 <= read(tmp_path / "out" / "a" / "wide.png").max() < 20
    assert Image.open(tmp_path / "out" / "a" / "wide.overlay.jpg").size == (130, 50)


def test_predict_writes_classes_and_a_legend(fitted, painted_folder, tmp_path):
    done = predict_files(fitted, painted_folder / "images", tmp_path, names=["r", "g", "b"])
    assert len(done.written) == 8
    assert set(np.unique(read(tmp_path / "0.png"))) <= {0, 1, 2}
    drawn = Image.open(tmp_path / "0.overlay.jpg")
    assert drawn.height > 64  # the legend is below
    with pytest.raises(ValueError, match="names has 2 entries for 3 classes"):
        predict_files(fitted, painted_folder / "images", tmp_path, names=["r", "g"])


def test_results_are_reused_until_options_or_images_change(network, painted_folder, tmp_path):
    images, out = painted_folder / "images", tmp_path / "out"

    def run(**options):
        done = propose_files(images, out, backbone=network, size=64, **options)
        return len(done.written), len(done.kept)

    assert run() == (8, 0)
    assert run() == (0, 8)
    (out / "3.png").unlink()  # as after a killed run
    assert run() == (1, 7)
    shutil.copy(images / "1.png", images / "2.png")
    assert run() == (1, 7)
    assert run(threshold=0.3) == (8, 0)


def test_outputs_inside_the_input_folder_are_not_inputs(network, painted_folder):
    images = painted_folder / "images"
    for expected in ((8, 0), (0, 8)):
        done = propose_files(images, images / "masks", backbone=network, size=64)
        assert (len(done.written), len(done.kept)) == expected


def test_results_are_not_mixed_with_images(network, painted_folder):
    before = {p.name: p.read_bytes() for p in (painted_folder / "images").iterdir()}
    with pytest.raises(ValueError, match="choose another output folder"):
        propose_files(painted_folder / "images", painted_folder / "images", backbone=network)
    assert before == {p.name: p.read_bytes() for p in (painted_folder / "images").iterdir()}


def test_bad_images_are_reported_and_skipped(network, painted_folder, tmp_path):
    (painted_folder / "images" / "bad.png").write_text("no image")
    log = []
    done = propose_files(
        painted_folder / "images", tmp_path, backbone=network, size=64, log=log.append
    )
    assert len(done.written) == 8
    assert done.problems == log
    assert "bad.png is not an image" in log[0]
    with pytest.raises(ImageError, match="none of the 1 images could be read"):
        propose_files(
            painted_folder / "images" / "bad.png", tmp_path / "x", backbone=network, size=64
        )


def test_a_full_disk_leaves_no_half_written_file(network, painted_folder, tmp_path, monkeypatch):
    real, calls = Path.write_bytes, []

    def write_bytes(self, content):
        calls.append(self)
        if len(calls) == 1:  # the manifest
            return real(self, content)
        with self.open("wb") as file:
            file.write(content[:9])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match="No space left"):
        propose_files(painted_folder / "images", tmp_path / "out", backbone=network, size=64)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["primaps.json"]


@pytest.fixture
def sizes(tmp_path):
    """Images of three sizes, mixed."""
    for number, (width, height) in enumerate(
        [(64, 64), (96, 64), (64, 64), (64, 96), (96, 64)] * 3
    ):
        (tmp_path / "in").mkdir(exist_ok=True)
        painted(number, width, height)[0].save(tmp_path / "in" / f"{number:02}.png")
    return tmp_path / "in"


def test_label_maps_do_not_depend_on_the_batch(fitted, sizes, tmp_path):
    done = predict_files(fitted, sizes, tmp_path / "out")
    assert [path.stem for path in done.written] == [f"{number:02}" for number in range(15)]
    for path in done.written:
        alone = fitted.predict(sizes / path.name).numpy()
        assert np.array_equal(read(path), alone), path.name


def test_predict_runs_the_backbone_once_at_the_requested_size(fitted, sizes, tmp_path, monkeypatch):
    shapes = []
    forward = type(fitted.backbone).forward

    def watched(self, images):
        shapes.extend([tuple(images.shape[-2:])] * len(images))
        return forward(self, images)

    monkeypatch.setattr(type(fitted.backbone), "forward", watched)
    predict_files(fitted, sizes / "00.png", tmp_path / "usual")
    predict_files(fitted, sizes / "00.png", tmp_path / "large", size=128)
    assert shapes == [(64, 64), (128, 128)]
    alone = fitted.predict(sizes / "00.png", size=128).numpy()
    assert np.array_equal(read(tmp_path / "large" / "00.png"), alone)
    assert predict_files(fitted, sizes / "00.png", tmp_path / "large").kept == []
    predict_files(fitted, sizes / "00.png", tmp_path / "tiles", size=32, tiles={"tile_overlap": 0})
    assert set(shapes[4:]) == {(32, 32)}


def test_each_core_computes_its_own_batch_and_threads_are_restored(
    network, sizes, tmp_path, monkeypatch
):
    threads = torch.get_num_threads()
    threads_used, calls = set(), []
    forward = type(network).forward

    def watched(self, images):
        threads_used.add(threading.get_ident())
        calls.append((len(images), torch.get_num_threads()))
        return forward(self, images)

    monkeypatch.setattr(type(network), "forward", watched)
    torch.set_num_threads(2)
    try:
        propose_files(sizes, tmp_path / "out", backbone=network, size=64)
        assert threading.get_ident() not in threads_used
        assert {number for _, number in calls} == {1}
        assert {images for images, _ in calls} == {1, 2}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_an_error_while_writing_stops_the_run(network, sizes, tmp_path):
    (tmp_path / "out").mkdir()
    calls = []

    def progress(stage, done, total, metrics):
        calls.append(done)
        (tmp_path / "out" / "14.png").write_text("not from primaps")

    with pytest.raises(ValueError, match=r"14.png was not written by primaps"):
        propose_files(sizes, tmp_path / "out", backbone=network, size=64, progress=progress)
    assert (tmp_path / "out" / "14.png").read_text() == "not from primaps"


def test_options_are_recorded(network, painted_folder, tmp_path):
    propose_files(painted_folder / "images", tmp_path, backbone=network, size=64, mask_crf=False)
    record = json.loads((tmp_path / "primaps.json").read_text())
    assert record["mask_crf"] is False
    assert record["backbone"] == network.digest
