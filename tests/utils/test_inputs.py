"""Files are regular, of bounded size, and validated before they are used."""

import json
import os

import pytest
import torch
from safetensors.torch import save, save_file

from primaps.data.collection import ClassList
from primaps.utils.errors import InputError, NotFoundError
from primaps.utils.inputs import (
    need_tensor,
    parse_json,
    parse_tensors,
    read_bytes,
    read_json,
    read_tensors,
)


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_pipes_devices_and_folders_are_not_read(pipe, tmp_path):
    from pathlib import Path

    for path in (pipe, Path("/dev/zero"), tmp_path):
        for read in (read_bytes, read_tensors, lambda path: read_json(path, dict)):
            with pytest.raises(InputError, match="is not a regular file"):
                read(path)


def test_files_above_the_size_limit_are_not_read(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 40)  # without taking any room
    with pytest.raises(
        InputError, match="has 1,099,511,627,776 bytes; a file of this kind has at most 16,777,216"
    ):
        read_json(tmp_path / "a.json", dict)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "is not JSON (nested too deeply)"),
        ("[" * 40 + "]" * 40, "a.json is nested too deeply"),
        ('{"a": NaN}', "NaN is not a valid JSON number"),
        ('{"a": 1e999}', "1e999 is not a valid JSON number"),
        ('{"a": "\\ud800"}', "is not JSON"),
        ('{"a": 1' + "0" * 5000 + "}", "is not JSON"),
        ('{"a": 1' + "0" * 400 + "}", "number"),
        ('{"a": "x"}', "a.json: field \"a\" is 'x'; it must be a number"),
        ("7", "the content is 7; it must be an object"),
        ("", "is not JSON"),
    ],
)
def test_invalid_json_is_one_sentence(text, words):
    with pytest.raises(InputError) as error:
        parse_json(text.encode(), dict[str, float], "a.json", "mend it")
    assert words in str(error.value)
    assert str(error.value).endswith("; mend it")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_message_is_one_line_even_with_line_breaks_in_names():
    for kind in (InputError, NotFoundError):
        assert str(kind("a\nb\r\nc does not exist")) == "a b c does not exist"


def test_a_list_of_a_million_names_is_refused_by_its_length():
    names = ["a"] * 10**6
    with pytest.raises(
        InputError, match='field "classes" has the length 1000000; it must be at most'
    ):
        parse_json(json.dumps({"classes": names}), ClassList, "classes.json")


def test_tensors_and_metadata_are_read_as_saved(tmp_path):
    saved = {"a": torch.randn(2, 3), "b": torch.arange(4), "c": torch.zeros(0)}
    save_file(saved, tmp_path / "a.safetensors", {"about": "it"})
    tensors, note = read_tensors(tmp_path / "a.safetensors")
    assert note == {"about": "it"}
    assert all(torch.equal(tensors[name], value) for name, value in saved.items())


def test_metadata_may_be_null():
    """safetensors allows it."""
    header = json.dumps({"__metadata__": None}).encode()
    assert parse_tensors(len(header).to_bytes(8, "little") + header, "x") == ({}, {})


def test_a_header_that_exceeds_the_file_is_refused():
    data = save({"a": torch.zeros(4)})
    size = int.from_bytes(data[:8], "little")
    for forged in (
        data[:-1],
        data[: 8 + size],
        (1 << 62).to_bytes(8, "little") + data[8:],
        data.replace(b'"shape":[4]', b'"shape":[9]'),
        data.replace(b'"shape":[4],"data_offsets":[0,16]', b'"shape":[9],"data_offsets":[0,36]'),
        b"",
    ):
        assert forged != data
        with pytest.raises(
            InputError, match=r"a.safetensors is not a safetensors file, or is damaged"
        ):
            parse_tensors(forged, "a.safetensors")


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(2), r"of shape \(2,\); it must be floating point of shape \(any, 3\)"),
        (torch.zeros(0, 3), r"of shape \(0, 3\)"),
        (torch.zeros(2, 3).long(), "torch.int64"),
        (torch.zeros(2, 3, dtype=torch.complex64), "torch.complex64"),
        (torch.full((2, 3), torch.nan), "x: tensor a has NaN or infinity"),
        (torch.full((2, 3), torch.inf).half(), "x: tensor a has NaN or infinity"),
    ],
)
def test_a_tensor_of_wrong_type_or_shape_is_named(tensor, words):
    with pytest.raises(InputError, match=words):
        need_tensor({"a": tensor}, "a", (None, 3), "x")
    with pytest.raises(InputError, match="x: tensor b is missing"):
        need_tensor({"a": tensor}, "b", (None, 3), "x")
