"""Several processes under torchrun: ranks, and sums over all processes.

Process r of n has the images r, r + n, r + 2n, ... A batch consists of the same images for every
number of processes. Each process computes the images of a batch that it has, and results are summed
over the processes. Without torchrun there is one process, and these functions have no effect.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def active() -> bool:
    """Return whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if active() else 0


def processes() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if active() else 1


def total(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place."""
    if active():
        dist.all_reduce(tensor)
    return tensor


def gather(value: T) -> list[T]:
    """Return the values of all processes, in the order of their ranks."""
    if not active():
        return [value]
    values: list[T] = [value] * processes()
    dist.all_gather_object(values, value)
    return values


def from_first(value: T) -> T:
    """Return the value of the first process."""
    if not active():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def own_device(device: str) -> str:
    """Return the GPU of this process: under ``torchrun`` the one of its local rank."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{local}"


@contextmanager
def group(device: str = "auto") -> Iterator[str]:
    """Join the processes of ``torchrun``, if there are any, and yield the device of this process.

    The backend is NCCL for GPUs and Gloo otherwise. With ``auto`` or ``cuda`` each process uses the
    GPU of its local rank.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or active():
        yield device
        return
    device = own_device(device)
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    # On its first import this module stores the current group in default arguments. A group that is
    # stored keeps its threads, which can abort the process on exit: import it before the group.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
