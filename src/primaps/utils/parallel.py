"""Batches on threads: one batch per CPU core, or one at a time on an accelerator.

On a CPU each thread computes its own batch, and no thread waits for another, unlike the threads of
one operation. An accelerator computes one batch at a time, while other threads read and write.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Semaphore
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
LANES = 8
"""Maximum number of batches that a CPU computes at the same time; each takes about 200 MB."""
WRITERS = 2
"""Additional threads, which write results while others compute."""


@dataclass(frozen=True)
class Lanes:
    """Threads for batches.

    Attributes:
        pool: the threads.
        threads: number of threads.
        turn: semaphore to hold while computing; it limits the batches computed at the same time.
    """

    pool: ThreadPoolExecutor
    threads: int
    turn: Semaphore


def lane_count(device: torch.device, most: int = LANES) -> int:
    """Return the number of batches that are computed at the same time."""
    return min(torch.get_num_threads(), most) if device.type == "cpu" else 1


@contextmanager
def lanes(device: torch.device, most: int = LANES, writers: int = WRITERS) -> Iterator[Lanes]:
    """Start threads that compute batches on a device and write their results.

    On a CPU the threads of torch are divided among them.

    Args:
        most: maximum number of batches computed at the same time.
        writers: number of additional threads.
    """
    cores, count = torch.get_num_threads(), lane_count(device, most)
    threads, each = count + writers, max(1, cores // count)
    pool = ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(each))
    try:
        yield Lanes(pool, threads, Semaphore(count))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)  # for threads that start later


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch operations on one thread, for small products.

    On busy cores, synchronization of threads takes ten times as long as a small product.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def overlapped(
    batches: Iterable[list[T]], work: Callable[[list[T]], R], lanes: Lanes
) -> Iterator[R]:
    """Yield the results of ``work`` in order, while other threads compute the next batches.

    An error of ``work`` is raised here and ends the iteration.
    """
    running: deque[Future[R]] = deque()
    for batch in batches:
        running.append(lanes.pool.submit(work, batch))
        while len(running) > lanes.threads or (running and running[0].done()):
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
