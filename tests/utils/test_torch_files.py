import builtins
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch

from primaps.projections import UnsafeFileError, read_checkpoint
from primaps.utils.torch_files import Inert, read_torch_file
from tests.projections.originals import Calls, pickled, pretended, write_raw, write_stego


def hostile(marker):
    """Ways to run a command when a file is read, each of which creates ``marker``."""
    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    return {
        "os.system": Calls(os.system, command),
        "subprocess": Calls(subprocess.check_call, ["touch", str(marker)]),
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "open": Calls(open, str(marker), "w"),
        "import": Calls(builtins.__import__, "os"),
        "getattr": Calls(getattr, "text", "__class__"),
        "torch.load": Calls(torch.load, str(marker)),
        "torch.hub": Calls(torch.hub.load, "a/b", "c"),
        "extension of a listed module": Calls(torch._utils._import_dotted_name, "os.system"),
    }


@pytest.mark.parametrize("way", hostile("x"))
@pytest.mark.parametrize("nested", [False, True])
def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path, way, nested):
    marker, path = tmp_path / "ran", tmp_path / "file.ckpt"
    attack = hostile(marker)[way]
    if nested:  # inside a configuration object, beside honest weights
        with pretended(omegaconf__dictconfig=["DictConfig"]) as modules:
            config = modules.omegaconf__dictconfig.DictConfig()
            config._content = {"arch": [attack]}
            content = {"state_dict": OrderedDict(), "hyper_parameters": {"cfg": config}}
            write_raw(path, pickled(content))
    else:
        write_raw(path, pickled({"state_dict": attack}))
    with pytest.raises(UnsafeFileError, match="which no weights file needs; it was not called"):
        read_torch_file(path)
    with pytest.raises(UnsafeFileError, match="file is refused"):
        read_checkpoint(None, path)
    assert not marker.exists()


def test_a_chain_of_getattr_from_a_listed_name_to_a_command_is_refused(tmp_path):
    marker = tmp_path / "ran"
    chain = b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR"
    write_raw(tmp_path / "a.pth", chain + f"(S'touch {marker}'\ntR.".encode())
    pickle.loads(chain + f"(S'touch {marker}'\ntR.".encode())
    assert marker.exists()  # the usual means does run it
    marker.unlink()
    with pytest.raises(UnsafeFileError, match=r"refers to builtins.getattr"):
        read_torch_file(tmp_path / "a.pth")
    for first in (b"ccollections\nOrderedDict\n", b"comegaconf\nA\n"):
        write_raw(tmp_path / "b.pth", b"cbuiltins\ngetattr\n(" + first + b"S'__init__'\ntR.")
        with pytest.raises(UnsafeFileError, match=r"refers to builtins.getattr"):
            read_torch_file(tmp_path / "b.pth")
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        b"cbuiltins\ngetattr\n.",
        b"c__builtin__\neval\n.",
        b"cos\nsystem\n.",
        b"cposix\nsystem\n.",
        b"cprimaps.files\natomic_path\n.",
        b"ctorch\nload\n.",
        b"ctorch\nTensor\n.",
        b"ctorch._utils\n__builtins__\n.",
        b"ccollections\nnamedtuple\n.",
        b"c_codecs\nlookup\n.",
        b"comegaconfig\nDictConfig\n.",
        b"ccollections\nOrderedDict.__init__\n.",
        b"cbuiltins\nbytearray\n.",
    ],
)
def test_other_names_are_refused_even_without_a_call(tmp_path, name):
    write_raw(tmp_path / "a.pth", b"\x80\x02" + name)
    with pytest.raises(UnsafeFileError, match="refers to"):
        read_torch_file(tmp_path / "a.pth")


