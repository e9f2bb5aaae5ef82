"""Whether something fits into memory, asked before it is allocated; giving back what is free."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

import torch

from primaps.utils.errors import InputError

# What the system and its limit for this group of processes say, where they do.
_MEMINFO = Path("/proc/meminfo")
_LIMIT = Path("/sys/fs/cgroup/memory.max")


def need_memory(need: int, what: str, device: torch.device | None = None) -> None:
    """Refuse what is larger than the memory that is there.

    Args:
        need: bytes, rather too few than too many.
        what: takes them, for the message.
        device: whose memory; None is the machine's.

    Raises:
        InputError: there is less.

    Examples:
        >>> need_memory(10**18, "a size of 10,000,000 pixels")
        Traceback (most recent call last):
        primaps.utils.errors.InputError: a size of 10,000,000 pixels takes at least 1,000,000,000.0 GB of memory, ...
    """  # noqa: E501
    there = available(device)
    if there is not None and need > there:
        raise InputError(
            f"{what} takes at least {need / 1e9:,.1f} GB of memory, and {there / 1e9:,.1f} GB are "
            "there: choose less"
        )


def available(device: torch.device | None = None) -> int | None:
    """Bytes that can be had; None if the system does not say."""
    if device is not None and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [free for free in (_meminfo(), _group()) if free is not None]
    if not found and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return min(found, default=None)


def give_back() -> None:
    """Hand the system what the C library keeps for later: it has a heap for each of many threads,
    and what they freed stays with the process. Where it is not glibc's, nothing happens."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _meminfo() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None


def _group() -> int | None:
    try:
        return int(_LIMIT.read_text())
    except (OSError, ValueError):  # no limit reads "max"
        return None
