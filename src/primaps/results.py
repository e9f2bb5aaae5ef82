"""Output files and folders: ownership, journals, and the work of interrupted runs.

A file or folder is replaced only if this package wrote it. Two records identify what it wrote:

- A single file carries a mark in its content (:data:`MARKS`). Files that belong together, such as
  those of a model, have one marked JSON file that describes them (:func:`check_set`).
- A folder has a journal with the SHA-256 of every file that was written to it. A file that was
  changed since has another digest and is refused (:class:`OutputFolder`, :func:`output_folder`).

Files are written atomically (:func:`primaps.utils.files.atomic_path`). Files that a killed process
leaves do not block the next process.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from primaps.utils.errors import PrimapsError
from primaps.utils.files import (
    MAX_NAME,
    atomic_path,
    fitting_name,
    locked,
    named,
    save_image,
    sha256,
    share,
    temporary_folder,
    user_path,
    write_json,
)
from primaps.utils.inputs import read_bytes
from primaps.version import VERSION

if TYPE_CHECKING:
    from PIL import Image

GENERATOR = f"primaps {VERSION}"
"""Value of the mark: package and version that wrote a file."""
MARKS = {
    ".html": b'<meta name="generator" content="primaps ',
    ".json": b'"generator": "primaps ',
    ".md": b"<!-- generator: primaps ",
    ".png": b"Software\0primaps ",
}
"""Suffix to the bytes that a file of this package contains."""
LARGEST_MANIFEST = 256 << 20
"""Maximum size of ``primaps.json`` in bytes; that of a scene with many masks has some megabytes."""
HEAD = 1 << 16
"""Number of bytes at the beginning of a file that are searched for the mark."""
MANIFEST, JOURNAL, LOCK = "primaps.json", "primaps.jsonl", ".primaps.lock"
"""Files of an :class:`OutputFolder` besides its results."""
FOLDER_JOURNAL = ".primaps.jsonl"
"""Journal of a folder of :func:`output_folder`; hidden from tools that read every file."""


class OutputError(PrimapsError, ValueError):
    """A file or folder must not be replaced, or cannot be written to; the message names it."""


def is_marked(path: Path) -> bool:
    """Return whether a regular file exists and carries the mark of this package."""
    try:
        with path.open("rb") if path.is_file() else io.BytesIO() as file:
            return MARKS[path.suffix.lower()] in file.read(HEAD)
    except OSError:
        return False


def check_file(path: Path, content: bytes | None = None) -> None:
    """Check, before any work, that a file may be written.

    Args:
        path: may be missing.
        content: content that a file of a kind without a mark must have if it exists.

    Raises:
        OutputError: The path is a link or a folder, or a file that this package did not write.
    """
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_file():
        raise OutputError(f"{path} is not a regular file; choose another output path")
    if path.suffix.lower() in MARKS:
        if not is_marked(path):
            raise _not_ours(path)
    elif content is not None and path.read_bytes() != content:
        raise _not_ours(path)


@contextmanager
def output_file(path: str | Path) -> Iterator[Path]:
    """Return a temporary path that replaces ``path`` if this package may write there.

    The file that the block writes must carry the mark of its kind. A file of a kind without a mark
    is replaced only by identical content.

    Raises:
        OutputError: The file exists and was not written by this package.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "report.html"
        >>> for _ in range(2):
        ...     with output_file(path) as temporary:
        ...         _ = temporary.write_bytes(MARKS[".html"] + b'0.1">')
        >>> _ = path.write_text("<p>mine")
        >>> with output_file(path) as temporary:
        ...     pass
        Traceback (most recent call last):
        primaps.results.OutputError: .../report.html was not written by primaps; ...
    """
    path = Path(path)
    check_file(path)
    with atomic_path(path) as temporary:
        yield temporary
        marked = path.suffix.lower() in MARKS
        assert not marked or is_marked(temporary), f"{path.suffix} files need the mark"
        # Check again: another program may have created the file in the meantime.
        check_file(path, None if marked else temporary.read_bytes())


def write_marked_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with the mark of this package.

    Raises:
        OutputError: The file exists and was not written by this package.
    """
    with output_file(path) as temporary:
        write_json(temporary, {"generator": GENERATOR, **content})


