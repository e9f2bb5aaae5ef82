"""``primaps fit``: interruption, plan, logs, data sets and projections."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from primaps.em.orthogonal import RESTARTS
from tests.cli.test_cli import call
from tests.conftest import painted

OWN = ["--classes", "3", "--size", "64"]
QUICK = [*OWN, "--epochs", "1", "--recipe", "paper"]
# A state after every step, so that the kill finds training under way however quick it is.
SAVING = "import primaps.em.training as t; t.SAVE_SECONDS = 0; from primaps.cli import main; main()"
FILES = ("model.safetensors", "history.json", "config.json", "tree.safetensors", "preview.png")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PRIMAPS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    for seed in range(20):
        painted(seed)[0].save(tmp_path / "images" / f"{seed:02}.png")
    return tmp_path / "images"


@pytest.mark.slow
def test_a_fit_that_is_killed_and_resumed_gives_identical_bytes(images, vit, tmp_path):
    options = [*QUICK, "--min-steps", "400", "--min-init-steps", "200", "--views", "1"]
    arguments = [str(images), "--backbone", vit, *options]

    def command(name):
        out, store = str(tmp_path / name), str(tmp_path / f"{name}-store")
        return [sys.executable, "-c", SAVING, "fit", *arguments, "--out", out, "--cache", store]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command("whole"), check=True, capture_output=True, env=environment)
    out, store = tmp_path / "killed", tmp_path / "killed-store"

    def features():
        return sum(p.stat().st_size for p in store.rglob("rows.txt"))

    whole = sum(p.stat().st_size for p in (tmp_path / "whole-store").rglob("rows.txt"))
    # Amid features, amid k-means and amid EM.
    for reached in (
        lambda: 0 < features() < whole,
        lambda: (out / "training-k-means.safetensors").exists(),
        lambda: (out / "training-EM.safetensors").exists(),
    ):
        process = subprocess.Popen(
            command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        while not reached():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (out / "model.safetensors").exists()
    subprocess.run(command("killed"), check=True, capture_output=True, env=environment)
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert {path.name for path in out.iterdir()} == set(FILES)
    for path in store.rglob("rows.*"):
        other = tmp_path / "whole-store" / path.relative_to(store)
        assert path.read_bytes() == other.read_bytes(), path


def test_plan_prints_the_cost_and_writes_nothing(images, vit, tmp_path):
    store = tmp_path / "store"
    done = call("fit", images, "--backbone", vit, *QUICK, "--out", tmp_path / "m", "--plan",
                "--views", 2, "--cache", store)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "20 images, 20 of them not cached yet" in done.output
    assert "184 k-means steps, 150 EM steps" in done.output
    assert "masks" in done.output
    assert not (tmp_path / "m").exists()
    assert not list(store.rglob("rows.bin"))


def test_plan_states_the_cache_size_of_a_sample_and_of_all_images(images, vit, tmp_path):
    def plan(*more):
        done = call("fit", images, "--backbone", vit, *OWN, "--out", tmp_path / "m", "--plan",
                    "--cache", "none", *more)  # fmt: skip
        assert done.exit_code == 0, done.output
        return done.output

    said = plan("--sample", 6)
    assert "6 images, 6 of them not cached yet" in said
    found = re.findall(
        r"--cache-content (\w+): ([\d.]+) GB for 6 images, ([\d.]+) GB for 20 images", said
    )
    assert [kept for kept, *_ in found] == ["features", "masks"]
    for _, sample, everything in found:
        assert float(everything) == pytest.approx(20 / 6 * float(sample), abs=0.004)
    million = dict(
        re.findall(r"--cache-content (\w+): .*, ([\d.,]+) GB for 1,000,000 images", plan())
    )
    assert float(million["features"]) > 10 * float(million["masks"])
    done = call("fit", images, "--backbone", vit, *QUICK, "--out", tmp_path / "m", "--sample", 0)
    assert done.exit_code == 1
    assert "sample is 0; it must be at least 1" in done.output


def test_plan_of_recipe_orthogonal_counts_restarts_and_no_em_steps(images, vit, tmp_path):
    done = call("fit", images, "--backbone", vit, *OWN, "--out", tmp_path / "m", "--plan")
    assert done.exit_code == 0, done.output
    assert f"{RESTARTS * 184} k-means steps\n" in done.output
    assert " EM steps" not in done.output.splitlines()[-1]


def test_tensorboard_logs_the_metrics(images, vit, tmp_path):
    pytest.importorskip("tensorboard")
    done = call("fit", images, "--backbone", vit, *QUICK, "--out", tmp_path / "m", "--min-steps",
                3, "--min-init-steps", 3, "--tensorboard", tmp_path / "log")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "log").glob("events.*"))


def test_probe_and_evaluate(painted_folder, vit, tmp_path):
    images, labels = painted_folder / "images", painted_folder / "labels"
    quick = ["--size", 64, "--epochs", 1, "--min-steps", 40, "--backbone", vit]
    done = call("probe", images, "--labels", labels, "--out", tmp_path / "m", *quick)
    assert done.exit_code == 0, done.output
    json_file = tmp_path / "scores.json"
    done = call("evaluate", tmp_path / "m", images, "--labels", labels, "--json", json_file)
    assert done.exit_code == 0, done.output
    scores = json.loads(json_file.read_text())
    assert scores["assignment"] == ["red", "green", "blue"]
    other = tmp_path / "unnamed"
    other.mkdir()
    for path in labels.glob("*.png"):
        Image.open(path).save(other / path.name)
    done = call("probe", images, "--labels", other, "--out", tmp_path / "n", *quick)
    assert done.exit_code == 1
    assert "has no classes.json; add it or give --classes" in done.output.replace("\n", " ")


def test_a_data_set_by_name_gives_the_results_of_its_folders(painted_folder, vit, tmp_path):
    """The default split is train for fits and val for evaluation."""
    for kind in ("images", "labels"):
        for number, path in enumerate(sorted((painted_folder / kind).glob("*.png"))):
            split = painted_folder / kind / ("train" if number % 3 else "val")
            split.mkdir(exist_ok=True)
            path.rename(split / path.name)
    images, labels = painted_folder / "images/train", painted_folder / "labels/train"
    network = ["--size", 64, "--backbone", vit, "--cache", "none"]
    quick = [*network, "--epochs", 1, "--min-steps", 4]
    named = [painted_folder, "--dataset", "folder"]
    for command, folders, options in (
        ("fit", [images], [*quick, "--min-init-steps", 4, "--classes", 3, "--recipe", "paper"]),
        ("probe", [images, "--labels", labels], quick),
    ):
        for out, given in (("a", folders), ("b", named)):
            done = call(command, *given, *options, "--out", tmp_path / command / out)
            assert done.exit_code == 0, done.output
        one, other = (tmp_path / command / out / "model.safetensors" for out in "ab")
        assert one.read_bytes() == other.read_bytes()
    network = network[:-2]
    scored = {}
    for split in ("train", "val"):
        folders = [painted_folder / kind / split for kind in ("images", "labels")]
        scored[split] = call("oracle", folders[0], "--labels", folders[1], *network).output
    for split, given in (("val", named), ("train", [*named, "--split", "train"])):
        done = call("oracle", *given, *network)
        assert done.output.splitlines()[-8:] == scored[split].splitlines()[-8:]
    assert scored["train"] != scored["val"]
    alone = call("fit", images, "--split", "val", "--classes", 3, "--out", tmp_path / "c")
    assert "--split val needs a data set; add --dataset" in alone.output
    missing = call("oracle", images, *network)
    assert "give the folder of label maps, or the name of a data set" in missing.output


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--views", "many", "views is 'many'; it must be an integer or 'fresh'"),
        ("--views", "-3", "views is -3"),
        ("--precision", "int4", "'int4' is not one of"),
        ("--loss-size", "huge", "'huge' is not one of 'image', 'feature'"),
    ],
)
def test_options_are_validated_before_any_work(images, vit, tmp_path, option, value, words):
    done = call(
        "fit", images, "--backbone", vit, *QUICK, "--out", tmp_path / "m", f"{option}={value}"
    )
    assert done.exit_code in (1, 2)
    assert words in " ".join(done.output.replace("│", " ").split())


def test_project_and_fit_on_the_projection(images, vit, tmp_path):
    done = call("project", images, "--classes", 3, "--backbone", vit, "--size", 64, "--steps", 3,
                "--out", tmp_path / "stego", "--five-crops")  # fmt: skip
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "stego" / "projection.json").read_text())["about"]
    assert about["images"] == 20 * 6
    quick = ["--min-steps", 3, "--projection", tmp_path / "stego", "--out", tmp_path / "m"]
    done = call("fit", images, "--backbone", vit, *QUICK, *quick)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "m" / "projection.safetensors").is_file()
    done = call("predict", tmp_path / "m", images, "--out", tmp_path / "maps", "--no-crf")
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "maps").glob("*.png"))) == 20


@pytest.mark.slow
def test_kmeans_with_as_many_classes_as_clusters_keeps_the_projection(images, vit, tmp_path):
    """The message before the fit states that there are no k-means steps."""
    from primaps.projections import Head, Projection

    torch.manual_seed(0)
    Projection(Head(64, 8), torch.randn(3, 8), "stego").save(tmp_path / "p")
    for method, recipe, words in (
        (
            "kmeans",
            "orthogonal",
            "3 classes: initialized with the 3 clusters of the projection, batches of",
        ),
        (
            "em",
            "orthogonal",
            "3 classes: initialized with the 3 clusters of the projection, batches of",
        ),
        (
            "em",
            "paper",
            "initialized with the 3 clusters of the projection, 2 EM steps, batches of",
        ),
    ):
        out = tmp_path / f"{method}-{recipe}"
        quick = [*QUICK, "--min-steps", 2] if recipe == "paper" else OWN
        done = call("fit", images, "--backbone", vit, *quick, "--out", out, "--projection",
                    tmp_path / "p", "--method", method, "--recipe", recipe,
                    "--allow-collapsed")  # fmt: skip
        assert done.exit_code == 0, done.output
        assert words in done.output.replace("\n", " ")
    assert json.loads((tmp_path / "kmeans-orthogonal" / "history.json").read_text()) == []
    history = json.loads((tmp_path / "em-orthogonal" / "history.json").read_text())
    assert [line["stage"] for line in history] == ["orthogonal"]


def test_a_probe_without_matching_labels_states_the_reason(images, vit, tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "classes.json").write_text('{"classes": ["a", "b"]}')
    done = call("probe", images, "--labels", tmp_path / "labels", "--out", tmp_path / "m",
                "--backbone", vit, "--size", 64)  # fmt: skip
    assert done.exit_code == 1
    assert "none of the 20 images could be read; first: " in done.output.replace("\n", " ")


def test_a_probe_reads_every_image_once(painted_folder, vit, tmp_path, monkeypatch):
    from primaps.model import PriMaPsEM

    decoded, original = [], Image.Image.resize

    def resize(self, *args, **kwargs):
        decoded.append(self.mode)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", resize)
    model = PriMaPsEM(3, backbone=vit, size=64, method="probe", epochs=1, min_steps=1)
    model.fit(painted_folder / "images", painted_folder / "labels", cache=tmp_path / "store")
    assert decoded.count("I") == 8  # label maps
    assert decoded.count("RGB") == 8 + 6  # images, and those to be shown


def test_a_model_does_not_overwrite_files_of_other_programs(images, vit, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"mine": 1}')
    for out, words in (
        (tmp_path / "m", "config.json was not written by primaps"),
        (images, "choose another output folder"),
    ):
        before = {path: path.read_bytes() for path in out.iterdir()}
        done = call("fit", images, "--backbone", vit, *QUICK, "--out", out)
        assert done.exit_code == 1
        assert words in done.output.replace("\n", " ")
        assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.slow
def test_two_fits_on_one_folder_take_turns(images, vit, tmp_path):
    command = [sys.executable, "-m", "primaps", "fit", str(images), "--backbone", vit, *QUICK,
               "--out", str(tmp_path / "m"), "--min-steps", "800",  # longer than a start under load
               "--min-init-steps", "400"]  # fmt: skip
    runs = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    assert any("waiting for another run" in error for error in errors), errors
    assert {path.name for path in (tmp_path / "m").iterdir()} == set(FILES)


@pytest.mark.parametrize("failed", [True, False])
def test_a_fit_ends_with_a_verdict(failed, images, vit, tmp_path, monkeypatch):
    from primaps.classes.verdict import Verdict

    verdict = (
        Verdict("failed", ("99 % of the area fell into one class",)) if failed else Verdict("good")
    )
    monkeypatch.setattr("primaps.model.judge", lambda *_: verdict)
    command = ["fit", images, *OWN, "--min-init-steps", 9, "--backbone", vit]
    done = call(*command, "--out", tmp_path / "model")
    text = " ".join(done.output.split())
    assert done.exit_code == (3 if failed else 0), done.output
    assert ("the fit is failed: 99 % of the area fell into one class" in text) == failed
    assert ("the fit is good" in text) != failed
    record = json.loads((tmp_path / "model/config.json").read_text())["verdict"]
    assert record == {"level": verdict.level, "reasons": list(verdict.reasons)}
    if failed:
        again = call(*command, "--out", tmp_path / "model", "--allow-collapsed")
        assert again.exit_code == 0, again.output
    assert call("report", tmp_path / "model", images, "--out", tmp_path / "report").exit_code == 0
    (page,) = (tmp_path / "report").glob("*.html")
    assert f'<p class="verdict {verdict.level}">The fit is {verdict.level}' in page.read_text()
