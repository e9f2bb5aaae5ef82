"""Reading PyTorch files of others without running anything that they contain.

A ``.ckpt`` or ``.pth`` file is a zip archive: one pickle that describes the objects, and the raw
numbers of each tensor. A pickle is a program that may call anything it can name. Here it can name
next to nothing: ordered dictionaries, tensors (put together by functions of this module), and
classes of a few packages, such as configurations, for which an inert stand-in is used. No package
is imported on behalf of the file, and any other name ends the reading with an error.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from primaps.support.errors import PrimapsError

# What training programs keep beside the weights; none of it is needed.
_INERT_PACKAGES = {
    "argparse",
    "hydra",
    "lightning",
    "lightning_fabric",
    "numpy",
    "omegaconf",
    "pathlib",
    "pytorch_lightning",
    "torchmetrics",
    "typing",
}
_INERT_NAMES = {
    *(("builtins", name) for name in ("bool", "bytes", "complex", "dict", "float", "frozenset")),
    *(("builtins", name) for name in ("int", "list", "object", "set", "str", "tuple")),
    *(("builtins", name) for name in ("long", "unicode")),  # int and str in old protocols
    ("_codecs", "encode"),  # how old pickle protocols spell bytes
    ("collections", "Counter"),
    ("collections", "defaultdict"),
    ("torch", "device"),
    ("torch", "Size"),
}
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class UnsafeFileError(PrimapsError, RuntimeError):
    """A file names something that no file of weights needs, or is no such file."""


class Inert:
    """Stands in for any object that is not needed: takes every state and does nothing with it."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, _: Any, __: Any) -> None: ...

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...

    def add(self, _: Any) -> None: ...


def read_foreign(path: str | Path) -> Any:
    """The content of a PyTorch file, tensors on the CPU, everything unknown inert.

    Raises:
        UnsafeFileError: the file names a function or class that is not on the short list (it is
            not called), is damaged, or was written by PyTorch before 1.6.
        OSError: there is no such file, or it cannot be read.

    Examples:
        >>> path = Path("weights.pth")
        >>> torch.save({"weight": torch.eye(2)}, path)
        >>> read_foreign(path)["weight"].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
        >>> path.unlink()
    """
    path = Path(path)
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise UnsafeFileError(
                f"{path} is not a PyTorch file of version 1.6 or newer (no zip archive); save it "
                "again with a newer PyTorch"
            )
        try:
            with zipfile.ZipFile(file) as archive:
                return _Unpickler(path, archive).load()
        except UnsafeFileError:
            raise
        except Exception as error:  # pickles fail in every way there is
            raise UnsafeFileError(f"{path} is damaged or no file of weights ({error})") from error


class _Unpickler(pickle.Unpickler):
    """Finds nothing but what is listed above, by name and without an import."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise UnsafeFileError(f"{path} is a zip archive, but not one that torch.save wrote")
        self.path, self.archive = path, archive
        self.root = names[0].removesuffix("data.pkl")
        self.storages: dict[str, Tensor] = {}
        order = f"{self.root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise UnsafeFileError(f"{path} was written on a big-endian machine; save it again")
        super().__init__(archive.open(names[0]))

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module  # its name in old protocols
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in _REBUILD:
            return _Function(name)
        if module == "torch" and name in _DTYPES:
            return _Function(name)
        if module.split(".")[0] in _INERT_PACKAGES or (module, name) in _INERT_NAMES:
            return Inert
        raise UnsafeFileError(
            f"{self.path} asks for {module}.{name}, which no file of weights needs: it was not "
            "called, and the file is refused. Do not open it with torch.load"
        )

    def persistent_load(self, identity: Any) -> Tensor:
        """All numbers of one storage, as a flat tensor."""
        _, kind, key, _, count = identity
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.root}data/{key}"))
            dtype = _DTYPES[kind.name]
            empty = torch.empty(0, dtype=dtype)
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else empty
            if len(self.storages[key]) < count:
                raise ValueError(f"storage {key} is too short")
        return self.storages[key]


class _Function:
    """A listed function as the pickle sees it: to be called, and nothing else.

    A bare function could have its attributes changed by the pickle.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __setstate__(self, _: Any) -> None:
        raise ValueError(f"{self.name} has no state")

    def __call__(self, *arguments: Any) -> Any:
        return _REBUILD[self.name](*arguments)


def _tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    """A tensor out of its storage; torch checks that it lies inside."""
    if math.prod(size) > len(storage):
        raise ValueError(f"a tensor of shape {size} is larger than its storage")
    return storage.as_strided(size, stride, offset)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


_REBUILD: dict[str, Callable[..., Any]] = {
    "_rebuild_tensor": _tensor,
    "_rebuild_tensor_v2": _tensor,
    "_rebuild_parameter": _parameter,
}
