"""Two processes against one: the same batches, the same model."""

import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import Colours, painted

SCRIPT = """
import sys
from pathlib import Path
from primaps.support import distributed
from primaps.model import PriMaPsEM
from tests.conftest import Colours

images, out, method, labels = sys.argv[1:5]
options = {"em": {"views": 2}, "probe": {}, "orthogonal": {"recipe": "orthogonal"}}
with distributed.group("cpu") as device:
    model = PriMaPsEM(3, backbone=Colours(), patch_size=8, size=64, batch_size=5,
                      method="em" if method == "orthogonal" else method, min_init_steps=12,
                      min_steps=12, epochs=1, device=device, **options[method])
    problems = []
    model.fit(images, labels or None, store=out + ".store", problem=problems.append)
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
    from PIL import Image

    for seed in range(13):
        image, label = painted(seed)
        image.save(tmp_path / "images" / f"{seed:02}.png")
        Image.fromarray(label).save(tmp_path / "labels" / f"{seed:02}.png")
    (tmp_path / "images" / "04.png").write_bytes(b"no image")
    return tmp_path


def launch(script: Path, processes: int, *arguments: str) -> None:
    import os
    import subprocess

    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("method", ["em", "orthogonal", "probe"])
def test_two_processes_give_the_model_of_one(folder, method):
    from primaps.model import PriMaPsEM

    (folder / "fit.py").write_text(SCRIPT)
    labels = str(folder / "labels") if method == "probe" else ""
    models = []
    for processes in (1, 2):
        out = folder / f"model{processes}"
        launch(folder / "fit.py", processes, str(folder / "images"), str(out), method, labels)
        models.append(PriMaPsEM.from_pretrained(out, backbone=Colours(), device="cpu"))
    one, two = models
    assert one._images == two._images == 12
    for name, value in one.prototypes_.state_dict().items():
        torch.testing.assert_close(two.prototypes_.state_dict()[name], value, rtol=0, atol=1e-4)
    for first, second in zip(one.history_, two.history_, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-4)
        assert first.get("agreement") == pytest.approx(second.get("agreement"), abs=1e-3)
