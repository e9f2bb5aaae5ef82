"""Read PyTorch files of unknown origin by ``torch.load(weights_only=True)``.

A ``.ckpt`` or ``.pth`` file is a zip archive: a pickle that describes the objects, and one member
with the raw numbers of each storage. Before torch reads the file, this module checks what the file
declares: members have no more bytes than the file, storages have the declared number of elements,
and the pickle names nothing but tensors, plain containers and classes of a few packages.
Instances of these classes, such as the configurations of Lightning and omegaconf, are replaced by
:class:`Inert`. No package is imported for a file, and nothing in a file is executed.
"""

from __future__ import annotations

import pickletools
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from threading import Lock
from typing import Any

import torch

from primaps.utils.errors import InputError, PrimapsError, reason
from primaps.utils.inputs import need_file

LARGEST_PICKLE = 8 << 20
"""Maximum size of a pickle in bytes; the pickle of a ViT has 40 kB."""
MAX_INSTRUCTIONS = 200_000
"""Maximum number of instructions of a pickle; the pickle of a ViT has 10,000."""
MAX_COPIES = 100
"""Maximum number of references to functions that copy their argument."""
STORAGES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8,
    "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
"""Storage types and their bytes per element."""
TENSORS = {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"}
COPYING = {"collections.Counter", "builtins.set", "_codecs.encode", "torch.Size"}
"""Functions that ``torch.load`` calls and that copy their argument."""
DICTIONARIES = {"pytorch_lightning.utilities.parsing.AttributeDict",
                "lightning.pytorch.utilities.parsing.AttributeDict",
                "lightning_fabric.utilities.data.AttributeDict"}  # fmt: skip
"""Subclasses of ``dict``, which are read as ``dict``."""
# Objects that training programs save beside the weights. Their content is not needed.
_INERT_PACKAGES = {"argparse", "hydra", "lightning", "lightning_fabric", "numpy", "omegaconf",
                   "pathlib", "pytorch_lightning", "torchmetrics", "typing"}  # fmt: skip
_INERT_NAMES = {"collections.defaultdict", "builtins.bool", "builtins.bytes", "builtins.complex",
                "builtins.dict", "builtins.float", "builtins.frozenset", "builtins.int",
                "builtins.list", "builtins.object", "builtins.str", "builtins.tuple"}  # fmt: skip
_PERSISTENT_ID = ("MARK", "BINUNICODE", "GLOBAL", "BINUNICODE", "BINUNICODE", "BININT", "TUPLE")
_registry = Lock()


class UnsafeFileError(PrimapsError, RuntimeError):
    """A file is damaged, or names something that no weights file needs."""


class Inert:
    """Replacement for an object that is not needed; it ignores its arguments and its state."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def read_torch_file(path: str | Path) -> Any:
    """Read a PyTorch file; tensors are on the CPU, unknown objects are :class:`Inert`.

    Raises:
        UnsafeFileError: the file is damaged, declares more than it has, names a function or class
            that is not supported, or was written by PyTorch before version 1.6.
        OSError: the file does not exist or cannot be read.

    Examples:
        >>> path = Path("weights.pth")
        >>> torch.save({"weight": torch.eye(2)}, path)
        >>> read_torch_file(path)["weight"].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
        >>> path.unlink()
    """
    path = Path(path)
    try:
        with checked_archive(path) as archive:
            globals_ = _replacements(check_pickle(path, archive))
        with _safe_globals(globals_):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnsafeFileError:
        raise
    except InputError as error:
        raise UnsafeFileError(str(error)) from None
    except Exception as error:  # torch raises errors of many types for damaged files
        if isinstance(error, OSError) and error.filename:  # the file cannot be opened
            raise
        text = reason(error) if not isinstance(error, UnpicklingError) else "invalid pickle"
        raise UnsafeFileError(f"{path} is damaged or not a weights file ({text})") from None


@contextmanager
def checked_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive that ``torch.save`` wrote; its members have no more bytes than the file.

    Raises:
        UnsafeFileError: the file is not a zip archive, or a member is compressed, encrypted, or
            overlaps another one.
        InputError: the path is not a regular file.
        OSError: the file does not exist.
    """
    need_file(path, sys.maxsize)
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":
            raise UnsafeFileError(
                f"{path} is not a PyTorch file of version 1.6 or newer (not a zip archive); save "
                "it again with a newer PyTorch"
            )
        try:
            archive = zipfile.ZipFile(file)
        except Exception as error:  # zipfile raises errors of many types for damaged archives
            raise UnsafeFileError(f"{path} is a damaged zip archive ({error})") from None
        with archive:
            members = archive.infolist()
            for one in members:
                stored = one.compress_type == zipfile.ZIP_STORED and not one.flag_bits & 1
                if not stored or one.file_size != one.compress_size:
                    raise UnsafeFileError(
                        f"{path}: {one.filename} is compressed or encrypted, which torch.save "
                        "never does; save the weights again"
                    )
            # torch finds members by their names in lower case, below the folder of the first one.
            roots = {one.filename.partition("/")[0] for one in members}
            if len({one.filename.lower() for one in members}) < len(members) or len(roots) != 1:
                raise UnsafeFileError(f"{path} is a zip archive that torch.save did not write")
            if sum(one.file_size for one in members) > path.stat().st_size:
                raise UnsafeFileError(f"{path} declares more bytes than the file has")
            yield archive


def check_pickle(path: Path, archive: zipfile.ZipFile) -> set[str]:
    """Return the names in the pickle of an archive, after a check of everything that it declares.

    Raises:
        UnsafeFileError: the pickle is missing or too large, names something that is not supported,
            or declares a storage that is larger than its member.
    """
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    pickles = [name for name in sizes if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UnsafeFileError(f"{path} is a zip archive that torch.save did not write")
    if sizes[pickles[0]] > LARGEST_PICKLE:
        raise UnsafeFileError(f"{path} describes more objects than a weights file needs")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in sizes and archive.read(f"{root}byteorder") != b"little":
        raise UnsafeFileError(f"{path} was written on a big-endian machine; save it again")
    names, copies, memo = set[str](), 0, dict[int, tuple[str, Any]]()
    recent: list[tuple[str, Any]] = [("", None)] * len(_PERSISTENT_ID)
    instructions = pickletools.genops(archive.read(pickles[0]))
    value: Any
    for number, (code, value, _) in enumerate(instructions):
        # Integers beyond 64 bits can be crafted to have equal hashes, which slows dictionaries.
        if number > MAX_INSTRUCTIONS or (isinstance(value, int) and abs(value) > 1 << 64):
            raise UnsafeFileError(f"{path} describes more objects than a weights file needs")
        kind = "BININT" if code.name.startswith("BININT") else code.name
        if kind in ("BINPUT", "LONG_BINPUT"):
            memo[value] = recent[-1] if recent[-1][0] in ("BINUNICODE", "GLOBAL") else ("", None)
            continue
        if kind in ("BINGET", "LONG_BINGET"):
            kind, value = memo.get(value, ("", None))
        elif kind == "GLOBAL":
            value = _checked_name(path, value)
            names.add(value)
        elif kind == "PROTO" and value != 2:
            raise UnsafeFileError(
                f"{path} has the pickle protocol {value}; save it again by torch.save with its "
                "default protocol 2"
            )
        # Repeated copies of a large dictionary would fill the memory.
        copies += kind == "GLOBAL" and value in COPYING
        if copies > MAX_COPIES or (_makes_dictionary(recent[-1]) and kind != "EMPTY_TUPLE"):
            raise UnsafeFileError(f"{path} copies objects, which no weights file needs")
        if kind == "BINPERSID":
            _check_storage(path, root, sizes, recent)
        recent = [*recent[1:], (kind, value)]
    return names


def _makes_dictionary(instruction: tuple[str, Any]) -> bool:
    kind, name = instruction
    return kind == "GLOBAL" and (name == "collections.OrderedDict" or name in DICTIONARIES)


def _checked_name(path: Path, name: str) -> str:
    """Return the full name of a function or class in a pickle, if it is supported."""
    module, _, name = name.partition(" ")
    if module == "__builtin__":  # of Python 2
        module, name = "builtins", {"long": "int", "unicode": "str"}.get(name, name)
    full = f"{module}.{name}"
    known = {
        "torch": name in STORAGES or name in ("device", "Size"),
        "torch._utils": name in TENSORS,
        "collections": name == "OrderedDict",
    }.get(module, False)
    inert = full in _INERT_NAMES or module.split(".")[0] in _INERT_PACKAGES
    if not (known or inert or full in COPYING):
        raise UnsafeFileError(
            f"{path} refers to {full}, which no weights file needs; it was not called, and the "
            "file is refused. Do not open it with torch.load"
        )
    return full


def _check_storage(
    path: Path, root: str, sizes: dict[str, int], recent: list[tuple[str, Any]]
) -> None:
    """Compare the elements of a storage, as the last instructions declare them, with its member."""
    if tuple(kind for kind, _ in recent) != _PERSISTENT_ID:
        raise UnsafeFileError(f"{path} is damaged: a tensor has no storage")
    _, _, storage, key, _, count, _ = (value for _, value in recent)
    size = STORAGES.get(storage.removeprefix("torch."), sys.maxsize)
    if not 0 <= count * size <= sizes.get(f"{root}data/{key}", -1):
        raise UnsafeFileError(f"{path} is damaged: storage {key} has fewer than {count:,} elements")


def _replacements(names: set[str]) -> list[Any]:
    """Return a class for each name that is not one of torch; it has the same module and name."""
    found: list[Any] = []
    for full in names:
        module, _, name = full.rpartition(".")
        if full in DICTIONARIES:
            found.append((dict, full))
        elif full in _INERT_NAMES or module.split(".")[0] in _INERT_PACKAGES:
            found.append(type(name, (Inert,), {"__module__": module, "__qualname__": name}))
    return found


@contextmanager
def _safe_globals(classes: list[Any]) -> Iterator[None]:
    """Let ``torch.load`` use some classes; afterwards its list of safe classes is restored."""
    with _registry:
        before = torch.serialization.get_safe_globals()
        torch.serialization.add_safe_globals(classes)
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)
