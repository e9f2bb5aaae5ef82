"""A folder of results: what this package wrote into it, and nothing else, may be replaced.

``primaps.jsonl`` in the folder has a line for every result, written just before its files take
their places: the digests of the source, of the options and of each file. A result is finished if
its last line says so and its files are intact; a file is ours if some line names its content. Times
play no part, so copies, unpacked archives and damaged files are told apart from finished results.
Any number of processes and threads may share a folder: lines are only ever appended, and whoever
writes holds the journal until line and files are in their places, and has read what others did.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import IO, Any

from primaps.utils.errors import InputError, PrimapsError
from primaps.utils.files import atomic_path, named, sha256, write_json
from primaps.utils.inputs import read_json

try:
    import fcntl
except ImportError:  # Windows: there each line is one write
    fcntl = None  # type: ignore[assignment]

OPTIONS, JOURNAL = "primaps.json", "primaps.jsonl"


class OutputError(PrimapsError, ValueError):
    """A file that would be written is not ours to replace; the message names it."""


class OutputFolder:
    """Results of one command in a folder, under names relative to it.

    Args:
        folder: need not exist yet.
        options: everything that results depend on beside their source; JSON.
        inputs: files that must stay as they are.
        names: of every file that may be written.

    Raises:
        OutputError: an input lies beside a name; a name is an input, a link or a file that this
            package did not write; or the folder has results of other options that would stay
            beside the new ones.

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
        self, folder: Path, options: Mapping[str, Any], inputs: Iterable[Path], names: list[str]
    ) -> None:
        self.folder, self.options = folder, dict(options)
        self._digest = hashlib.sha256(json.dumps(self.options, sort_keys=True).encode()).hexdigest()
        self._ours: dict[str, set[str]] = defaultdict(set)  # name -> digests that we wrote
        self._last: dict[str, tuple[str, str, str]] = {}  # name -> source, options, digest
        self._seen, self._reading = 0, Lock()  # bytes of the journal
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file: give a folder to write to")
        self._refuse_other_command()
        self._follow()
        self._refuse_inputs(inputs, names)
        for name in names:
            self._refuse_foreign(name)
        self._refuse_mixture(set(names))
        if _json(folder / OPTIONS) != self.options:
            write_json(folder / OPTIONS, self.options)

    def finished(self, source: str, names: Iterable[str]) -> bool:
        """Whether all of ``names`` are intact results of this source with these options, of this
        process or another one."""
        names = list(names)
        if self._finished(source, names):
            return True
        self._follow()
        return self._finished(source, names)

    def _finished(self, source: str, names: list[str]) -> bool:
        return all(
            (last := self._last.get(name)) is not None
            and last[:2] == (source, self._digest)
            and _digest_of(self.folder / name) == last[2]
            for name in names
        )

    def write(self, source: str, files: Mapping[str, Callable[[Path], Any]]) -> None:
        """Write the files of one result; each function writes to the path that it is given.

        Raises:
            OutputError: another run with other options took the folder over, or a file that is not
                ours has appeared under one of the names.
        """
        if _json(self.folder / OPTIONS) != self.options:
            raise OutputError(
                f"another run with other options writes to {self.folder}: this one stops, so that "
                "results do not mix; give each its own folder"
            )
        with ExitStack() as stack:
            digests = {}
            for name, save in files.items():
                temporary = stack.enter_context(atomic_path(self.folder / name))
                save(temporary)
                digests[name] = sha256(temporary)
            with self._journal() as journal:
                self._follow()
                for name in files:
                    self._refuse_foreign(name)
                # First the line: a file without one would not be ours if the process ended between.
                _append(journal, {"source": source, "options": self._digest, "files": digests})
                stack.close()

    @contextmanager
    def _journal(self) -> Iterator[IO[bytes]]:
        """The journal for appending, held against other processes and threads."""
        path = self.folder / JOURNAL
        with named(path), path.open("a+b", buffering=0) as journal:
            if fcntl is not None:
                with suppress(OSError):  # a file system without locks: each line is one write
                    fcntl.flock(journal, fcntl.LOCK_EX)  # until the file is closed
            yield journal

    def _follow(self) -> None:
        """Read the lines that the journal has got since."""
        path = self.folder / JOURNAL
        with self._reading:
            if not path.is_file() or path.stat().st_size <= self._seen:
                return
            with path.open("rb") as lines:
                lines.seek(self._seen)
                content = lines.read()
            whole = content[: content.rfind(b"\n") + 1]
            self._seen += len(whole)
            for text in whole.splitlines():
                try:
                    line = json.loads(text)
                    source, options = str(line["source"]), str(line["options"])
                    files = {str(name): str(digest) for name, digest in line["files"].items()}
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    continue  # half a line: its files never took their places
                for name, digest in files.items():
                    self._ours[name].add(digest)
                    self._last[name] = (source, options, digest)

    def _refuse_other_command(self) -> None:
        path = self.folder / OPTIONS
        if not os.path.lexists(path):
            return
        known = _json(path)
        ours = isinstance(known, dict) and "primaps" in known and not path.is_symlink()
        if not ours or not str(known.get("command")).replace("-", "_").isidentifier():
            raise OutputError(f"{path} is not of primaps: write to another folder")
        if known.get("command") != self.options.get("command"):
            raise OutputError(
                f"{self.folder} holds the results of {known.get('command')}: write those of "
                f"{self.options.get('command')} to another folder"
            )

    def _refuse_inputs(self, inputs: Iterable[Path], names: list[str]) -> None:
        beside: dict[Path, Path] = {}  # folder -> an input in it
        identities: dict[tuple[int, int], Path] = {}
        for path in inputs:
            beside.setdefault(path.resolve().parent, path)
            status = path.stat()
            identities[status.st_dev, status.st_ino] = path
        for parent in dict.fromkeys((self.folder / name).parent for name in names):
            if (image := beside.get(parent.resolve())) is not None:
                raise OutputError(
                    f"{parent} holds the image {image}: write to another folder, so that images "
                    "and results do not mix"
                )
        for name in (*names, OPTIONS, JOURNAL):
            target = self.folder / name
            if target.exists():  # through links of any kind
                status = target.stat()
                if (image := identities.get((status.st_dev, status.st_ino))) is not None:
                    raise OutputError(
                        f"{target} is the image {image} itself: write to another folder"
                    )

    def _refuse_foreign(self, name: str) -> None:
        path = self.folder / name
        if not os.path.lexists(path):
            return
        foreign = path.is_symlink() or not path.is_file()
        if not foreign and (digest := _digest_of(path)) not in self._ours[name]:
            self._follow()  # another process may have written it since; its line came first
            foreign = digest not in self._ours[name]
        if foreign:
            raise OutputError(
                f"{path} was not written by primaps, or was changed since: it is not replaced; "
                "move it away, or write to another folder"
            )

    def _refuse_mixture(self, names: set[str]) -> None:
        others = [
            name
            for name, (_, options, _) in self._last.items()
            if options != self._digest and name not in names and (self.folder / name).exists()
        ]
        if others:
            raise OutputError(
                f"{self.folder} has {len(others)} results of other options or another command "
                f"({min(others)} is one), which would mix with these: write to another folder"
            )


def _digest_of(path: Path) -> str | None:
    try:
        return sha256(path)
    except OSError:
        return None


def _json(path: Path) -> Any:
    try:
        return read_json(path, dict[str, Any])
    except (OSError, InputError):
        return None


def _append(journal: IO[bytes], line: dict[str, Any]) -> None:
    text = json.dumps(line, ensure_ascii=False) + "\n"
    if end := journal.seek(0, os.SEEK_END):
        journal.seek(end - 1)
        if journal.read(1) != b"\n":  # a line that a killed run left half
            text = "\n" + text
    data = text.encode()
    if journal.write(data) < len(data):  # a raw file takes what there is room for
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