def write_marked_png(image: Image.Image, path: str | Path) -> None:
    """Write an image as PNG with the mark of this package.

    Raises:
        OutputError: The file exists and was not written by this package.
    """
    from PIL.PngImagePlugin import PngInfo

    mark = PngInfo()
    mark.add_text("Software", GENERATOR)
    with output_file(path) as temporary:
        save_image(image, temporary, pnginfo=mark)


def check_set(folder: Path, description: str, names: Iterable[str]) -> None:
    """Check that files which belong together may be written to a folder.

    Args:
        folder: may be missing.
        description: name of the JSON file of the set that carries the mark. It is written first.
        names: the other files and folders of the set.

    Raises:
        OutputError: ``folder`` is a file, one of the names is a link, or one of the names exists
            and the description is not marked.
    """
    names = (description, *names)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; choose a folder for the output")
    for name in names:
        if (folder / name).is_symlink():  # a link to a folder would be written through
            raise OutputError(f"{folder / name} is a link; move it away, or choose another folder")
    if is_marked(folder / description):
        return
    for name in names:
        if os.path.lexists(folder / name):
            raise _not_ours(folder / name)


def check_inputs(folders: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Check that no input lies in a folder that results are written to.

    Raises:
        OutputError: An input does.
    """
    parents = {}
    for path in inputs:  # a link lies in one folder, and its target in another
        parents[path.parent.resolve()] = parents[path.resolve().parent] = path
    for folder in dict.fromkeys(folders):
        if (image := parents.get(folder.resolve())) is not None:
            raise OutputError(f"{folder} contains the input {image}; choose another output folder")


class OutputFolder:
    """Folder with the results of one command, which several processes and threads may share.

    ``primaps.json`` has the options. ``primaps.jsonl`` has one line per result: digests of the
    source, of the options and of each file. Under a lock, a line is appended before its files
    are moved to their final paths. A result is finished if its last line names the same source
    and options and its files have the digests of that line. Modification times are not used, so a
    folder may be copied or unpacked from an archive.

    Args:
        folder: may be missing.
        options: everything that results depend on besides their source; JSON.
        inputs: files that must not be replaced.
        names: every file that may be written, relative to ``folder``.

    Raises:
        OutputError: An input lies in a folder of a name; a name exists as an input, a link or a
            file that this package did not write; or the folder has results of other options that
            would remain next to the new ones.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> output = OutputFolder(folder, {"threshold": 0.4}, [], ["a.txt"])
        >>> output.write("digest of the source", {"a.txt": lambda path: path.write_text("mask")})
        >>> output.finished("digest of the source", ["a.txt"])
        True
        >>> output.finished("another digest", ["a.txt"])
        False
    """

    def __init__(
        self, folder: Path, options: Mapping[str, Any], inputs: Iterable[Path], names: Sequence[str]
    ) -> None:
        self.folder, self.options = folder, dict(options)
        self._digest = hashlib.sha256(json.dumps(self.options, sort_keys=True).encode()).hexdigest()
        self._written: dict[str, set[str]] = defaultdict(set)  # name -> digests
        self._last: dict[str, tuple[str, str, str]] = {}  # name -> source, options, digest
        self._read_bytes, self._reading = 0, Lock()
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file; choose a folder for the output")
        self._check_command()
        self._read_journal()
        inputs = list(inputs)
        for name in names:
            if len(os.fsencode(name.rpartition("/")[2])) > MAX_NAME:
                raise OutputError(
                    f"the result {name} has a longer name than file systems allow ({MAX_NAME} "
                    "bytes); rename the image"
                )
        check_inputs(((folder / name).parent for name in names), inputs)
        self._check_links(inputs, names)
        for name in names:
            self._check(name)
        self._check_mixture(set(names))
        if _json(folder / MANIFEST) != self.options:
            write_json(folder / MANIFEST, self.options)

    def finished(self, source: str, names: Iterable[str]) -> bool:
        """Return whether all of ``names`` are intact results of this source and these options.

        Args:
            source: digest of the source.
            names: files of the result, written by this process or another one.
        """
        for name in names:
            expected = source, self._digest, _digest_of(self.folder / name)
            if self._last.get(name) != expected:
                self._read_journal()
                if self._last.get(name) != expected:
                    return False
        return True

    def write(self, source: str, files: Mapping[str, Callable[[Path], Any]]) -> None:
        """Write the files of one result.

        Args:
            source: digest of the source.
            files: name to a function that writes the file to the path it is given.

        Raises:
            OutputError: Another run with other options writes to the folder, or a file that this
                package did not write has appeared under one of the names.
        """
        if _json(self.folder / MANIFEST) != self.options:
            raise OutputError(
                f"another run with other options writes to {self.folder}; use a separate folder "
                "for each run"
            )
        with ExitStack() as stack:
            digests = {}
            for name, save in files.items():
                temporary = stack.enter_context(atomic_path(self.folder / name))
                save(temporary)
                digests[name] = sha256(temporary)
            with locked(self.folder, self.folder / LOCK):
                self._read_journal()
                for name in files:
                    self._check(name)
                # The line comes first: a process that is killed in between leaves a line without
                # its files, which is harmless. A file without its line would block later runs.
                line = {"source": source, "options": self._digest, "files": digests}
                _append(self.folder / JOURNAL, line)
                stack.close()

    def _read_journal(self) -> None:
        """Read the lines that were appended since the last call."""
        with self._reading:
            lines, self._read_bytes = _lines(self.folder / JOURNAL, self._read_bytes)
            for source, options, files in lines:
                for name, digest in files.items():
                    self._written[name].add(digest)
                    self._last[name] = (source, options, digest)

    def _check_command(self) -> None:
        for name in (JOURNAL, LOCK):
            if (self.folder / name).is_symlink():
                raise _not_ours(self.folder / name)
        path = self.folder / MANIFEST
        if not os.path.lexists(path):
            return
        manifest = _json(path)
        if manifest is None or "primaps" not in manifest or path.is_symlink():
            raise _not_ours(path)
        if not str(manifest.get("command")).replace("-", "_").isidentifier():
            raise _not_ours(path)  # the command is quoted in messages
        if manifest.get("command") != self.options.get("command"):
            raise OutputError(
                f"{self.folder} has results of {manifest.get('command')}; choose another folder "
                f"for those of {self.options.get('command')}"
            )

    def _check_links(self, inputs: Iterable[Path], names: Iterable[str]) -> None:
        """Refuse names under which an input itself can be reached, by links of any kind."""
        identities = {}
        for path in inputs:
            try:
                status = path.stat()
            except FileNotFoundError:  # removed meanwhile: reading it reports that
                continue
            identities[status.st_dev, status.st_ino] = path
        for name in (*names, MANIFEST, JOURNAL, LOCK):
            target = self.folder / name
            if target.exists():
                status = target.stat()
                if (image := identities.get((status.st_dev, status.st_ino))) is not None:
                    raise OutputError(f"{target} is the input {image}; choose another folder")

    def _check(self, name: str) -> None:
        """Refuse a file that is not in the journal with its present digest."""
        path = self.folder / name
        if not os.path.lexists(path):
            return
        ours = path.is_file() and not path.is_symlink()
        if ours and (digest := _digest_of(path)) not in self._written[name]:
            self._read_journal()  # another process may have written the file since
            ours = digest in self._written[name]
        if not ours:
            raise OutputError(
                f"{path} was not written by primaps or was changed since; move it away, or choose "
                "another folder"
            )

    def _check_mixture(self, names: set[str]) -> None:
        others = [
            name
            for name, (_, options, _) in self._last.items()
            if options != self._digest and name not in names and (self.folder / name).exists()
        ]
        if others:
            raise OutputError(
                f"{self.folder} has {len(others)} results of other options, for example "
                f"{min(others)}; choose another folder, so that results do not mix"
            )


@contextmanager
def output_folder(out: str | Path) -> Iterator[Path]:
    """Return a temporary folder that becomes ``out`` when the block ends without an error.

    Raises:
        OutputError: ``out`` must not be replaced; see :func:`check_folder`.

    Examples:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp()) / "out"
        >>> with output_folder(out) as temporary:
        ...     _ = (temporary / "a.txt").write_text("complete")
        >>> sorted(path.name for path in out.iterdir())
        ['.primaps.jsonl', 'a.txt']
    """
    out = user_path(out).absolute()
    check_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(out.parent) as temporary:
        yield temporary
        _append(temporary / FOLDER_JOURNAL, {"files": _digests(temporary)})
        share(temporary, 0o777)
        check_folder(out)  # check again: another program may have written to it
        if out.is_dir() and any(out.iterdir()):
            with temporary_folder(out.parent) as old:
                out.rename(old / "old")
                try:
                    temporary.rename(out)
                except BaseException:
                    (old / "old").rename(out)
                    raise
        else:
            temporary.replace(out)


def check_folder(out: Path) -> None:
    """Check that a folder is missing, empty, or unchanged since :func:`output_folder` wrote it.

    Raises:
        OutputError: ``out`` is a file, or a folder with anything else.
    """
    if out.is_file():
        raise OutputError(f"{out} is a file; choose a folder for the output")
    if not out.is_dir() or not any(out.iterdir()):
        return
    lines, _ = _lines(out / FOLDER_JOURNAL)
    if not lines:
        raise OutputError(f"{out} is not empty; choose another folder, or empty it")
    if lines[-1][2] != _digests(out):
        raise OutputError(f"{out} was changed since primaps wrote it; choose another folder")


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, except the journal; an empty string for a folder."""
    return {
        path.relative_to(folder).as_posix(): sha256(path) if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
        if path != folder / FOLDER_JOURNAL
    }


