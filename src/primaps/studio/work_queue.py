"""One thread for everything that a network computes: whoever waits in the page goes first."""

from __future__ import annotations

import itertools
import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from primaps.utils.memory import give_back

T = TypeVar("T")
NOW, SOON, SPARE = 0, 1, 2
"""A person waits; a person will ask for it next; when nothing else is to do."""


class Turns:
    """Work done one at a time, the most urgent first, in the order in which it came.

    Examples:
        >>> turns = Turns()
        >>> turns.take(NOW, lambda: 6 * 7).result()
        42
        >>> turns.close()
    """

    def __init__(self) -> None:
        self._waiting: queue.PriorityQueue[tuple[int, int, Any, Any]] = queue.PriorityQueue()
        self._number = itertools.count()
        self._thread = threading.Thread(target=self._work, name="primaps-network", daemon=True)
        self._thread.start()

    def take(self, urgency: int, work: Callable[[], T]) -> Future[T]:
        """Have ``work`` done in its turn."""
        future: Future[T] = Future()
        self._waiting.put((urgency, next(self._number), work, future))
        return future

    def close(self, patience: float = 0.0) -> None:
        """Stop after the work that is under way, and wait for that; what waits is not done."""
        self._waiting.put((-1, next(self._number), None, None))
        self._thread.join(patience)

    def _work(self) -> None:
        _give_way()
        while True:
            _, _, work, future = self._waiting.get()
            if future is None:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:  # whoever waits gets it
                future.set_exception(error)
            give_back()  # takes 3 ms, and 100 MB and more would stay otherwise


def _give_way() -> None:
    """Let the threads that answer the page, and the browser, go first: on Linux each thread has a
    niceness of its own, and those that it starts have it too."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
