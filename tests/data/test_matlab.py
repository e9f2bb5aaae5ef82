"""MATLAB files: as SciPy writes and reads them, and nothing for what they only declare."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.io import loadmat, savemat

from primaps.data import ImageError, load_label
from primaps.data.images import read_mat
from primaps.data.matlab import read_array
from primaps.utils.errors import InputError

kinds = st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])


@settings(max_examples=60, deadline=None)
@given(
    array=kinds.flatmap(
        lambda kind: arrays(kind, array_shapes(min_dims=2, max_dims=4, max_side=5))
    ),
    packed=st.booleans(),
    name=st.text("abcdefghij_", min_size=1, max_size=31).filter(lambda text: text[0] != "_"),
)
def test_arrays_are_those_that_scipy_writes_and_reads(tmp_path_factory, array, packed, name):
    path = tmp_path_factory.getbasetemp() / "a.mat"
    savemat(path, {"other": np.eye(3), name: array, "text": "x"}, do_compression=packed)
    found = read_array(path, name)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == loadmat(path)[name].dtype == array.dtype


@settings(max_examples=30, deadline=None)
@given(array=arrays("f8", array_shapes(min_dims=2, max_dims=2), elements=st.integers(0, 9)))
def test_arrays_of_version_4_are_those_that_scipy_writes(tmp_path_factory, array):
    path = tmp_path_factory.getbasetemp() / "a.mat"
    savemat(path, {"other": np.eye(2), "gt": array}, format="4")
    np.testing.assert_array_equal(read_array(path, "gt"), array)


def test_files_of_machines_of_the_other_order(tmp_path):
    """Version 5 by hand, with numbers the high byte first; and version 4."""
    name = struct.pack(">II", 1, 2) + b"gt" + bytes(6)
    flags, sizes = struct.pack(">IIII", 6, 8, 9, 0), struct.pack(">IIii", 5, 8, 2, 3)
    values = struct.pack(">II", 3, 12) + np.arange(6, dtype=">i2").tobytes() + bytes(4)
    content = flags + sizes + name + values
    head = b"MATLAB 5.0".ljust(124) + b"\x01\x00MI"
    (tmp_path / "a.mat").write_bytes(head + struct.pack(">II", 14, len(content)) + content)
    assert read_array(tmp_path / "a.mat", "gt").tolist() == [[0, 2, 4], [1, 3, 5]]
    assert loadmat(tmp_path / "a.mat")["gt"].tolist() == [[0, 2, 4], [1, 3, 5]]
    old = struct.pack(">iiiii", 1000, 1, 2, 0, 3) + b"gt\0" + struct.pack(">dd", 7, 8)
    (tmp_path / "b.mat").write_bytes(old)
    assert read_array(tmp_path / "b.mat", "gt").tolist() == [[7, 8]]


@pytest.mark.parametrize(
    "content",
    [
        np.array([[1, "a"]], object),
        {"inner": np.eye(2)},
        np.array(["text"]),
        np.eye(2) * 1j,
        np.zeros((0, 3)),
    ],
)
def test_labels_of_other_kinds_are_named(tmp_path, content):
    savemat(tmp_path / "a.mat", {"gt": content})
    with pytest.raises(ImageError, match=r"a.mat"):
        load_label(tmp_path / "a.mat")


def test_a_label_of_floating_point_is_named(tmp_path):
    savemat(tmp_path / "a.mat", {"gt": np.full((2, 2), 0.5)})
    with pytest.raises(ImageError, match=r"a.mat has the shape \(2, 2\) and type float64"):
        load_label(tmp_path / "a.mat")


def test_what_is_packed_to_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("primaps.data.matlab.LARGEST_UNPACKED", 1 << 20)
    packed = zlib.compress(struct.pack("<II", 14, 1 << 24) + bytes(1 << 24))
    head = b"MATLAB 5.0".ljust(124) + b"\x00\x01IM"
    (tmp_path / "a.mat").write_bytes(head + struct.pack("<II", 15, len(packed)) + packed)
    with pytest.raises(ImageError, match="not a MATLAB file .it unpacks to more"):
        read_mat(tmp_path / "a.mat", "gt")


def test_what_is_cut_off_is_refused_at_every_place(tmp_path):
    file = io.BytesIO()
    savemat(file, {"gt": np.arange(6, dtype=np.uint8).reshape(2, 3)})
    data = file.getvalue()
    for end in range(len(data) - 1):
        (tmp_path / "a.mat").write_bytes(data[:end])
        with pytest.raises(InputError, match=r"a.mat"):
            read_array(tmp_path / "a.mat", "gt")
