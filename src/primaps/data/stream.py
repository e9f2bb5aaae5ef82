"""Read files in threads, ahead of their use and in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from primaps.data.collection import ImageFile
from primaps.data.images import ImageError, Stored
from primaps.utils.files import sha256

F = TypeVar("F", bound=ImageFile)
T = TypeVar("T")
LogCallback = Callable[[str], None]
"""Called with one sentence about each image that is skipped."""


def read(
    files: Sequence[F],
    transform: Callable[[F], T],
    log: LogCallback,
    ahead: int = 8,
) -> Iterator[tuple[F, T]]:
    """Apply ``transform`` to files in two threads; yield results in order.

    Decoding releases the interpreter lock and runs beside the network.

    Args:
        log: called with one sentence about each image that raises :class:`ImageError`.
        ahead: number of files that are read ahead.
    """
    with ThreadPoolExecutor(2) as pool:
        queue: list[tuple[F, Future[T]]] = []
        rest = iter(files)
        while True:
            for file in islice(rest, max(0, ahead - len(queue))):
                queue.append((file, pool.submit(transform, file)))
            if not queue:
                return
            file, future = queue.pop(0)
            try:
                yield file, future.result()
            except ImageError as error:
                log(_named(str(error), file))


def _named(sentence: str, file: ImageFile) -> str:
    """Put the name of the file before a sentence that does not contain it."""
    name = str(file.source) if isinstance(file.source, Path | Stored) else file.key
    known = [name, str(getattr(file, "label", name))]
    return sentence if any(one in sentence for one in known) else f"{name}: {sentence}"


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Split items into consecutive lists of ``size`` items; the last one may be shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def in_memory(file: ImageFile) -> ImageFile:
    """Read an image into memory, to compute its digest and decode it from one read.

    Raises:
        ImageError: the file cannot be read.
    """
    source = file.source
    if isinstance(source, Path) and source.suffix.lower() != ".mat":
        try:
            content = source.read_bytes()
        except OSError as error:
            raise ImageError(f"{source} cannot be read ({error.strerror})") from None
    elif isinstance(source, Stored):
        content = source.read()
    else:
        return file
    return ImageFile(Stored(str(source), lambda: content), file.key, depth=file.depth)


def content_digest(file: ImageFile) -> str:
    """Compute the SHA-256 of a file, or of the pixels of an image in memory.

    Raises:
        ImageError: the file cannot be read.
    """
    if isinstance(file.source, Path):
        try:
            return sha256(file.source)
        except OSError as error:
            raise ImageError(f"{file.source} cannot be read ({error.strerror})") from None
    image = file.source
    if isinstance(image, Stored):
        return hashlib.sha256(image.read()).hexdigest()
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()
