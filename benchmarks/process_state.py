"""Print what libraries change in the process that uses them.

Each library computes something in a process of its own. The script compares signal masks, the
alternate signal stack, floating-point modes, the affinity of threads and environment variables
before and after, and then computes again in a forked child. Linux on x86-64 only.

    python benchmarks/process_state.py
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 15
"""Time after which a forked child counts as hanging."""


class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def use_torch() -> Any:
    import torch

    torch.set_num_threads(2)
    return torch.ones(512, 512) @ torch.ones(512, 512)


def use_numba() -> Any:
    import numba

    return numba.njit(lambda x: x + 1.0)(1.0)


def use_rasterio() -> Any:
    import numpy as np
    from rasterio.io import MemoryFile

    profile = {"driver": "GTiff", "width": 64, "height": 64, "count": 1, "dtype": "uint8"}
    with MemoryFile() as file:
        with file.open(**profile) as scene:
            scene.write(np.ones((1, 64, 64), np.uint8))
        with file.open() as scene:
            return scene.read()


def use_openvino(pinning: bool = False) -> Any:
    import numpy as np
    import openvino
    from openvino import opset13

    tokens = opset13.parameter([-1, 64], dtype=np.float32)
    weight = opset13.constant(np.ones((64, 64), np.float32))
    graph = openvino.Model([opset13.matmul(tokens, weight, False, False)], [tokens])
    core = openvino.Core()
    KEPT.append(network := core.compile_model(graph, "CPU", {"ENABLE_CPU_PINNING": pinning}))
    return network([np.ones((64, 64), np.float32)])


KEPT: list[Any] = []
USES: dict[str, Callable[[], Any]] = {
    "torch": use_torch,
    "numba": use_numba,
    "rasterio (GDAL)": use_rasterio,
    "openvino": use_openvino,
    "openvino, pinned": lambda: use_openvino(pinning=True),
}


def status_of(path: Path) -> dict[str, str]:
    """Return the fields of a status file in /proc."""
    lines = (path / "status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def floating_point() -> str:
    """Return the x87 control word and MXCSR of the calling thread, without its sticky flags."""
    buffer = ctypes.create_string_buffer(64)
    ctypes.CDLL("libm.so.6").fegetenv(buffer)
    control, mxcsr = (int.from_bytes(buffer.raw[a:b], "little") for a, b in ((0, 2), (28, 32)))
    return f"x87 {control:#x}, MXCSR {mxcsr & ~0x3F:#x}"


def alternate_stack() -> int:
    """Return the size of the alternate signal stack of the calling thread in bytes, 0 for none."""
    stack = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return 0 if stack.flags & 2 else stack.size


def state() -> dict[str, Any]:
    """Return what a library might change."""
    process = status_of(Path("/proc/self"))
    threads = [status_of(path) for path in Path("/proc/self/task").iterdir()]
    affinity = Counter(status["Cpus_allowed_list"] for status in threads)
    found: dict[str, Any] = {"threads by affinity": dict(affinity)}
    for name, field in (("caught", "SigCgt"), ("ignored", "SigIgn"), ("blocked", "SigBlk")):
        bits = int(process[field], 16)
        found[f"signals {name}"] = [number + 1 for number in range(64) if bits >> number & 1]
    found["alternate stack"], found["floating point"] = alternate_stack(), floating_point()
    new: list[Any] = []
    thread = threading.Thread(target=lambda: new.extend([alternate_stack(), floating_point()]))
    thread.start()
    thread.join()
    found["a new thread"] = new
    return found | {"environment": dict(os.environ)}


def report(name: str) -> None:
    """Use a library and print what changed, and whether a forked child can use it again."""
    state()  # the first thread of a process makes the C library catch signal 33
    time.sleep(0.1)
    before = state()
    USES[name]()
    after = state()
    for key in before:
        if key != "environment" and before[key] != after[key]:
            print(f"  {key}: {before[key]} -> {after[key]}")
    if changed := sorted(after["environment"].items() - before["environment"].items()):
        print(f"  environment: {changed}")
    child = os.fork()
    if not child:
        USES[name]()
        os._exit(0)
    limit = time.monotonic() + SECONDS
    while time.monotonic() < limit:
        if os.waitpid(child, os.WNOHANG)[0]:
            print("  a forked child computes")
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    print("  a forked child hangs")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        report(sys.argv[1])
    else:
        for library in USES:
            print(library, flush=True)
            subprocess.run([sys.executable, __file__, library], check=True)