@dataclass(frozen=True)
class RawFile:
    """Array on disk that is read and written by rows; values are zero until they are written.

    A memory map would count as memory of the process.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        """Size in bytes of one entry of the first axis."""
        return int(np.prod(self.shape[1:])) * self.dtype.itemsize

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """Return entries ``top`` to ``bottom`` of the first axis."""
        count = (bottom - top) * self.row_bytes // self.dtype.itemsize
        with self.path.open("rb") as file:
            values = np.fromfile(file, self.dtype, count, offset=top * self.row_bytes)
        return values.reshape(-1, *self.shape[1:])

    def rectangle(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Return a rectangle of the first two axes."""
        step = self.row_bytes // self.shape[1]
        values = np.empty((bottom - top, right - left, *self.shape[2:]), self.dtype)
        with self.path.open("rb") as file:
            for number, row in enumerate(values):
                file.seek((top + number) * self.row_bytes + left * step)
                file.readinto(row.data)
        return values

    def put(self, values: np.ndarray, top: int, left: int = 0) -> None:
        """Write a rectangle of the first two axes."""
        data = np.ascontiguousarray(values, self.dtype)
        with named(self.path), self.path.open("r+b") as file:
            step = self.row_bytes // self.shape[1]
            if data.shape[1] == self.shape[1]:
                file.seek(top * self.row_bytes)
                file.write(data.data)
                return
            for number, row in enumerate(data):
                file.seek((top + number) * self.row_bytes + left * step)
                file.write(row.data)


