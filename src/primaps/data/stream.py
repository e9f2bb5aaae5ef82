"""Files read a little ahead of whoever uses them, in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from primaps.data.folder import ImageFile
from primaps.data.reading import ImageError
from primaps.data.stored import Stored
from primaps.utils.files import sha256

F = TypeVar("F", bound=ImageFile)
T = TypeVar("T")
LogCallback = Callable[[str], None]
"""Called with one sentence about each image that is left out."""


def read(
    files: Sequence[F],
    transform: Callable[[F], T],
    log: LogCallback,
    ahead: int = 8,
) -> Iterator[tuple[F, T]]:
    """Apply ``transform`` to files in order, a few ahead in threads; bad files are reported.

    Decoding releases the interpreter lock, so it overlaps with the network.
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
    """A sentence that names its file, which functions on images do not know."""
    name = str(file.source) if isinstance(file.source, Path | Stored) else file.key
    known = [name, str(getattr(file, "label", name))]
    return sentence if any(one in sentence for one in known) else f"{name}: {sentence}"


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of ``size`` items, the last one shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def in_memory(file: ImageFile) -> ImageFile:
    """The same with the content of its file, so that it is read once, for digest and pixels.

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
    return ImageFile(Stored(str(source), lambda: content), file.key)


def content_digest(file: ImageFile) -> str:
    """SHA-256 of a file, or of the pixels of an image in memory.

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