def test_classes_that_are_not_installed_become_inert_and_nothing_is_imported(tmp_path):
    before = set(sys.modules)
    write_stego(tmp_path / "a.ckpt", width=64, dim=4)
    content = read_torch_file(tmp_path / "a.ckpt")
    assert content["hyper_parameters"]["n_classes"] == 27
    assert isinstance(content["hyper_parameters"]["cfg"], Inert)
    assert "omegaconf" not in str(torch.serialization.get_safe_globals())
    assert content["global_step"] == 5000
    new = {name.split(".")[0] for name in set(sys.modules) - before}
    assert not new & {"omegaconf", "pytorch_lightning", "lightning"}


def test_a_pickle_cannot_change_the_functions_that_it_may_call(tmp_path):
    """BUILD sets attributes: here of the listed function, then of the class of stand-ins."""
    change = b"(N}X\x04\x00\x00\x00nameX\x01\x00\x00\x00xst"  # (None, {"name": "x"})
    for target in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"comegaconf\nA\n"):
        write_raw(tmp_path / "a.pth", b"\x80\x02" + target + change + b"b.")
        with pytest.raises(UnsafeFileError, match="is damaged or not a weights file"):
            read_torch_file(tmp_path / "a.pth")
    assert not hasattr(Inert, "name")


def test_tensors_are_those_that_were_saved(tmp_path):
    base = torch.randn(6, 5)
    saved = {
        "whole": base,
        "transposed": base.T,
        "part": base[2:5, 1:3],
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "double": base.double(),
        "long": torch.arange(7),
        "flags": base > 0,
        "bytes": torch.arange(9, dtype=torch.uint8),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(base),
    }
    torch.save(OrderedDict(saved), tmp_path / "a.pth")
    found = read_torch_file(tmp_path / "a.pth")
    assert list(found) == list(saved)
    for name, tensor in saved.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach()), name


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_other_protocols_are_one_sentence(tmp_path, protocol):
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pth", pickle_protocol=protocol)
    refused(tmp_path / "a.pth", f"pickle protocol {protocol}; save it again by torch.save")


def forged(folder, *changes):
    """Replace instructions in the pickle of a tensor of 4 numbers."""
    torch.save(torch.zeros(4), folder / "a.pth")
    with zipfile.ZipFile(folder / "a.pth") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for old, new in changes:
        assert members["a/data.pkl"].count(old) == 1
        members["a/data.pkl"] = members["a/data.pkl"].replace(old, new)
    with zipfile.ZipFile(folder / "b.pth", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return folder / "b.pth"


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path):
    for shape in (b"J\x00\x00\x00\x7f\x85", b"K\x05\x85"):
        refused(forged(tmp_path, (b"K\x04\x85", shape)), "resize storage that is not resizable")


@pytest.mark.parametrize(
    "count", [b"J\x00\x00\x00\x7f", b"J\xff\xff\xff\xff", b"K\x05", b"\x8a\x01\x05", b"N"]
)
def test_a_storage_has_the_elements_that_it_declares(tmp_path, count):
    path = forged(tmp_path, (b"K\x04tq", count + b"tq"))
    refused(path, "storage 0 has fewer than|a tensor has no storage")


def test_a_storage_cannot_hide_behind_another_tuple(tmp_path):
    """The tuple comes from the memo, after the instructions of an honest one."""
    names = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    hidden = names + b"X\x03\x00\x00\x00cpuK\x7ftq\x63"
    changes = (b"ctorch._utils\n", hidden + b"ctorch._utils\n"), (b"tq\x05Q", b"th\x63Q")
    refused(forged(tmp_path, *changes), "a tensor has no storage")


def test_copies_of_dictionaries_are_refused(tmp_path):
    copy = b"ccollections\nOrderedDict\nq\x01h\x00\x85R"
    write_raw(tmp_path / "a.pth", b"\x80\x02}q\x00" + copy + b".")
    refused(tmp_path / "a.pth", "copies objects")
    by_memo = b"}q\x00ccollections\nOrderedDict\nq\x01)Rh\x01h\x00\x85R"
    write_raw(tmp_path / "a.pth", b"\x80\x02" + by_memo + b".")
    refused(tmp_path / "a.pth", "copies objects")
    sets = b"cbuiltins\nset\nq\x01]\x85R" + b"h\x01]\x85R" * 100
    write_raw(tmp_path / "a.pth", b"\x80\x02" + sets + b".")
    refused(tmp_path / "a.pth", "copies objects")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not a zip archive", "not a zip archive"),
        (pickle.dumps({"a": 1}), "not a zip archive"),
    ],
)
def test_other_files_are_told_apart(tmp_path, content, words):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UnsafeFileError, match=words):
        read_torch_file(tmp_path / "a.pth")


