"""Memory: check that an allocation fits, and release what is free."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path, PurePosixPath

import torch

from primaps.utils.errors import InputError

_MEMINFO = Path("/proc/meminfo")
_OWN_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


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
    """Return the available memory in bytes; None if the system does not report it.

    In a container it is also at most the limit of the container minus the memory that it uses.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [free for free in (_meminfo(), _cgroup_memory()) if free is not None]
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


def _cgroup_memory() -> int | None:
    """Return the free memory of the control group of this process and of the groups above it."""
    try:
        lines = [line.split(":", 2) for line in _OWN_CGROUP.read_text().splitlines()]
    except OSError:
        return None
    found: list[int] = []
    for number, controllers, path in (line for line in lines if len(line) == 3):
        if number == "0" and not controllers:  # version 2
            root, limit, used = _CGROUPS, "memory.max", "memory.current"
            unused = "inactive_file"
        elif "memory" in controllers.split(","):  # version 1
            root, limit, used = (
                _CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
            )  # fmt: skip
            unused = "total_inactive_file"
        else:
            continue
        # A container often sees its own group as the root, but the path that the host sees.
        own = PurePosixPath(path.lstrip("/"))
        for group in (root / own, *(root / above for above in own.parents)):
            free = _group_memory(group / limit, group / used, group / "memory.stat", unused)
            found += [] if free is None else [free]
    return min(found, default=None)


def _group_memory(limit: Path, used: Path, statistics: Path, unused: str) -> int | None:
    """Return the limit minus the used memory, of which the page cache can be given back."""
    try:
        most = int(limit.read_text())  # "max" without a limit
        taken = int(used.read_text())
    except (OSError, ValueError):
        return None
    try:
        counts = dict(line.split() for line in statistics.read_text().splitlines())
        cached = int(counts.get(unused, 0))
    except (OSError, ValueError):
        cached = 0
    return max(0, most - max(0, taken - cached))