class WorkFolder:
    """Folder with the intermediate arrays of one run and the progress of each of its steps.

    Args:
        folder: an existing folder.
        digest: digest of the source and options of the run.
    """

    def __init__(self, folder: Path, digest: str = "") -> None:
        self.folder, self.digest = folder, digest
        self._state: dict[str, Any] = (_json(folder / MANIFEST) or {}).get("state", {})

    def file(self, name: str, shape: tuple[int, ...], dtype: Any) -> RawFile:
        """Return the file of an array; create it if it does not exist."""
        raw = RawFile(self.folder / name, shape, np.dtype(dtype))
        size = int(np.prod(shape)) * raw.dtype.itemsize
        if not raw.path.exists() or raw.path.stat().st_size != size:
            with named(raw.path), raw.path.open("wb") as file:
                file.truncate(size)
        return raw

    def get(self, name: str, default: Any) -> Any:
        """Return the value that :meth:`save` was given last."""
        return self._state.get(name, default)

    def save(self, **values: Any) -> None:
        """Write values for the run that resumes this one."""
        self._state |= values
        write_json(self.folder / MANIFEST, {"primaps": self.digest, "state": self._state})


@contextmanager
def resumable_file(
    out: Path, source: Path, options: Mapping[str, Any], read_digest: Callable[[Path], str | None]
) -> Iterator[tuple[WorkFolder | None, str]]:
    """Return the work folder of one output file, with the work of an interrupted run, if any.

    It is a hidden folder next to ``out`` until the block ends without an error.

    Args:
        out: the file to write.
        source: the file that ``out`` is computed from.
        options: everything else that ``out`` depends on; JSON.
        read_digest: returns the digest that an existing file carries, or None.

    Returns:
        The work, or None if ``out`` is complete; and the digest that ``out`` has to carry.

    Raises:
        OutputError: ``out`` is the source, or exists and is not the result of this source with
            these options.
    """
    text = json.dumps(dict(options), sort_keys=True) + sha256(source)
    digest = hashlib.sha256(text.encode()).hexdigest()
    folder = out.with_name(fitting_name(f".{out.name}", ".primaps"))
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if os.path.lexists(out):
            if out.exists() and out.samefile(source):
                raise OutputError(f"{out} is the input itself; choose another output file")
            if out.is_symlink() or not out.is_file() or read_digest(out) != digest:
                raise OutputError(
                    f"{out} exists and is not the result of this input with these options; move "
                    "it away, or choose another output file"
                )
            yield None, digest
            return
        manifest = _json(folder / MANIFEST)
        if not _is_work(folder, manifest):
            raise _not_ours(folder)
        if manifest is None or manifest["primaps"] != digest:
            _remove_work(folder)
            folder.mkdir()
            WorkFolder(folder, digest).save()
        yield WorkFolder(folder, digest), digest
        _remove_work(folder)


