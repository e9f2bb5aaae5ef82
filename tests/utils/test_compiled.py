"""The cache of compiled functions is valid for every process."""

import os
import subprocess
import sys

import pytest

KERNELS = """
from functools import cache
import numpy as np
from primaps.utils.compiled import compiled_in_order

@cache  # numba forgets what nobody holds
def make(n):
    @compiled_in_order
    def kernel(x):
        return x[:n] + n
    return kernel

"""


@pytest.mark.slow
def test_cached_functions_of_one_name_are_distinguished(tmp_path):
    """numba numbers what it compiles in each process: the first one keeps 2 as its second function,
    another one, which has loaded 2, keeps 3 as its second, and a third one needs both."""
    (tmp_path / "kernels.py").write_text(KERNELS)
    settings = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(tmp_path / "kept"),
        "PYTHONPATH": str(tmp_path),
    }

    def run(what):
        code = f"from kernels import make, np; x = np.zeros(4, np.float32); {what}"
        done = subprocess.run(
            [sys.executable, "-c", code], env=settings, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    run("make(1)(x); make(2)(x)")
    run("make(2)(x); make(4)(x); make(3)(x)")
    assert run("print(make(2)(x).sum(), make(3)(x).sum())") == ["4.0", "9.0"]
