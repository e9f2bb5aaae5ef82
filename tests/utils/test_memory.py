"""What is freed by threads goes back to the system."""

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from primaps.utils.memory import release_memory


def resident():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1000


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_what_threads_freed_is_given_back():
    kept = []
    lock = threading.Barrier(4)

    def work():
        lock.wait()
        blocks = [np.ones(8000) for _ in range(800)]  # 64 kB each: from the heap of this thread
        kept.append(blocks[-1])  # which keeps the heap's end where it is
        lock.wait()

    release_memory()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    freed = resident()
    release_memory()
    assert resident() < freed - 50, "four heaps of 51 MB were freed"
