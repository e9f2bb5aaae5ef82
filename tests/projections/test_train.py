from dataclasses import replace

import pytest
from typer.testing import CliRunner

from primaps.cli import app
from primaps.projections import (
    HP_PRESETS,
    STEGO_PRESETS,
    Projection,
    StegoSettings,
    automatic_shifts,
    projection_settings,
    train_hp,
    train_projection,
    train_stego,
)
from tests.projections.originals import Calls, pickled, write_hp, write_raw
from tests.projections.test_training import SMALL, blocks


@pytest.mark.parametrize(("method", "train"), [("stego", train_stego), ("hp", train_hp)])
def test_a_method_is_trained_by_name(method, train):
    features, _ = blocks()
    settings = SMALL[method]
    found = train_projection(features, method, classes=3, settings=settings, steps=2)
    if method == "stego":
        shifts = automatic_shifts(features, settings, classes=3)
        assert found.about["settings"]["shifts"] == shifts._asdict()
        settings = replace(settings, shifts=shifts)
    assert found.digest == train(features, 2, settings).digest
    assert found.name == method


def test_presets_are_those_of_the_papers_and_every_one_names_the_same_data_sets():
    assert list(STEGO_PRESETS) == list(HP_PRESETS) == ["own", "cityscapes", "cocostuff", "potsdam"]
    assert projection_settings("stego", "cityscapes").dim == 100
    assert projection_settings("stego", "cocostuff").shifts == (0.12, 0.2, 1.0)
    assert projection_settings("hp", "cocostuff", dim=70).dim == 70
    assert projection_settings("stego").shifts is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "dino"}, "method is 'dino'; it must be 'stego' or 'hp'"),
        ({"method": "hp", "preset": "voc"}, "preset 'voc' must be one of own, cityscapes"),
        ({"method": "hp", "shifts": 1}, "the fields of hp are dim, temperature"),
    ],
)
def test_unknown_names_are_told_the_choices(arguments, words):
    with pytest.raises(ValueError, match=words):
        projection_settings(**arguments)


def test_settings_of_the_other_method_are_refused():
    with pytest.raises(ValueError, match="StegoSettings are not settings of method 'hp'"):
        train_projection(blocks()[0], "hp", settings=StegoSettings(), steps=1)


def test_convert_on_the_command_line(tmp_path):
    write_hp(tmp_path / "hp.pth", width=64, dim=16)
    arguments = ["projection", "convert", str(tmp_path / "hp.pth"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert Projection.load(tmp_path / "out").clusters.shape == (27, 16)
    assert (tmp_path / "out" / "backbone" / "config.json").exists()


def test_a_hostile_file_is_one_sentence_on_the_command_line(tmp_path):
    write_raw(tmp_path / "a.ckpt", pickled(Calls(open, str(tmp_path / "ran"), "w")))
    arguments = ["projection", "convert", str(tmp_path / "a.ckpt"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 1
    assert "which no weights file needs" in " ".join(done.output.split())
    assert "Traceback" not in done.output
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()