def test_a_truncated_pickle_is_one_sentence(tmp_path):
    write_raw(tmp_path / "a.pth", pickled({"a": [1, 2]})[:-3])
    with pytest.raises(UnsafeFileError, match="is damaged"):
        read_torch_file(tmp_path / "a.pth")


def refused(path, words):
    with pytest.raises(UnsafeFileError, match=words) as error:
        read_torch_file(path)
    assert "\n" not in str(error.value)


def test_members_that_are_packed_are_refused_before_they_are_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/data/0", bytes(50_000_000))
    refused(tmp_path / "a.ckpt", "a/data.* is compressed or encrypted, which torch.save never does")


def test_members_that_overlap_are_refused(tmp_path):
    """Many entries of the list of members that point to the same bytes."""
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/data/0", bytes(100_000))
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entry = data[data.index(b"PK\x01\x02", start + 4) : end]
    entries = b"".join(entry.replace(b"a/data/0", b"a/data/%d" % i) for i in range(1, 9))
    tail = bytearray(data[end:])
    tail[8:12] = (10).to_bytes(2, "little") * 2
    tail[12:16] = (end - start + len(entries)).to_bytes(4, "little")
    path.write_bytes(data[:end] + entries + tail)
    refused(path, "declares more bytes than the file has|Overlapped")


@pytest.mark.parametrize(
    ("instructions", "words"),
    [
        (b"\x80\x02\x96" + (2 << 30).to_bytes(8, "little") + b".", "is damaged"),
        (b"\x80\x02\x96" + (2).to_bytes(8, "little") + b"ab.", "is damaged"),
        (b"\x80\x02}p2000000000\n.", "is damaged"),
        (b"\x80\x02" + b"]0" * 600_000 + b"}.", "describes more objects"),
        (b"\x80\x02}\x8a\x09" + b"\xff" * 8 + b"\x01K\x01s.", "describes more objects"),
    ],
)
def test_a_pickle_gets_no_memory_for_what_it_only_asks(tmp_path, instructions, words):
    write_raw(tmp_path / "a.pth", instructions)
    refused(tmp_path / "a.pth", words)


@pytest.mark.parametrize(
    "instructions",
    [
        b"\x8c\x01a(K\x01K\x02\x90",  # add to a set: a sum of tensors, one row and one column
        b"K\x00K\x01s",  # an item
        b"K\x01b",  # a state
        b"(K\x01e",  # more entries
    ],
)
def test_a_tensor_computes_nothing_for_the_pickle(tmp_path, instructions):
    """Each of these would be a call of a method of the tensor, which may be large."""
    torch.save(torch.zeros(4), tmp_path / "a.pth")
    refused(
        forged(tmp_path, (b"tq\x0aRq\x0b.", b"tq\x0aRq\x0b" + instructions + b".")), "is damaged"
    )


def test_a_pipe_or_a_device_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "is not a regular file")
    refused("/dev/zero", "is not a regular file")


def test_an_archive_of_a_version_that_there_is_not_is_damaged(tmp_path):
    write_raw(tmp_path / "a.pth", b"\x80\x02}.")
    data = bytearray((tmp_path / "a.pth").read_bytes())
    data[data.rindex(b"PK\x01\x02") + 6] = 255
    (tmp_path / "a.pth").write_bytes(data)
    refused(tmp_path / "a.pth", "is a damaged zip archive .zip file version 25.5")
