import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch

from primaps.features.feature_cache import ArrayCache
from primaps.features.training_data import ImageArrays
from primaps.utils.errors import InputError

SHAPE = (3, 5)


def filled(folder, count=4):
    store = ArrayCache(SHAPE, np.float16, folder)
    with store.writing():
        store.append([f"key{i}" for i in range(count)], rows(count))
    return store


def rows(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float16)


def content(store, keys):
    return store.rows(keys).take(torch.arange(len(keys))).numpy()


@pytest.mark.parametrize("kept", [True, False])
def test_rows_come_back_by_key_in_any_order(tmp_path, kept):
    store = ArrayCache(SHAPE, np.float16, tmp_path if kept else None)
    with store.writing():
        store.append(["a", "b"], rows(2))
        store.append(["c"], rows(1, seed=1))
    assert store.missing(["a", "x", "c", "x"]) == ["x"]
    expected = np.stack([rows(1, seed=1)[0], rows(2)[0], rows(1, seed=1)[0]])
    assert np.array_equal(content(store, ["c", "a", "c"]), expected)
    with pytest.raises(KeyError):
        store.rows(["x"])


@pytest.mark.parametrize("several_rows", [False, True])
@pytest.mark.parametrize("length", [0, 31, 100])
def test_a_file_that_is_shortened_between_two_uses_is_one_sentence(tmp_path, several_rows, length):
    """Reading behind the end of a mapped file would end the process by SIGBUS."""
    store = ArrayCache(SHAPE, np.float16, tmp_path, several=several_rows)
    keys = [f"key{i}" for i in range(4)]
    with store.writing():
        store.append(keys, [one[None] for one in rows(4)] if several_rows else rows(4))
    mapped = store.rows(keys).arrays
    assert np.array_equal(np.stack([one.reshape(SHAPE) for one in mapped]), rows(4))
    os.truncate(tmp_path / "rows.bin", length)
    for use in (lambda: mapped[3], lambda: list(mapped), lambda: store.rows(keys)):
        with pytest.raises(InputError, match=r"rows.bin was shortened by another program"):
            use()
    assert np.array_equal(mapped[0].reshape(SHAPE), rows(1)[0]) if length > 30 else True
    with pytest.raises(InputError, match="was shortened"):
        store.append(["new"], [rows(1)] if several_rows else rows(1))
    missing = store.missing(keys)
    assert missing == keys[length // 30 :]
    with store.writing():  # computed again
        again = rows(4)[length // 30 :]
        store.append(missing, [one[None] for one in again] if several_rows else again)
    found = store.rows(keys).arrays
    assert np.array_equal(np.stack([one.reshape(SHAPE) for one in found]), rows(4))


def test_another_process_finds_them(tmp_path):
    filled(tmp_path)
    again = ArrayCache(SHAPE, np.float16, tmp_path)
    assert again.missing([f"key{i}" for i in range(5)]) == ["key4"]
    assert np.array_equal(content(again, ["key2"])[0], rows(4)[2])


@pytest.mark.parametrize("cut", [1, 31, 200])
def test_incomplete_rows_are_missing_and_replaced(tmp_path, cut):
    filled(tmp_path)
    data = tmp_path / "rows.bin"
    with data.open("r+b") as file:
        file.truncate(data.stat().st_size - min(cut, data.stat().st_size))
    store = ArrayCache(SHAPE, np.float16, tmp_path)
    with store.writing():
        missing = store.missing([f"key{i}" for i in range(4)])
        assert missing
        assert "key0" in missing or cut < 90
        store.append(missing, rows(4)[[int(key[-1]) for key in missing]])
    assert np.array_equal(content(store, [f"key{i}" for i in range(4)]), rows(4))
    again = ArrayCache(SHAPE, np.float16, tmp_path)
    assert np.array_equal(content(again, [f"key{i}" for i in range(4)]), rows(4))


def test_an_incomplete_line_of_the_journal_is_ignored(tmp_path):
    filled(tmp_path)
    with (tmp_path / "rows.txt").open("a") as journal:
        journal.write("key4 12")
    with (tmp_path / "rows.bin").open("ab") as file:
        file.write(b"half a row")
    store = ArrayCache(SHAPE, np.float16, tmp_path)
    with store.writing():
        assert store.missing(["key4", "key3"]) == ["key4"]
        store.append(["key4"], rows(1, seed=9))
    again = ArrayCache(SHAPE, np.float16, tmp_path)
    assert np.array_equal(content(again, ["key3", "key4"])[1], rows(1, seed=9)[0])


def test_a_damaged_row_is_missing_and_its_neighbors_are_not(tmp_path):
    filled(tmp_path)
    with (tmp_path / "rows.bin").open("r+b") as file:
        file.seek(2 * 30 + 7)
        file.write(b"\xff")
    store = ArrayCache(SHAPE, np.float16, tmp_path)
    with store.writing():
        assert store.missing([f"key{i}" for i in range(4)]) == ["key2"]
        store.append(["key2"], rows(4)[2:3])
    again = ArrayCache(SHAPE, np.float16, tmp_path)
    assert np.array_equal(content(again, ["key2", "key3"]), rows(4)[2:4])


def test_a_damaged_line_loses_only_its_row(tmp_path):
    filled(tmp_path)
    journal = tmp_path / "rows.txt"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([lines[0], "nonsense", *lines[2:], ""]))
    store = ArrayCache(SHAPE, np.float16, tmp_path)
    assert store.missing([f"key{i}" for i in range(4)]) == ["key1"]
    assert np.array_equal(content(store, ["key3"])[0], rows(4)[3])


def append_for_ever(folder):
    store = ArrayCache(SHAPE, np.float16, folder)
    with store.writing():
        for i in range(10**6):
            store.append([f"key{i}"], np.full((1, *SHAPE), i % 1000, np.float16))


@pytest.mark.slow
def test_a_killed_writer_loses_no_complete_row(tmp_path):
    context = multiprocessing.get_context("spawn")
    before = 0
    for _ in range(3):
        process = context.Process(target=append_for_ever, args=(tmp_path,))
        process.start()
        journal = tmp_path / "rows.txt"
        while not journal.is_file() or journal.stat().st_size < before + 2000:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        before = journal.stat().st_size
    store = ArrayCache(SHAPE, np.float16, tmp_path)
    with store.writing():  # the lock of a killed process is free
        keys = [line.split()[0] for line in journal.read_text().splitlines()]
        assert not store.missing(keys)
    found = content(store, keys)
    assert (found[:, 0, 0] == [int(key[3:]) % 1000 for key in keys]).all()


def test_wrong_shapes_are_refused(tmp_path):
    store = ArrayCache(SHAPE, np.float16)
    with pytest.raises(ValueError, match="2 keys and rows"):
        store.append(["a", "b"], rows(1))


def test_tensors_and_arrays_give_the_same_rows():
    values = torch.randn(6, 2, 3)
    index, inner = torch.tensor([5, 0, 3]), torch.tensor([1, 0, 1])
    for source in (ImageArrays(values), ImageArrays(list(values.numpy()))):
        assert torch.equal(source.take(index), values[index])
        assert torch.equal(source.take(index, inner), values[index, inner])
        assert torch.equal(torch.cat(list(source.chunks(4))), values)
        assert source.shape == (2, 3)
        assert len(source) == 6


@pytest.mark.parametrize("inner", [None, [1, 0, 1]])
def test_rows_of_arrays_are_gathered_as_those_of_a_tensor(inner):
    whole = np.random.default_rng(0).random((5, 2, 3, 2, 4)).astype(np.float16)
    index, part = torch.tensor([4, 0, 4]), inner and torch.tensor(inner)
    found, expected = (
        ImageArrays(arrays).take(index, part) for arrays in (list(whole), torch.from_numpy(whole))
    )
    assert torch.equal(found, expected)


def several(folder):
    return ArrayCache((2,), np.float32, folder, several=True)


def test_keys_with_several_rows_and_damaged_lines(tmp_path):
    arrays = {f"key{n}": np.full((n, 2), n, np.float32) for n in (3, 0, 1, 4)}
    store = several(tmp_path)
    with store.writing():
        store.append(list(arrays)[:2], list(arrays.values())[:2])
        store.append(list(arrays)[2:], list(arrays.values())[2:])
    for found in (store, several(tmp_path)):
        assert found.missing(arrays) == []
        for one, expected in zip(found.rows(list(arrays)).arrays, arrays.values(), strict=True):
            assert np.array_equal(one, expected)
    journal = tmp_path / "rows.txt"
    lines = journal.read_text().splitlines()
    wrong = [lines[2].replace(" 3 1", where) for where in (" 3 -1", " 3 99", " 7 1", " 0 1", " 3")]
    for hurt in ("key1", "key1 zz", "\0", *wrong):
        journal.write_text("\n".join([*lines[:2], hurt, lines[3]]) + "\n")
        found = several(tmp_path)
        assert found.missing(arrays) == ["key1"], hurt
        assert np.array_equal(found.rows(["key4"]).arrays[0], arrays["key4"])
    journal.write_text("\n".join(lines) + "\n")
    with (tmp_path / "rows.bin").open("r+b") as data:
        data.truncate(7 * 8)  # the last one is cut short
    found = several(tmp_path)
    with found.writing():
        assert found.missing(arrays) == ["key4"]
        found.append(["key4"], [arrays["key4"]])
    assert np.array_equal(several(tmp_path).rows(["key4"]).arrays[0], arrays["key4"])
