"""Reading of files that may be malformed: bounded sizes, JSON of a type, tensors of a shape.

The size of a file is checked before it is read, and its content before anything is built from it.
Every error names the file and the field.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from primaps.utils.errors import InputError, reason
from primaps.utils.validation import validate_json

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
LARGEST_JSON = 16 << 20
"""Default limit for JSON files in bytes, ten times the largest file that primaps writes."""
LARGEST_TENSORS = 4 << 30
"""Default limit for tensor files in bytes. A million prototypes take 3 GB."""
DEEPEST_JSON = 32
"""Maximum nesting of JSON. Files of primaps have at most six levels."""


def need_file(path: Path, max_bytes: int) -> None:
    """Refuse a path that is not a regular file, or larger than ``max_bytes``.

    Raises:
        InputError: the path is a pipe, a device or a folder, or the file is too large.
        OSError: the file does not exist.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file")
    if status.st_size > max_bytes:
        raise InputError(
            f"{path} has {status.st_size:,} bytes; a file of this kind has at most {max_bytes:,}"
        )


def read_bytes(path: Path, max_bytes: int = LARGEST_JSON) -> bytes:
    """Read a regular file of at most ``max_bytes``.

    Raises:
        InputError: the path is not a regular file, or the file is too large.
        OSError: the file does not exist or cannot be read.
    """
    need_file(path, max_bytes)
    with path.open("rb") as file:
        return file.read(max_bytes)


def read_json(
    path: Path, kind: type[T] | Any, hint: str = "", max_bytes: int = LARGEST_JSON
) -> Any:
    """Read a JSON file and validate it by a type.

    Args:
        hint: what to do about an invalid file, for the error message.
        max_bytes: maximum size of the file in bytes.

    Raises:
        InputError: the file is not JSON, too large, nested too deeply, or not of this type; the
            message names the file and the field.
        OSError: the file does not exist or cannot be read.
    """
    return parse_json(read_bytes(path, max_bytes), kind, str(path), hint)


def parse_json(data: bytes | str, kind: type[T] | Any, where: str, hint: str = "") -> Any:
    """Parse JSON in UTF-8 and validate it by a type.

    Args:
        where: name of the JSON in error messages, such as the path of its file.
        hint: what to do about invalid JSON, for the error message.

    Raises:
        InputError: see :func:`read_json`.

    Examples:
        >>> parse_json(b'{"classes": 7}', dict[str, int], "a.json")
        {'classes': 7}
        >>> parse_json(b'{"classes": "x"}', dict[str, int], "a.json")
        Traceback (most recent call last):
        primaps.utils.errors.InputError: a.json: field "classes" is 'x'; it must be an integer
    """
    hint = f"; {hint}" if hint else ""
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        content = json.loads(text, parse_float=_finite, parse_constant=_finite)
        if "\\u" in text:  # a lone surrogate cannot be written again, but for bytes of a file name
            json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except (ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else reason(error)
        raise InputError(f"{where} is not JSON ({said}){hint}") from None
    if _is_deep(content):
        raise InputError(f"{where} is nested too deeply{hint}")
    try:
        return validate_json(text, content, kind)
    except InputError as error:
        raise InputError(f"{where}: {error}{hint}") from None


def read_tensors(
    path: Path, max_bytes: int = LARGEST_TENSORS
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file.

    Raises:
        InputError: the file is not a safetensors file, damaged, or too large.
        OSError: the file does not exist or cannot be read.
    """
    return parse_tensors(read_bytes(path, max_bytes), str(path))


def parse_tensors(data: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parse the tensors and the metadata of a safetensors file.

    Raises:
        InputError: the bytes are not a safetensors file, or its header declares more bytes than
            the file has.
    """
    from safetensors.torch import load

    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except Exception as error:  # safetensors and torch raise many types for damaged bytes
        raise InputError(
            f"{where} is not a safetensors file, or is damaged ({reason(error)})"
        ) from None
    return tensors, header.get("__metadata__") or {}  # safetensors allows null


def need_tensor(
    tensors: Mapping[str, Tensor],
    name: str,
    shape: Sequence[int | None],
    where: str,
    integers: bool = False,
) -> Tensor:
    """Return a tensor by its name, if it has this shape and neither NaN nor infinity.

    Args:
        shape: None stands for any length except 0.
        where: file of the tensor, for the error message.
        integers: expect integers instead of floating point.

    Raises:
        InputError: the tensor is missing, or has another type or shape; the message names the file
            and the tensor.

    Examples:
        >>> import torch
        >>> need_tensor({"bias": torch.ones(3)}, "bias", (4,), "a.safetensors")
        Traceback (most recent call last):
        primaps.utils.errors.InputError: a.safetensors: tensor bias is torch.float32 of shape \
(3,); it must be floating point of shape (4,)
    """
    if name not in tensors:
        raise InputError(f"{where}: tensor {name} is missing")
    tensor = tensors[name]
    has_integers = not tensor.is_floating_point() and not tensor.is_complex()
    fits = tensor.ndim == len(shape) and all(
        length == wanted if wanted is not None else length > 0
        for length, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits or has_integers != integers or tensor.is_complex():
        expected = "integers" if integers else "floating point"
        form = ", ".join("any" if wanted is None else str(wanted) for wanted in shape)
        form = f"({form},)" if len(shape) == 1 else f"({form})"
        raise InputError(
            f"{where}: tensor {name} is {tensor.dtype} of shape {tuple(tensor.shape)}; it must be "
            f"{expected} of shape {form}"
        )
    if not integers and not bool(tensor.float().isfinite().all()):
        raise InputError(f"{where}: tensor {name} has NaN or infinity")
    return tensor


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a valid JSON number")
    return number


def _is_deep(content: Any) -> bool:
    level, depth = [content], 0
    while level and depth <= DEEPEST_JSON:
        level = [
            child
            for one in level
            if isinstance(one, list | dict)
            for child in (one.values() if isinstance(one, dict) else one)
        ]
        depth += 1
    return bool(level)
