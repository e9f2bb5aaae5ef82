import json

import pytest
import safetensors.torch
import torch

from primaps.config import Config
from primaps.em.em import fit_em
from primaps.em.kmeans import fit_kmeans, pca_init
from primaps.em.training import Recorder, clear_checkpoints
from primaps.features.training_data import ImageArrays, Views
from primaps.results import OutputError

SETTINGS = Config(3, recipe="paper", batch_size=4, momentum_every=3)


@pytest.fixture(autouse=True)
def save_every_step(monkeypatch):
    monkeypatch.setattr("primaps.em.training.SAVE_SECONDS", 0.0)


def stop_after(steps):
    def progress(stage, done, total, figures):
        stop_after.count += 1
        if stop_after.count == steps:
            raise KeyboardInterrupt

    stop_after.count = 0
    return progress


def run(folder, progress=lambda *_: None, fingerprint="a"):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(10, 2, 6, 5, 5, generator=generator).half()
    masks = torch.randint(0, 4, (10, 20, 20), generator=generator).to(torch.uint8)
    views, recorder = Views(ImageArrays(features)), Recorder(2, progress, folder, fingerprint)
    start = fit_kmeans(views, pca_init(views, 3), 7, SETTINGS, recorder)
    return fit_em(views, ImageArrays(masks), start, 11, SETTINGS, recorder), recorder.epochs


@pytest.mark.parametrize("steps", [1, 4, 7, 8, 12, 17, 18])
def test_a_resumed_fit_equals_an_uninterrupted_one(tmp_path, steps):
    """The progress callback precedes the checkpoint: the last step is repeated."""
    expected, history = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_after(steps))
    stop_after.count = -(10**9)
    found, lines = run(tmp_path)
    assert torch.equal(found.direction, expected.direction)
    assert torch.equal(found.scale, expected.scale)
    assert json.dumps(lines) == json.dumps(history)


def test_a_finished_stage_is_not_repeated(tmp_path):
    run(tmp_path)
    seen = []
    run(tmp_path, lambda stage, done, total, figures: seen.append(stage))
    assert not seen


def test_a_checkpoint_of_other_options_or_images_is_ignored(tmp_path):
    run(tmp_path)
    seen = []
    run(tmp_path, lambda stage, done, total, figures: seen.append(stage), fingerprint="b")
    assert seen == ["k-means"] * 7 + ["EM"] * 11


@pytest.mark.parametrize("at", [5, 200, -10])
def test_a_damaged_checkpoint_is_reported(tmp_path, at, caplog):
    expected, _ = run(tmp_path)
    path = tmp_path / "training-EM.safetensors"
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)
    found, _ = run(tmp_path)
    assert torch.equal(found.direction, expected.direction)
    assert "the checkpoint is damaged" in caplog.text
    assert str(path) in caplog.text


def test_files_of_others_under_the_names_of_checkpoints_stay(tmp_path):
    paths = [tmp_path / f"training-{name}.safetensors" for name in ("EM", "data", "notes")]
    for path in paths[:2]:
        path.write_bytes(safetensors.torch.save({"weight": torch.ones(3)}))
    paths[2].write_text("not a safetensors file")
    contents = [path.read_bytes() for path in paths]
    with pytest.raises(OutputError, match="training-EM.safetensors was not written by primaps"):
        run(tmp_path)
    clear_checkpoints(tmp_path)
    assert [path.read_bytes() for path in paths] == contents
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_a_checkpoint_of_another_shape_is_ignored(tmp_path, caplog):
    """The fingerprint can be copied with a folder."""

    def network(outputs):
        layer = torch.nn.Linear(3, outputs)
        layer(torch.ones(1, 3)).sum().backward()
        return layer, torch.optim.Adam(layer.parameters())

    first = network(2)
    Recorder(folder=tmp_path, fingerprint="a").save("em", 4, 4, *first)
    other, optimizer = network(5)
    before = other.weight.clone()
    assert Recorder(folder=tmp_path, fingerprint="a").restore("em", other, optimizer) == 0
    assert torch.equal(other.weight, before)
    assert "belongs to another model: em starts over" in caplog.text
    same, optimizer = network(2)
    assert Recorder(folder=tmp_path, fingerprint="a").restore("em", same, optimizer) == 4
    assert torch.equal(same.weight, first[0].weight)


def test_a_class_that_becomes_empty_is_reported_once(caplog):
    views = Views(ImageArrays(torch.ones(4, 2, 3, 5, 5).half()))
    start = pca_init(Views(ImageArrays(torch.randn(4, 2, 3, 5, 5).half())), 3)
    start.direction.data = torch.tensor([[1.0, 1, 1], [-1, -1, -1], [-1, 1, -1]])
    recorder = Recorder()
    masks = ImageArrays(torch.ones(4, 20, 20, dtype=torch.uint8))
    fit_em(views, masks, start, 3, SETTINGS, recorder)
    assert caplog.text.count("no pixel has class 1, 2") == 1
    assert recorder.epochs[0]["empty"] == [1, 2]


def test_processes_sum_metrics_in_the_same_order(monkeypatch):
    """Another order causes a deadlock, or adds two different metrics."""
    summed = []
    monkeypatch.setattr(
        "primaps.em.training.total", lambda value: summed.append(len(value)) or value
    )
    figures = {"classes": torch.ones(3), "count": torch.ones(1), "loss": torch.ones(2)}
    for order in (list(figures), list(figures)[::-1]):
        recorder = Recorder(per_epoch=2)
        recorder._sums = {name: figures[name].double() for name in order}
        recorder.record("EM", 2, 2, figures, lambda sums, steps: {"loss": float(sums["loss"][0])})
        assert recorder.epochs[-1]["loss"] == 2
    assert summed[:3] == summed[3:] == [3, 1, 2]
