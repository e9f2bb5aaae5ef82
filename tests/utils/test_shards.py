"""Shares of a collection: each image in one, and any number of processes on one folder."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from primaps.results import JOURNAL, OutputFolder
from primaps.utils.shards import Shard, read_shard


@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_each_item_is_in_one_shard(count):
    shares = [Shard(number + 1, count).of(range(13)) for number in range(count)]
    assert sorted(item for share in shares for item in share) == list(range(13))


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "one", "1/2/3", "-1/4", "", "1.5/2"])
def test_an_invalid_shard_is_rejected(text):
    with pytest.raises(ValueError, match="shard index must be between|shard must be I/N"):
        read_shard(text)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (1, 1)),
        ({"RANK": "2"}, (1, 1)),  # of something else
        ({"RANK": "2", "WORLD_SIZE": "3"}, (3, 3)),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1",
          "SLURM_ARRAY_TASK_STEP": "2"}, (3, 3)),
        ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "0",
          "RANK": "1", "WORLD_SIZE": "4"}, (6, 8)),
    ],
)  # fmt: skip
def test_torchrun_and_slurm_determine_the_shard(environment, expected):
    assert read_shard("auto", environment) == expected
    assert read_shard(None, environment) == (1, 1)
    assert read_shard("2/5", environment) == (2, 5)


@pytest.mark.parametrize("variables", [{"RANK": "x", "WORLD_SIZE": "2"},
                                       {"RANK": "3", "WORLD_SIZE": "3"}])  # fmt: skip
def test_invalid_environment_variables_are_rejected(variables):
    with pytest.raises(ValueError, match=r"must be a number|must be between 1 and 3"):
        read_shard("auto", variables)


def _write(folder: str, process: int, barrier) -> None:
    names = [f"{number}.txt" for number in range(40)]
    output = OutputFolder(Path(folder), {"primaps": "1"}, [], names)
    barrier.wait()
    for number, name in enumerate(names):
        if not output.finished(f"source {number}", [name]):
            text = f"{number} by {process}"  # what a run gives may differ in its last bits
            output.write(f"source {number}", {name: lambda path, text=text: path.write_text(text)})


def test_processes_with_the_same_shard_write_one_complete_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    processes = [
        context.Process(target=_write, args=(str(tmp_path), number, barrier)) for number in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    names = [f"{number}.txt" for number in range(40)]
    output = OutputFolder(tmp_path, {"primaps": "1"}, [], names)
    for number, name in enumerate(names):
        assert output.finished(f"source {number}", [name]), name
    lines = (tmp_path / JOURNAL).read_text().splitlines()
    assert all(line.startswith("{") and line.endswith("}") for line in lines)


def test_threads_write_one_folder(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    names = [f"{number}.txt" for number in range(60)]
    output = OutputFolder(tmp_path, {"primaps": "1"}, [], names)

    def write(name):
        output.write(f"of {name}", {name: lambda path: path.write_text(name)})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, names))
    again = OutputFolder(tmp_path, {"primaps": "1"}, [], names)
    assert all(again.finished(f"of {name}", [name]) for name in names)
    assert len((tmp_path / JOURNAL).read_text().splitlines()) == 60


@pytest.mark.slow
def test_torchrun_gives_each_process_its_shard(vit, painted_folder, tmp_path):
    from tests.cli.test_cli import call
    from tests.utils.test_distributed import environment

    words = ["propose", str(painted_folder / "images"), "--out", str(tmp_path / "out"),
             "--backbone", vit, "--size", "64", "--device", "cpu"]  # fmt: skip
    start = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "primaps"]
    done = subprocess.run(
        [sys.executable, "-m", *start, *words],
        capture_output=True, text=True, env=environment(), timeout=240,
    )  # fmt: skip
    said = done.stderr
    assert done.returncode == 0, said[-2000:]
    assert said.count("4 written") == 2, said
    assert "shard 1/2" in said
    assert "shard 2/2" in said
    assert len(list((tmp_path / "out").glob("*.overlay.jpg"))) == 8
    assert "8 kept from an earlier run" in call(*words).output
