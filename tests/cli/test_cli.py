import json
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

import primaps
from primaps.cli import app

runner = CliRunner()


def call(*arguments, answers=None):
    words = [str(a) for a in arguments]
    return runner.invoke(app, words, input=answers, catch_exceptions=False)


def test_fit_predict_evaluate_and_propose(vit, painted_folder, tmp_path):
    images, labels, model = painted_folder / "images", painted_folder / "labels", tmp_path / "model"
    quick = ["--size", 64, "--min-init-steps", 20]
    done = call("fit", images, "--classes", 3, "--out", model, "--backbone", vit, *quick)
    assert done.exit_code == 0, done.output
    assert {p.name for p in model.iterdir()} == {
        "model.safetensors",
        "config.json",
        "history.json",
        "preview.png",
        "tree.safetensors",
    }
    done = call("predict", model, images, "--out", tmp_path / "maps", "--names", "a,b,c")
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "maps").glob("*.overlay.jpg"))) == 8
    scores = tmp_path / "scores.json"
    done = call("evaluate", model, images, "--labels", labels, "--json", scores, "--no-crf")
    assert done.exit_code == 0, done.output
    assert "mean IoU" in done.output
    assert json.loads(scores.read_text())["options"]["crf"] is False
    accuracies = []
    whole = ["--no-crop", "--no-flip", "--precision", "auto"]
    for source in ([model, images, *whole], [tmp_path / "maps", images], [tmp_path / "maps"]):
        named = ["--matching", "hungarian"]  # the label maps have the names a, b and c
        done = call("evaluate", *source, "--labels", labels, "--json", scores, *named)
        assert done.exit_code == 0, done.output
        accuracies.append(json.loads(scores.read_text())["accuracy"])
    assert accuracies[0] == accuracies[1] == accuracies[2]
    assert (
        "--classes applies to models"
        in call("evaluate", tmp_path / "maps", "--labels", labels, "--classes", 2).output
    )
    done = call("propose", images, "--out", tmp_path / "p", "--backbone", vit, "--size", 64)
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "p").glob("*.overlay.jpg"))) == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "{images}", "--classes", 1, "--out", "{tmp}/m"], "classes is 1; it must be"),
        (["fit", "{images}", "--classes", 5000, "--out", "{tmp}/m"], "classes is 5000"),
        (["fit", "{tmp}/none", "--classes", 3, "--out", "{tmp}/m"], "does not exist"),
        (["predict", "{tmp}", "{images}", "--out", "{tmp}/o"], "is not a model of primaps"),
        (["propose", "{tmp}/labels.txt", "--out", "{tmp}/o"], "does not exist"),
        (["fit", "{images}", "--classes", 3, "--out", "{tmp}/m", "--size", 65], "not a multiple"),
        (["propose", "{images}", "--out", "{images}"], "choose another output folder"),
    ],
)
def test_input_errors_are_one_sentence(vit, painted_folder, tmp_path, arguments, words):
    filled = [str(a).format(images=painted_folder / "images", tmp=tmp_path) for a in arguments]
    if filled[0] != "predict":
        filled += ["--backbone", vit]
    done = call(*filled)
    assert done.exit_code == 1
    assert words in done.output.replace("\n", " ")
    assert "Traceback" not in done.output


def test_an_output_folder_that_is_a_file_is_an_error_with_its_name(vit, painted_folder, tmp_path):
    (tmp_path / "out").write_text("a file")
    done = call("propose", painted_folder / "images", "--out", tmp_path / "out", "--backbone", vit)
    assert done.exit_code == 1
    assert str(tmp_path / "out") in done.output.replace("\n", "")


def test_help_is_fast_and_imports_no_torch():
    times = []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "primaps", "--help"], check=True, capture_output=True)
        times.append(time.monotonic() - began)
    loaded = subprocess.run(
        [sys.executable, "-c", "import primaps.cli, sys; print('torch' in sys.modules)"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert loaded.stdout.strip() == "False"
    assert min(times) < 2  # twice the promise: this may be a busy machine


def test_version():
    assert call("--version").output.strip() == primaps.__version__


def test_every_public_name_can_be_imported():
    for name in primaps.__all__:
        assert getattr(primaps, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = primaps.nothing


@pytest.mark.parametrize("name", ["[val]", "[/a]", "[red]x[/red]", "a\x1b[31mb"])
def test_markup_and_escape_sequences_in_paths_are_printed_as_text(name, tmp_path):
    done = call("propose", tmp_path / name, "--out", tmp_path / "o")
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    shown = name.replace("\x1b", "\\x1b")
    assert f"{shown} does not exist" in done.output.replace("\n", "")
    assert "\x1b[31m" not in done.output


def test_unexpected_errors_are_named_and_debug_prints_the_traceback(
    vit, painted_folder, tmp_path, monkeypatch
):
    from primaps import batch

    def broken(*_, **__):
        raise ValueError("inside [somewhere]\nsecond line")

    monkeypatch.setattr(batch, "propose_files", broken)
    command = ["propose", painted_folder / "images", "--out", tmp_path / "o", "--backbone", vit]
    done = call(*command)
    assert done.exit_code == 1
    assert "ValueError: inside [somewhere] (unexpected; `primaps --debug" in done.output.replace(
        "\n", " "
    )
    assert "Traceback" not in done.output
    assert "Traceback" in call("--debug", *command).output


def test_help_lists_commands_in_the_order_of_a_workflow():
    shown = call("--help").output
    panels = ["Images without labels", "Evaluation with labels", "Labeled data sets", "Experiments"]
    assert sorted(panels, key=shown.index) == panels
    commands = ["demo", "propose", "fit", "predict", "evaluate", "oracle", "probe"]
    lines = [
        line.split()[1] for line in shown.splitlines() if line.startswith("│ ") and line[2] != " "
    ]
    assert [line for line in lines if line in commands] == commands
