import json

import pytest
from typer.testing import CliRunner

from primaps.cli import app


def run(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_labels_go_out_and_come_back(street):
    out, back = street.root / "out", street.root / "back"
    done = run("export", street.result, "--images", street.images, "--to", "cvat", "--out", out)
    assert done.exit_code == 0, done.output
    assert (
        "Next: in CVAT: create a task with your images and these labels: road, wet" in done.output
    )
    done = run("import", out / "annotations.xml", "--from", "cvat", "--out", back)
    assert done.exit_code == 0, done.output
    assert "4 label maps of 8 classes" in done.output
    content = json.loads((back / "classes.json").read_text("utf-8"))
    assert content["classes"] == list(street.classes.names)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["export", "{root}", "--images", "{images}", "--to", "coco"], "has no class names"),
        (["export", "{result}", "--images", "{images}", "--to", "pdf"], "got 'pdf'"),
        (["import", "{root}/no", "--from", "coco"], "does not exist"),
        (["push", "{images}", "a/b"], "has no config.json"),
    ],
)
def test_mistakes_are_one_sentence(street, arguments, sentence):
    places = {"root": street.root, "images": street.images, "result": street.result}
    filled = [one.format(**places) for one in arguments]
    done = run(*filled, *([] if arguments[0] == "push" else ["--out", street.root / "out"]))
    assert done.exit_code == 1
    assert sentence in done.output
    assert "Traceback" not in done.output
    assert not (street.root / "out").exists()
