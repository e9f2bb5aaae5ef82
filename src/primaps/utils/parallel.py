"""Batches on threads: one to each core of a CPU, one after the other on an accelerator.

On a CPU every thread computes a batch of its own, alone: no thread waits for another one, as the
threads of one operation do at its end. An accelerator gets one batch after the other, while threads
read and write beside it.
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
"""Batches that a CPU computes at the same time, at most: each takes some 200 MB."""
WRITERS = 2
"""Threads beside those that compute: what is done is written while others compute."""


@dataclass(frozen=True)
class Lanes:
    """Threads for batches.

    Attributes:
        pool: the threads.
        threads: how many they are.
        turn: held while computing, so that no more compute than there are lanes.
    """

    pool: ThreadPoolExecutor
    threads: int
    turn: Semaphore


def lane_count(device: torch.device, most: int = LANES) -> int:
    """Batches that are computed at the same time."""
    return min(torch.get_num_threads(), most) if device.type == "cpu" else 1


@contextmanager
def lanes(device: torch.device, most: int = LANES, writers: int = WRITERS) -> Iterator[Lanes]:
    """Threads that compute batches on a device, ``most`` at the same time, and write what became
    of them.

    On a CPU the threads of torch are shared out among them.
    """
    cores, count = torch.get_num_threads(), lane_count(device, most)
    threads, each = count + writers, max(1, cores // count)
    pool = ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(each))
    try:
        yield Lanes(pool, threads, Semaphore(count))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)  # for threads that start from now on


@contextmanager
def one_thread() -> Iterator[None]:
    """For small products, which gain nothing from threads: on busy cores waiting for each other
    takes ten times as long as the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def overlapped(
    batches: Iterable[list[T]], work: Callable[[list[T]], R], lanes: Lanes
) -> Iterator[R]:
    """Results of ``work``, in order, while other batches are worked on, one for each thread.

    An error of ``work`` is raised here, and nothing more is begun.
    """
    running: deque[Future[R]] = deque()
    for batch in batches:
        running.append(lanes.pool.submit(work, batch))
        while len(running) > lanes.threads or (running and running[0].done()):
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
