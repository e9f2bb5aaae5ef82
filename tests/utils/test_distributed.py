"""Two processes against one: the same batches, the same model."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import Colors, painted

SCRIPT = """
import sys
from pathlib import Path
import primaps.features.extract
from primaps.utils import distributed
from primaps.model import PriMaPsEM
from tests.conftest import Colors

images, out, method, labels = sys.argv[1:5]
keep = {}
if method.startswith("masks"):  # of one image, one process has nothing for k-means
    primaps.features.extract.RESTART_IMAGES = int(method.split()[-1])
    method, keep = "orthogonal", {"cache_content": "masks"}
steps = {"min_steps": 12, "epochs": 1}
options = {"em": {"recipe": "paper", "views": 2, **steps}, "probe": steps, "orthogonal": {}}
with distributed.group("cpu") as device:
    model = PriMaPsEM(3, backbone=Colors(), patch_size=8, size=64, batch_size=5,
                      method="em" if method == "orthogonal" else method, min_init_steps=12,
                      device=device, **options[method])
    problems = []
    model.fit(images, labels or None, cache=out + ".store", log=problems.append, **keep)
    assert len(problems) <= 1
    if distributed.rank() == 0:
        model.save_pretrained(out)
threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]  # on Linux
assert not any("gloo" in name for name in threads), threads  # they can abort the end of a process
"""


@pytest.fixture
def folder(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for seed in range(13):
        image, label = painted(seed)
        image.save(tmp_path / "images" / f"{seed:02}.png")
        Image.fromarray(label).save(tmp_path / "labels" / f"{seed:02}.png")
    (tmp_path / "images" / "04.png").write_bytes(b"no image")
    return tmp_path


def command(script: Path, processes: int, *arguments: str) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*start, f"--nproc-per-node={processes}", str(script), *arguments]


def environment() -> dict[str, str]:
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def launch(script: Path, processes: int, *arguments: str) -> None:
    done = subprocess.run(
        command(script, processes, *arguments), capture_output=True, text=True, timeout=240,
        env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def kill_with_children(process: int) -> None:
    """Kill a process and all of its children."""
    children = Path(f"/proc/{process}/task/{process}/children")
    below = children.read_text().split() if children.is_file() else []
    os.kill(process, signal.SIGKILL)
    for child in below:
        kill_with_children(int(child))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["em", "orthogonal", "masks alone 7", "masks alone 1", "probe"])
def test_two_processes_give_the_model_of_one(folder, method):
    from primaps.model import PriMaPsEM

    (folder / "fit.py").write_text(SCRIPT)
    labels = str(folder / "labels") if method == "probe" else ""
    models = []
    for processes in (1, 2):
        out = folder / f"model{processes}"
        launch(folder / "fit.py", processes, str(folder / "images"), str(out), method, labels)
        models.append(PriMaPsEM.from_pretrained(out, backbone=Colors(), device="cpu"))
    one, two = models
    assert one._images == two._images == 12
    for name, value in one.prototypes_.state_dict().items():
        torch.testing.assert_close(two.prototypes_.state_dict()[name], value, rtol=0, atol=1e-4)
    for first, second in zip(one.history_, two.history_, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-4)
        assert first.get("agreement") == pytest.approx(second.get("agreement"), abs=1e-3)


RESUMED = """
import sys, time
import primaps.em.training as training
from primaps.utils import distributed
from primaps.model import PriMaPsEM
from tests.conftest import Colors

images, out = sys.argv[1:3]
training.SAVE_SECONDS = 0.0
save = training.atomic_path
def slowly(path):  # so that kills come amid writing, too
    time.sleep(0.01 * distributed.rank() + 0.005)
    return save(path)
training.atomic_path = slowly
with distributed.group("cpu") as device:
    model = PriMaPsEM(3, backbone=Colors(), patch_size=8, size=64, batch_size=5, mask_crf=False,
                      recipe="paper", min_init_steps=40, min_steps=60, epochs=1, device=device)
    model.fit(images, cache=out + ".store", checkpoints=out, log=lambda sentence: None)
    if distributed.rank() == 0:
        model.save_pretrained(out)
        training.clear_checkpoints(out)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux to find children")
def test_two_killed_processes_resume_to_the_same_model(folder):
    """Kill while checkpoints are written, between them, and before the first ($PRIMAPS_KILLS)."""
    script = folder / "fit.py"
    script.write_text(RESUMED)
    whole, killed = folder / "whole", folder / "killed"
    launch(script, 2, str(folder / "images"), str(whole))
    moments, kills = random.Random(0), int(os.environ.get("PRIMAPS_KILLS", "4"))
    for number in range(kills):
        before = states(killed)
        process = subprocess.Popen(
            command(script, 2, str(folder / "images"), str(killed)), env=environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while number > 0 and states(killed) == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.08) if number else moments.uniform(0, 5))
        if process.poll() is not None:  # it came to its end in few steps
            assert number > kills // 2
            break
        kill_with_children(process.pid)
        process.wait()
    launch(script, 2, str(folder / "images"), str(killed))
    for name in ("model.safetensors", "history.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}


def states(folder: Path) -> dict[str, int]:
    """Return the checkpoints and their modification times."""
    found = {}
    for path in folder.glob("training-*.safetensors"):
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = path.stat().st_mtime_ns
    return found
