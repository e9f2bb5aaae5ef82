"""Commands killed at random moments end with the bytes of an undisturbed run, and leave nothing.

``PRIMAPS_KILLS=50 python -m pytest tests/test_killed.py`` kills each command fifty times.
"""

import contextlib
import hashlib
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import painted

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("PRIMAPS_KILLS", "1"))
SMALL = ["--size", "64", "--backbone", "{vit}", "--cache", "{work}/store"]
COMMANDS = {
    "propose": ["propose", "{images}", "--out", "{work}/out", "--size", "64", "--backbone",
                "{vit}"],
    "predict": ["predict", "{model}", "{images}", "--out", "{work}/out"],
    "fit": ["fit", "{images}", "--classes", "3", "--out", "{work}/out", "--recipe", "paper",
            "--epochs", "1", "--min-steps", "150", "--min-init-steps", "60", *SMALL],
    "project": ["project", "{images}", "--classes", "3", "--out", "{work}/out", "--steps", "20",
                "--five-crops", *SMALL],
    "probe": ["probe", "{images}", "--labels", "{labels}", "--out", "{work}/out", "--epochs", "1",
              "--min-steps", "150", *SMALL],
    "export": ["export", "{maps}", "--images", "{images}", "--to", "coco", "--out", "{work}/out"],
}  # fmt: skip


def command(arguments, environment):
    """Run a command in a process that has everything imported, to be killed during its work."""
    os.environ.update(environment)
    import tempfile

    import torch

    from primaps.em import training

    torch.set_num_threads(1)
    tempfile.tempdir = None  # of the process that this one was made from
    training.SAVE_SECONDS = 0.0
    sys.argv = ["primaps", *arguments]
    with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing):
        os.dup2(nothing.fileno(), 2)
        from primaps.cli import main

        main()


@pytest.fixture(scope="module")
def process():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["primaps.cli", "primaps.batch", "primaps.projections", "primaps.exchange",
         "primaps.evaluation.protocol", "primaps.pictures.overlays", "kornia", "transformers",
         "scipy.optimize"]
    )  # fmt: skip

    def start(arguments, work):
        folders = {"PRIMAPS_CACHE": str(work / "cache"), "TMPDIR": str(work / "tmp")}
        (work / "tmp").mkdir(parents=True, exist_ok=True)
        numba = {"NUMBA_CACHE_DIR": os.environ["NUMBA_CACHE_DIR"]}
        started = context.Process(target=command, args=(arguments, folders | numba))
        started.start()
        return started

    return start


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, vit, process):
    """Return images, labels, a model and its label maps."""
    root = tmp_path_factory.mktemp("killed")
    if "NUMBA_CACHE_DIR" not in os.environ:
        from primaps.utils.compiled import _folder

        os.environ["NUMBA_CACHE_DIR"] = str(_folder().parent)
    for kind in ("images", "labels"):
        (root / kind).mkdir()
    from PIL import Image

    for seed in range(6):
        image, label = painted(seed)
        image.save(root / "images" / f"{seed}.png")
        Image.fromarray(label).save(root / "labels" / f"{seed}.png")
    (root / "labels" / "classes.json").write_text('{"classes": ["a", "b", "c"]}')
    places = {"images": root / "images", "labels": root / "labels", "vit": vit}
    for name, made in (("fit", "model"), ("predict", "maps")):
        run(process, name, {**places, "work": root / made, "model": root / "model" / "out"})
        places[made] = root / made / "out"
    return places


def run(process, name, places, kill_after=None):
    """Run a command, or kill it after some seconds; return the duration in seconds."""
    arguments = [word.format(**places) for word in COMMANDS[name]]
    began = time.monotonic()
    started = process(arguments, Path(places["work"]))
    started.join(kill_after)
    if kill_after is not None:
        started.kill()
        started.join()
        return None
    assert started.exitcode == 0, name
    return time.monotonic() - began


def kept(path):
    """Return the digest of a file, or the set of lines of the journal, whose order varies."""
    if path.name != "primaps.jsonl":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    lines = path.read_bytes().splitlines()
    return {line for line in lines if line.startswith(b"{") and line.endswith(b"}")}


def content(folder):
    return {
        str(path.relative_to(folder)): kept(path)
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock" and path.name not in ("lock",)
    }


@pytest.mark.skipif(os.name == "nt", reason="processes are killed by signals")
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_random_moments(name, prepared, process, tmp_path):
    whole = {**prepared, "work": tmp_path / "whole"}
    seconds = run(process, name, whole)
    expected = content(tmp_path / "whole")
    assert any(key.startswith("out") for key in expected)
    moments = random.Random(name)
    for number in range(KILLS):
        killed = {**prepared, "work": tmp_path / f"killed-{number}"}
        run(process, name, killed, kill_after=moments.uniform(0.05, 0.95) * seconds)
        run(process, name, killed)
        assert content(tmp_path / f"killed-{number}") == expected, number
