"""Reading PyTorch files of others without running anything that they contain.

A ``.ckpt`` or ``.pth`` file is a zip archive: one pickle that describes the objects, and the raw
numbers of each tensor. A pickle is a program that may call anything it can name. Here it can name
next to nothing: ordered dictionaries, tensors (put together by functions of this module), and
classes of a few packages, such as configurations, for which an inert stand-in is used. No package
is imported on behalf of the file, and any other name ends the reading with an error.

Before, :mod:`primaps.utils.torch_archive` looks for what would take memory without need.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from primaps.utils.errors import InputError, reason
from primaps.utils.torch_archive import (
    LARGEST_PICKLE,
    UnsafeFileError,
    check_pickle,
    checked_archive,
)

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
    try:
        with checked_archive(path) as archive:
            return _released(_Unpickler(path, archive).load())
    except UnsafeFileError:
        raise
    except InputError as error:
        raise UnsafeFileError(str(error)) from None
    except Exception as error:  # pickles fail in every way there is
        if isinstance(error, OSError) and error.filename:  # it cannot be opened
            raise
        raise UnsafeFileError(
            f"{path} is damaged or no file of weights ({reason(error)})"
        ) from None


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
        if archive.getinfo(names[0]).file_size > LARGEST_PICKLE:
            raise UnsafeFileError(f"{path} describes more than the tensors of a model")
        data = archive.read(names[0])
        check_pickle(data, path)
        super().__init__(io.BytesIO(data))

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module  # its name in old protocols
        if (module, name) == ("collections", "OrderedDict"):
            return _Function(name)
        if module == "torch._utils" and name.startswith("_rebuild") and name in _REBUILD:
            return _Function(name)
        if module == "torch" and name in _DTYPES:
            return _Function(name)
        if module.split(".")[0] in _INERT_PACKAGES or (module, name) in _INERT_NAMES:
            return Inert
        raise UnsafeFileError(
            f"{self.path} asks for {module}.{name}, which no file of weights needs: it was not "
            "called, and the file is refused. Do not open it with torch.load"
        )

    def persistent_load(self, identity: Any) -> _Held:
        """All numbers of one storage, as a flat tensor."""
        _, kind, key, _, count = identity
        if not isinstance(key, str) or not isinstance(count, int):
            raise ValueError("a tensor has no storage")
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.root}data/{key}"))
            dtype = _DTYPES[kind.name]
            empty = torch.empty(0, dtype=dtype)
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else empty
            if len(self.storages[key]) < count:
                raise ValueError(f"storage {key} is too short")
        return _Held(self.storages[key])


class _Held:
    """A tensor as the pickle sees it: to be put somewhere, and nothing else.

    Methods of a bare tensor would compute, and reserve memory, on behalf of the file.
    """

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __setstate__(self, _: Any) -> None:
        raise ValueError("a tensor has no state")


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
    storage: _Held, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> _Held:
    """A tensor out of its storage; torch checks that it lies inside."""
    if math.prod(size) > len(storage.tensor):
        raise ValueError(f"a tensor of shape {size} is larger than its storage")
    return _Held(storage.tensor.as_strided(size, stride, offset))


def _parameter(data: _Held, *_: Any) -> _Held:
    return data


_REBUILD: dict[str, Callable[..., Any]] = {
    "OrderedDict": lambda: OrderedDict(),  # of nothing: copies of copies would fill the memory
    "_rebuild_tensor": _tensor,
    "_rebuild_tensor_v2": _tensor,
    "_rebuild_parameter": _parameter,
}


def _released(content: Any) -> Any:
    """Tensors in place of what holds them, in dictionaries and lists however deep."""
    around = [content]
    seen, left = set(), [around]
    while left:
        one: Any = left.pop()
        if id(one) in seen or not isinstance(one, dict | list):
            continue
        seen.add(id(one))
        for key, value in list(one.items() if isinstance(one, dict) else enumerate(one)):
            if isinstance(value, _Held):
                one[key] = value.tensor
            else:
                left.append(value)
    return around[0]
