"""Several processes under torchrun: who has what, and sums over all.

Process r of n has the images r, r + n, r + 2n, ... A batch is the same for every number of
processes; each works on the images of it that it has, and sums are taken over the processes.
Without torchrun there is one process and everything here does nothing.
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
    """Whether a process group is there."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, 0 if it is alone."""
    return dist.get_rank() if active() else 0


def processes() -> int:
    """How many processes there are."""
    return dist.get_world_size() if active() else 1


def total(tensor: Tensor) -> Tensor:
    """Sum over all processes, in place."""
    if active():
        dist.all_reduce(tensor)
    return tensor


def gather(value: T) -> list[T]:
    """What every process gives, in the order of ranks."""
    if not active():
        return [value]
    values: list[T] = [value] * processes()
    dist.all_gather_object(values, value)
    return values


def from_first(value: T) -> T:
    """What the first process gives."""
    if not active():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def own_device(device: str) -> str:
    """The GPU of this process, if ``torchrun`` started several: that of its local rank."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{local}"


@contextmanager
def group(device: str = "auto") -> Iterator[str]:
    """Join the processes that ``torchrun`` started, if it did; gives the device of this one.

    NCCL joins GPUs, Gloo everything else. With ``auto`` or ``cuda`` each process takes the GPU of
    its local rank.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or active():
        yield device
        return
    device = own_device(device)
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    # Its functions hold, as defaults, the group of the moment in which they are first imported, as
    # optimizers do. A group that is held keeps its threads, which can abort the process at its end.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
