"""Files that are read: regular files of bounded size, JSON of a type, tensors of a shape.

Nothing that a file says of itself is believed: sizes come from the file system, contents are
checked before anything is built from them, and each complaint names the file and the field.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from primaps.utils.errors import InputError, reason
from primaps.utils.typed import conform

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
LARGEST_JSON = 16 << 20
"""Bytes of the largest JSON that is read, where nothing else is said: the largest that is
written, ``classes.json`` of 4,096 long names, has a tenth of it."""
LARGEST_TENSORS = 4 << 30
"""Bytes of the largest file of tensors that is read whole: a million prototypes have 3 GB."""
DEEPEST_JSON = 32
"""Levels of lists and objects in JSON: what is read or written here has at most six."""


def need_file(path: Path, most: int) -> None:
    """Refuse what is no regular file, which might never end, and what is larger than ``most``.

    Raises:
        InputError: it is a pipe, a device, a folder, or too large.
        OSError: there is no such file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a file")
    if status.st_size > most:
        raise InputError(f"{path} has {status.st_size:,} bytes; a file of this kind has far fewer")


def read_bytes(path: Path, most: int = LARGEST_JSON) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raises:
        InputError: it is something else, or larger.
        OSError: there is no such file, or it cannot be read.
    """
    need_file(path, most)
    with path.open("rb") as file:
        return file.read(most)


def read_json(path: Path, kind: type[T] | Any, what: str = "", most: int = LARGEST_JSON) -> Any:
    """The content of a JSON file, checked by a type.

    Args:
        what: what to do about a file that is not of this type, for the message.
        most: bytes that the file may have.

    Raises:
        InputError: it is no JSON, too large, too deep, or not of this type; the message names the
            file and the field.
        OSError: there is no such file, or it cannot be read.
    """
    return parse_json(read_bytes(path, most), kind, str(path), what)


def parse_json(data: bytes | str, kind: type[T] | Any, where: str, what: str = "") -> Any:
    """JSON in UTF-8, checked by a type.

    Args:
        where: what to call it in a sentence.
        what: what to do about it, for the message.

    Raises:
        InputError: as :func:`read_json`.

    Examples:
        >>> parse_json(b'{"classes": 7}', dict[str, int], "a.json")
        {'classes': 7}
        >>> parse_json(b'{"classes": "x"}', dict[str, int], "a.json")
        Traceback (most recent call last):
        primaps.utils.errors.InputError: a.json: the content.classes is 'x'; it must be a whole \
number
    """
    hint = f"; {what}" if what else ""
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        content = json.loads(text, parse_float=_finite, parse_constant=_finite)
        if "\\u" in text:  # half of a pair of code units is no text, and cannot be written again
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else reason(error)
        raise InputError(f"{where} is no JSON ({said}){hint}") from None
    if _is_deep(content):
        raise InputError(f"{where} is nested too deeply{hint}")
    try:
        return conform(content, kind, "the content")
    except InputError as error:
        raise InputError(f"{where}: {error}{hint}") from None


def read_tensors(
    path: Path, most: int = LARGEST_TENSORS
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        InputError: it is no such file, damaged, or too large.
        OSError: there is no such file, or it cannot be read.
    """
    return parse_tensors(read_bytes(path, most), str(path))


def parse_tensors(data: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata out of the bytes of a safetensors file.

    Raises:
        InputError: they are none, or their header declares more than there is.
    """
    from safetensors.torch import load

    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except Exception as error:  # safetensors and torch raise whatever a broken byte leads to
        raise InputError(f"{where} is no safetensors file, or damaged ({reason(error)})") from None
    return tensors, header.get("__metadata__") or {}  # safetensors takes null


def need_tensor(
    tensors: Mapping[str, Tensor],
    name: str,
    shape: Sequence[int | None],
    where: str,
    whole: bool = False,
) -> Tensor:
    """A tensor of floating point, or of whole numbers, of a shape and without NaN or infinity.

    Args:
        shape: None is any length but 0.
        whole: whether its numbers have to be whole.

    Raises:
        InputError: it is missing or of another kind; the message names the file and the tensor.

    Examples:
        >>> import torch
        >>> need_tensor({"bias": torch.ones(3)}, "bias", (4,), "a.safetensors")
        Traceback (most recent call last):
        primaps.utils.errors.InputError: bias of a.safetensors is torch.float32 of the shape \
(3,); it must be floating point of the shape (4,)
    """
    if name not in tensors:
        raise InputError(f"{where} lacks the tensor {name}")
    tensor = tensors[name]
    kind = not tensor.is_floating_point() and not tensor.is_complex()
    fits = tensor.ndim == len(shape) and all(
        length == wanted if wanted is not None else length > 0
        for length, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits or kind != whole or tensor.is_complex():
        words = "whole numbers" if whole else "floating point"
        form = ", ".join("any" if wanted is None else str(wanted) for wanted in shape)
        form = f"({form},)" if len(shape) == 1 else f"({form})"
        raise InputError(
            f"{name} of {where} is {tensor.dtype} of the shape {tuple(tensor.shape)}; it must be "
            f"{words} of the shape {form}"
        )
    if not whole and not bool(tensor.float().isfinite().all()):
        raise InputError(f"{name} of {where} has NaN or infinity")
    return tensor


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no number that JSON can have")
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
