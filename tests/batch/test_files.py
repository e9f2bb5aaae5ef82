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
from primaps.evaluation.protocol import evaluate
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
    picture = Image.open(tmp_path / "0.overlay.jpg")
    assert picture.height > 64  # the legend is below
    with pytest.raises(ValueError, match="names has 2 entries for 3 classes"):
        predict_files(fitted, painted_folder / "images", tmp_path, names=["r", "g"])


def test_what_was_written_is_kept_until_options_or_images_change(network, painted_folder, tmp_path):
    images, out = painted_folder / "images", tmp_path / "out"

    def run(**options):
        done = propose_files(images, out, backbone=network, size=64, **options)
        return len(done.written), len(done.kept)

    assert run() == (8, 0)
    assert run() == (0, 8)
    (out / "3.png").unlink()  # as if it had been stopped there
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
    with pytest.raises(ValueError, match="write to another folder"):
        propose_files(painted_folder / "images", painted_folder / "images", backbone=network)
    assert before == {p.name: p.read_bytes() for p in (painted_folder / "images").iterdir()}


def test_bad_images_are_reported_and_skipped(network, painted_folder, tmp_path):
    (painted_folder / "images" / "bad.png").write_text("no image")
    told = []
    done = propose_files(
        painted_folder / "images", tmp_path, backbone=network, size=64, log=told.append
    )
    assert len(done.written) == 8
    assert done.problems == told
    assert "bad.png is not an image" in told[0]
    with pytest.raises(ImageError, match="none of the 1 images could be read"):
        propose_files(
            painted_folder / "images" / "bad.png", tmp_path / "x", backbone=network, size=64
        )


def test_a_full_disk_leaves_no_half_written_file(network, painted_folder, tmp_path, monkeypatch):
    def write_bytes(self, content):
        with self.open("wb") as file:
            file.write(content[:9])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match="No space left"):
        propose_files(painted_folder / "images", tmp_path / "out", backbone=network, size=64)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["primaps.json"]


@pytest.fixture
def sizes(tmp_path):
    """Images of several sizes, in no order of theirs."""
    for number, (width, height) in enumerate(
        [(64, 64), (96, 64), (64, 64), (64, 96), (96, 64)] * 3
    ):
        (tmp_path / "in").mkdir(exist_ok=True)
        painted(number, width, height)[0].save(tmp_path / "in" / f"{number:02}.png")
    return tmp_path / "in"


def test_a_map_is_that_of_its_image_alone_whatever_is_computed_with_it(fitted, sizes, tmp_path):
    done = predict_files(fitted, sizes, tmp_path / "out")
    assert [path.stem for path in done.written] == [f"{number:02}" for number in range(15)]
    for path in done.written:
        alone = fitted.predict(sizes / path.name).numpy()
        assert np.array_equal(read(path), alone), path.name


def test_predict_looks_once_and_at_the_size_that_is_asked_for(fitted, sizes, tmp_path, monkeypatch):
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


def test_every_core_has_a_batch_of_its_own_and_torch_its_threads_back(
    network, sizes, tmp_path, monkeypatch
):
    threads = torch.get_num_threads()
    seen, most = set(), []
    forward = type(network).forward

    def watched(self, images):
        seen.add(threading.get_ident())
        most.append((len(images), torch.get_num_threads()))
        return forward(self, images)

    monkeypatch.setattr(type(network), "forward", watched)
    torch.set_num_threads(2)
    try:
        propose_files(sizes, tmp_path / "out", backbone=network, size=64)
        assert threading.get_ident() not in seen
        assert {number for _, number in most} == {1}
        assert {images for images, _ in most} == {1, 2}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_an_error_while_writing_ends_the_run_at_once(network, sizes, tmp_path):
    (tmp_path / "out").mkdir()
    calls = []

    def progress(stage, done, total, figures):
        calls.append(done)
        (tmp_path / "out" / "14.png").write_text("of somebody else")

    with pytest.raises(ValueError, match=r"14.png was not written by primaps"):
        propose_files(sizes, tmp_path / "out", backbone=network, size=64, progress=progress)
    assert (tmp_path / "out" / "14.png").read_text() == "of somebody else"


def test_evaluate_scores_by_hand(fitted, painted_folder):
    result = evaluate(fitted, painted_folder / "images", painted_folder / "labels")
    assert result.accuracy > 0.95
    assert set(result.iou) == {"red", "green", "blue"}
    assert sorted(result.assignment) == ["blue", "green", "red"]
    assert np.sum(result.confusion) == 8 * 64 * 64
    assert result.images == 8
    assert result.options.ignore_index == 255


def test_ignored_pixels_are_not_counted(fitted, painted_folder):
    for path in (painted_folder / "labels").glob("*.png"):
        label = read(path).copy()
        label[:16] = 255
        Image.fromarray(label).save(path)
    result = evaluate(fitted, painted_folder / "images", painted_folder / "labels")
    assert np.sum(result.confusion) == 8 * 48 * 64


def test_images_without_usable_label_are_skipped_by_name(fitted, painted_folder):
    labels = painted_folder / "labels"
    (labels / "0.png").unlink()
    Image.new("L", (63, 64)).save(labels / "1.png")
    Image.new("L", (64, 64), 9).save(labels / "2.png")
    Image.new("RGB", (64, 64)).save(labels / "3.png")
    result = evaluate(fitted, painted_folder / "images", labels, log=lambda sentence: None)
    assert result.images == 4
    words = ["has no label", "63x64 pixels and its image 64x64", "has the value 9", "one channel"]
    for word, sentence in zip(words, result.skipped, strict=True):
        assert word in sentence


def test_labels_without_classes_json(fitted, painted_folder):
    (painted_folder / "labels" / "classes.json").unlink()
    result = evaluate(fitted, painted_folder / "images", painted_folder / "labels")
    assert list(result.iou) == ["class 0", "class 1", "class 2"]
    with pytest.raises(FileNotFoundError, match="not a folder of label maps"):
        evaluate(fitted, painted_folder / "images", painted_folder / "nowhere")


def test_options_are_recorded(network, painted_folder, tmp_path):
    propose_files(painted_folder / "images", tmp_path, backbone=network, size=64, mask_crf=False)
    record = json.loads((tmp_path / "primaps.json").read_text())
    assert record["mask_crf"] is False
    assert record["backbone"] == network.digest
