"""What is freed by threads goes back to the system."""

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from primaps.utils import memory
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


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_container_counts_without_what_is_in_use(tmp_path, monkeypatch, version):
    root = tmp_path / "memory" if version == 1 else tmp_path
    limit, used, cached = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    groups = {"pod/container": (8 << 30, 3 << 30, 1 << 30), "pod": (9 << 30, 8 << 30, 2 << 30)}
    for name, (most, taken, unused) in groups.items():
        group = root / name
        group.mkdir(parents=True, exist_ok=True)
        (group / limit).write_text(f"{most}\n")
        (group / used).write_text(f"{taken}\n")
        (group / "memory.stat").write_text(f"anon 5\n{cached} {unused}\n")
    lines = "4:memory:/pod/container\n1:cpu:/x\n" if version == 1 else "0::/pod/container\n"
    (tmp_path / "own").write_text(lines)
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(memory, "_meminfo", lambda: 100 << 30)
    assert memory.available_memory() == 3 << 30  # of the group above: 9 - (8 - 2)
    (root / "pod" / limit).write_text("max\n")
    assert memory.available_memory() == 6 << 30  # 8 - (3 - 1)
    with pytest.raises(ValueError, match=r"size 5 needs at least 7.0 GB .* only 6.4 GB are avail"):
        memory.check_memory(7 * 10**9, "size 5")
    # In a container the path is often that of the host, and the own group is the root.
    lines = lines.replace("/pod/container", "/docker/5f3e")
    (tmp_path / "own").write_text(lines)
    (root / limit).write_text(str(4 << 30))
    (root / used).write_text(str(1 << 30))
    assert memory.available_memory() == 3 << 30
    (tmp_path / "own").unlink()
    assert memory.available_memory() == 100 << 30
