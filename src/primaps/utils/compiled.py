# mypy: disable-error-code="no-untyped-def"
# (numba infers the types of compiled functions)
"""Compiled functions on the CPU: numba options and cache, an exponential, and threads.

numba detects changes in the file of a cached function, but not in functions that it calls from
other files. Its cache is therefore in a folder whose name is a digest of the source of all compiled
functions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from primaps.utils.errors import InputError
from primaps.utils.files import cache_dir

if numba.config.DISABLE_JIT:  # the dense CRF would take hours, and intrinsics cannot run at all
    raise InputError(
        "NUMBA_DISABLE_JIT is set, but primaps needs the functions that numba compiles; unset it"
    )
T = TypeVar("T")
KERNELS = ("crf", "proposals", "em", "teach", "utils")
"""Folders of the package with compiled functions."""

# e^x = 2^n e^r with r in [-ln 2 / 2, ln 2 / 2], and a polynomial for e^r.
LOG2_E = 1.4426950408889634
LN_2_HIGH, LN_2_LOW = 0.693359375, -2.12194440e-4  # the first is exact in few bits
EXP_SERIES = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0)
EXP_LOWEST = -87.0
_SETTING = Lock()


def compiled(function: Callable[..., Any]) -> Any:
    """Compile with reordered sums (``fastmath``), for loops that become vector instructions."""
    return _cached(function, fastmath=True)


def compiled_in_order(function: Callable[..., Any]) -> Any:
    """Compile without reordering, for functions with explicit vectors."""
    return _cached(function, fastmath=False)


def _cached(function: Callable[..., Any], fastmath: bool) -> Any:
    """Compile without the interpreter lock, to run on threads, and cache the result on disk."""
    _distinguish(function)
    options = {"nogil": True, "error_model": "numpy", "boundscheck": False}
    dispatcher: Any = numba.njit(function, fastmath=fastmath, **options)
    with _SETTING:  # threads compile too, and the folder is global
        folder = str(_folder())
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, folder
        try:
            dispatcher.enable_caching()
            dispatcher._cache.save_overload = _if_there_is_room(dispatcher._cache.save_overload)
        except RuntimeError:  # no writable cache: every process compiles again
            pass
        finally:
            numba.config.CACHE_DIR = before
    return dispatcher


def _distinguish(function: Callable[..., Any]) -> None:
    """Add the numbers that a function encloses to its name.

    numba names compiled functions by the qualified name and a counter per process. Without this, a
    third process could confuse two cached functions of the same name.
    """
    enclosed = [str(cell.cell_contents) for cell in function.__closure__ or ()]
    function.__qualname__ = "_".join([function.__qualname__, *enclosed])


def _if_there_is_room(save: Callable[..., None]) -> Callable[..., None]:
    """Ignore errors of the cache, for example on a full disk: the next process compiles again."""

    def attempt(*args: Any) -> None:
        with suppress(OSError):
            save(*args)

    return attempt


@cache
def _folder() -> Path:
    root, digest = Path(__file__).parents[1], hashlib.sha256(numba.__version__.encode())
    for path in sorted(path for folder in KERNELS for path in (root / folder).glob("*.py")):
        digest.update(path.read_bytes())
    chosen = numba.config.CACHE_DIR
    return (Path(chosen) if chosen else cache_dir() / "compiled") / digest.hexdigest()[:16]


def in_threads(count: int, work: Callable[[int], T]) -> list[T]:
    """Return ``work`` of 0..count-1 in order, computed on as many threads as torch uses."""
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        return [work(i) for i in range(count)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, range(count)))


@intrinsic
def _float_from_bits(typingctx, bits):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@numba.njit(inline="always")
def exponential(x):
    """Return e^x for -87 <= x <= 0 within 2 units in the last place.

    It is inlined, and loops over it become vector instructions. :mod:`primaps.crf.simd` has the
    same series for explicit vectors.
    """
    x = max(x, np.float32(EXP_LOWEST))
    n = np.int32(x * np.float32(LOG2_E) - np.float32(0.5))
    r = x - np.float32(n) * np.float32(LN_2_HIGH)
    r = r + np.float32(n) * np.float32(-LN_2_LOW)
    p = np.float32(EXP_SERIES[0])
    p = p * r + np.float32(EXP_SERIES[1])
    p = p * r + np.float32(EXP_SERIES[2])
    p = p * r + np.float32(EXP_SERIES[3])
    p = p * r + np.float32(EXP_SERIES[4])
    p = p * r + np.float32(EXP_SERIES[5])
    p = p * r + np.float32(EXP_SERIES[6])
    p = p * r + np.float32(EXP_SERIES[7])
    return p * _float_from_bits((n + np.int32(127)) << np.int32(23))
