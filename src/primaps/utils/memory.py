"""Memory: check that an allocation fits, and release what is free."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

import torch

from primaps.utils.errors import InputError

_MEMINFO = Path("/proc/meminfo")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def check_memory(needed: int, what: str, device: torch.device | None = None) -> None:
    """Refuse an allocation that is larger than the available memory.

    Args:
        needed: lower bound of the allocation in bytes.
        what: name of the allocation in the message.
        device: device of the memory; None is the CPU.

    Raises:
        InputError: less memory is available.

    Examples:
        >>> check_memory(10**18, "size 10000000")
        Traceback (most recent call last):
        primaps.utils.errors.InputError: size 10000000 needs at least 1,000,000,000.0 GB of memory, ...
    """  # noqa: E501
    free = available_memory(device)
    if free is not None and needed > free:
        raise InputError(
            f"{what} needs at least {needed / 1e9:,.1f} GB of memory, but only "
            f"{free / 1e9:,.1f} GB are available; choose a smaller value"
        )


def available_memory(device: torch.device | None = None) -> int | None:
    """Return the available memory in bytes; None if the system does not report it."""
    if device is not None and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [free for free in (_meminfo(), _cgroup_limit()) if free is not None]
    if not found and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return min(found, default=None)


def release_memory() -> None:
    """Return free memory of the C library to the system.

    glibc has a heap per thread and does not return freed memory by itself. For other C libraries
    this has no effect.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _meminfo() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None


def _cgroup_limit() -> int | None:
    try:
        return int(_CGROUP_LIMIT.read_text())
    except (OSError, ValueError):  # "max" without a limit
        return None
