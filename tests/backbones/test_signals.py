"""Signals reach a process in which OpenVINO has computed: they run on valid stacks.

Each test runs in a process of its own, because a fault here is a crash of the interpreter.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("openvino")
pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")

PREAMBLE = """
import ctypes, signal, threading
import torch
from primaps.backbones.engines import use_openvino
from tests.backbones.test_onednn import network

class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

def check_alternate_stack():
    stack = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    if stack.flags & 2:  # SS_DISABLE
        return
    with open("/proc/self/maps") as maps:
        ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
    last = stack.start + stack.size
    assert any(start <= stack.start and last <= stop for start, stop in ranges), "not mapped"

handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))

def compile_and_drop():
    models = [network(), network("ViT"), network()]
    for model in models:
        assert use_openvino(model)
        with torch.no_grad():
            model(pixel_values=torch.rand(1, 3, 56, 56))
    while models:  # in the order in which they were compiled
        del models[0], model
        model = None
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        check_alternate_stack()
"""
CODE = """
compile_and_drop()
assert len(handled) == 3, handled
errors = []

def work():
    try:
        compile_and_drop()
    except BaseException as error:
        errors.append(error)

workers = [threading.Thread(target=work) for _ in range(2)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
assert not errors, errors
signal.raise_signal(signal.SIGUSR1)
assert len(handled) > 3
check_alternate_stack()
"""
AFTER_FIT = """
import sys, time
import numpy as np
from PIL import Image
from primaps import PriMaPsEM

images = [Image.fromarray(np.full((56, 56, 3), 40 * i, np.uint8)) for i in range(4)]
options = {"size": 56, "min_init_steps": 4, "init_epochs": 1, "device": "cpu",
           "mask_crf": False}
models = [PriMaPsEM(2, backbone=sys.argv[1], engine="openvino", **options) for _ in range(2)]
for model in models:
    model.fit(images)
del model, models[0], models[0]
print("fitted", flush=True)
time.sleep(60)
"""


def test_signals_are_handled_after_networks_were_compiled_and_dropped():
    process = subprocess.run(
        [sys.executable, "-c", PREAMBLE + CODE], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr


@pytest.fixture
def folder(tmp_path):
    from tests.backbones.test_onednn import network

    network().save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.mark.slow
def test_ctrl_c_after_fits_with_openvino_raises_keyboard_interrupt(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", AFTER_FIT, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "fitted\n", process.communicate()
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == -signal.SIGINT, (process.returncode, errors)
    assert errors.splitlines()[-1] == "KeyboardInterrupt"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["features", "k-means"])
def test_ctrl_c_during_fit_with_openvino_is_one_sentence_and_status_130(folder, tmp_path, stage):
    from tests.conftest import painted

    (tmp_path / "images").mkdir()
    for seed in range(24):
        painted(seed, 224, 224)[0].save(tmp_path / "images" / f"{seed:02}.png")
    command = [sys.executable, "-u", "-m", "primaps", "fit", tmp_path / "images", "--classes", "3"]
    command += ["--backbone", folder, "--engine", "openvino", "--size", "224"]
    command += ["--min-init-steps", "100000", "--out", tmp_path / "model"]
    process = subprocess.Popen(
        [str(part) for part in [*command, "--cache", tmp_path / "cache"]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    limit = time.monotonic() + 120
    while not list((tmp_path / "cache").glob("**/*")) and time.monotonic() < limit:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0 if stage == "features" else 3)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130, (process.returncode, errors)
    assert errors.splitlines()[-1].startswith("stopped"), errors
    assert "Traceback" not in errors