def _remove_work(folder: Path) -> None:
    """Remove a work folder, the manifest last, because this process may also be killed."""
    if folder.is_dir():
        for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):
            path.unlink()
        folder.rmdir()


def _is_work(folder: Path, manifest: dict[str, Any] | None) -> bool:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        return False
    if manifest is not None:
        return "primaps" in manifest
    # A run that was killed at its beginning leaves a manifest that is not complete.
    return not folder.exists() or all(p.name.startswith(".writing-") for p in folder.iterdir())


def _not_ours(path: Path) -> OutputError:
    return OutputError(
        f"{path} was not written by primaps; move it away, or choose another output path"
    )


def _digest_of(path: Path) -> str | None:
    try:
        return sha256(path)
    except OSError:
        return None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(read_bytes(path, LARGEST_MANIFEST))
    except (OSError, ValueError, RecursionError):  # InputError is a ValueError
        return None
    return content if isinstance(content, dict) else None


def _lines(path: Path, start: int = 0) -> tuple[list[tuple[str, str, dict[str, str]]], int]:
    """Read a journal from a byte on: source, options and files of each line, and the next byte."""
    if not path.is_file() or path.stat().st_size <= start:
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        content = file.read()
    complete = content[: content.rfind(b"\n") + 1]
    lines = []
    for text in complete.splitlines():
        try:
            line = json.loads(text)
            files = {str(name): str(digest) for name, digest in line["files"].items()}
            lines.append((str(line.get("source")), str(line.get("options")), files))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # a line that a killed process left incomplete: its files were never placed
    return lines, start + len(complete)


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """Append one line to a journal."""
    text = json.dumps(line) + "\n"
    with named(path), path.open("a+b", buffering=0) as journal:
        if end := journal.seek(0, os.SEEK_END):
            journal.seek(end - 1)
            if journal.read(1) != b"\n":  # a killed process left an incomplete line
                text = "\n" + text
        data = text.encode()
        if journal.write(data) < len(data):  # raw files write as much as fits on the disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
