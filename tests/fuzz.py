"""Files that are damaged or made to harm, in the place of every file that is read.

``python tests/fuzz.py --seconds 60`` changes files at random until the time is over; ``--only``
takes kinds of files, ``--seed`` begins elsewhere. Whatever a file says, reading it must succeed
or end in one of our errors of one line, in a few seconds and little memory, and leave all files as
they were. The first case that does not is kept under ``--keep`` and ends the run with status 1.
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import hashlib
import io
import json
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from primaps.utils.errors import PrimapsError

SECONDS, MEGABYTES = 20, 2500
"""What one case may take on a busy machine; what it may add to the memory of the process: three
copies of the largest image that Pillow reads, which a small file may claim to hold."""
NUMBERS = (0, 1, 2, 7, 255, 65_535, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 64) - 1)
VALUES: tuple[Any, ...] = (
    None, True, 0, 1, -1, -14, 2, 7, 255, 256, 65_536, 2_000_000_000, 10**12, -(2**70), 10**400,
    0.5, -0.5, 1e308, float("nan"), float("inf"), "", "x", "abc", "../a.png", "/etc/passwd",
    "\ud800", "a\nb", "[bold]x[/bold]", "\x1b[31m", "magic", "0" * 300, [], {}, [[]], [1, 2],
    ["a"] * 3, [[1, 2], [3, "a"]], {"a": 1}, {"classes": 7}, ["road", "road"],
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """A change of one file; every combination of numbers is one.

    Attributes:
        file: which file, counted round and round.
        kind: which way to change it, counted round and round.
        place: where in it, 0..1.
        value: what to put there, counted round and round.
    """

    file: int
    kind: int
    place: float
    value: int


def changed(data: bytes, change: Change, is_json: bool) -> bytes:
    """The content of a file after a change."""
    at, value = int(change.place * len(data)), change.value
    kinds: list[Callable[[], bytes]] = [
        lambda: data[:at],
        lambda: data[:at] + bytes([value % 256]) + data[at + 1 :],
        lambda: data[:at] + bytes([(data[at] if at < len(data) else 0) ^ 1 << value % 8])
        + data[at + 1 :],
        lambda: data[:at] + data[at + 1 + value % 64 :],
        lambda: data[:at] + data[at : at + 1 + value % 256] * 2 + data[at:],
        lambda: _number(data, at, value, "<"),
        lambda: _number(data, at, value, ">"),
        lambda: data[at:],
        lambda: b"" if value % 2 else data + data,
    ]  # fmt: skip
    if is_json:
        kinds = [lambda: changed_json(data, change)] * 12 + kinds
    elif data[:4] == b"PK\3\4":
        kinds = [lambda: changed_member(data, change)] * 9 + kinds
    elif data[:1] == b"<":
        kinds = [lambda: changed_xml(data, change)] * 12 + kinds
    elif data[:4] in (b"II*\0", b"II+\0"):
        kinds = [lambda: changed_tag(data, change)] * 9 + kinds
    elif _header(data) is not None:
        kinds = [lambda: changed_header(data, change)] * 6 + kinds
    return kinds[change.kind % len(kinds)]()


def _number(data: bytes, at: int, value: int, order: str) -> bytes:
    code = "BHIQ"[value % 4]
    size = struct.calcsize(code)
    number = NUMBERS[value // 4 % len(NUMBERS)] & ((1 << 8 * size) - 1)
    return data[:at] + struct.pack(order + code, number) + data[at + size :]


def changed_json(data: bytes, change: Change) -> bytes:
    """JSON with another value at one place, or without it, or deeply nested."""
    try:
        first, *rest = data.split(b"\n") if data[:1] == b"{" and b"}\n{" in data else [data]
        content = json.loads(first)
    except ValueError:
        return data[: len(data) // 2]
    places = list(_places(content))
    path = places[int(change.place * len(places)) % len(places)]
    number = change.value % (len(VALUES) + 4)
    text = None
    if number < len(VALUES):
        new = copy.deepcopy(VALUES[number])
    else:
        new, text = (
            "@",
            ("[" * 100_000, "[" * 400 + "]" * 400, "NaN", "[0" + ",0" * 10**6 + "]")[
                number - len(VALUES)
            ],
        )
    if not path:
        content = new
    else:
        inside = content
        for key in path[:-1]:
            inside = inside[key]
        if change.value % 7 == 6:
            del inside[path[-1]]
        elif change.value % 7 == 5 and isinstance(inside, dict):
            inside[path[-1] + "?"] = new
        else:
            inside[path[-1]] = new
    found = json.dumps(content)
    found = found if text is None else found.replace('"@"', text, 1)
    return b"\n".join([found.encode(), *rest])


def _places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else list(enumerate(content))[:9]
        for key, value in items:
            yield from _places(value, (*path, key))


def changed_xml(data: bytes, change: Change) -> bytes:
    """XML with another attribute, tag or text of one element, or without one of these."""
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError:
        return data[: len(data) // 2]
    elements = list(root.iter())
    element = elements[int(change.place * len(elements)) % len(elements)]
    texts = [text for text in map(str, VALUES) if text.isprintable()]
    text = [*texts, "1,1;2,2", "-5,3", "1, 2, 3", "1e9"][change.value % (len(texts) + 4)]
    keys = sorted(element.attrib)
    if keys and change.value % 5:
        key = keys[change.file // 7 % len(keys)]
        element.set(key, text)
        if change.value % 7 == 6:
            del element.attrib[key]
    elif change.value % 2:
        element.tag = elements[change.file // 7 % len(elements)].tag
    else:
        element.text = text
    return ElementTree.tostring(root)


def changed_tag(data: bytes, change: Change) -> bytes:
    """A TIFF, or BigTIFF, with another number, type, count or value in its first list of tags."""
    big = data[2:3] == b"+"
    first, width, entry = (8, 8, 20) if big else (4, 2, 12)
    start = int.from_bytes(data[first : first + (8 if big else 4)], "little")
    count = int.from_bytes(data[start : start + width], "little")
    tag = start + width + int(change.place * count) * entry
    field = (0, 2, 4, 12 if big else 8)[change.file // 7 % 4]
    return _number(data, tag + field, change.value, "<")


def _header(data: bytes) -> bytes | None:
    """The header of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    found = data[8 : 8 + size]
    return found if 0 < size < len(data) and found[:1] == b"{" else None


def changed_header(data: bytes, change: Change) -> bytes:
    """A safetensors file with another header, or with other JSON inside its header."""
    header = _header(data) or b"{}"
    content = json.loads(header)
    note = content.get("__metadata__", {})
    if change.value % 3 == 0 and "about" in note:
        note["about"] = changed_json(note["about"].encode(), change).decode("utf-8", "replace")
        new = json.dumps(content).encode()
    else:
        new = changed_json(header, change)
    new += b" " * (-len(new) % 8)
    return len(new).to_bytes(8, "little") + new + data[8 + len(header) :]


def changed_member(data: bytes, change: Change) -> bytes:
    """A zip file, with the right checksums, of which one member is changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as packed, zipfile.ZipFile(out, "w") as again:
        members = packed.infolist()
        # What describes the others, in files of PyTorch, every other time.
        first = [one for one in members if one.filename.endswith(".pkl")] * (change.value % 2)
        chosen = (first or members)[change.file // 7 % len(first or members)]
        for one in members:
            content = packed.read(one)
            if one is chosen:
                inner = Change(change.file, change.kind // 18, change.place, change.value // 2)
                content = changed(content, inner, one.filename.endswith(".json"))
            again.writestr(one, content)
    return out.getvalue()


@dataclass(frozen=True)
class Target:
    """Files, and what reads them.

    Attributes:
        files: of a folder, by name, those that are changed.
        read: is given the folder.
    """

    files: dict[str, bytes]
    read: Callable[[Path], Any]


def run(target: Target, change: Change) -> str:
    """Change a file, read it, and hold what happens to the rules; returns how it ended.

    Raises:
        AssertionError: a rule was broken; the message says which.
    """
    names = sorted(target.files)
    name = names[change.file % len(names)]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        folder = Path(temporary) / "in"
        for one, data in target.files.items():
            path = folder / one
            path.parent.mkdir(parents=True, exist_ok=True)
            if one == name:
                is_json = one.endswith((".json", ".jsonl"))
                data = changed(data, change, is_json)
            path.write_bytes(data)
        before, outcome, lines = _digests(folder), "success", [""]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with warnings.catch_warnings(record=True) as told, limited(SECONDS):
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", ResourceWarning)
            try:
                target.read(folder)
            except PrimapsError as error:
                outcome, lines = type(error).__name__, str(error).splitlines()
            except (Exception, TooLong) as error:
                where = "".join(traceback.format_exception(error)[-4:])
                raise AssertionError(f"{name}: {type(error).__name__}: {error}\n{where}") from error
        assert len(lines) == 1, f"{name}: an error of {len(lines)} lines: {lines[:2]}"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
        assert grown < MEGABYTES, f"{name}: {grown:.0f} MB"
        assert _digests(folder) == before, f"{name}: files were changed"
        assert not told, f"{name}: a warning is shown: {told[0].message}"
    return outcome


class TooLong(BaseException):
    """What no reader catches by mistake."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End what takes longer: of the processor, or ten times as long if it waits."""

    def stop(*_: object) -> None:
        raise TooLong(f"longer than {seconds} s")

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, 1), (signal.ITIMER_REAL, signal.SIGALRM, 10))
    before = [signal.signal(number, stop) for _, number, _ in timers]
    for timer, _, factor in timers:
        signal.setitimer(timer, factor * seconds)
    try:
        yield
    finally:
        for (timer, number, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def main(arguments: list[str] | None = None) -> int:
    from tests.fuzz_targets import NAMES, target

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", help="kinds of files, separated by commas")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-found"))
    options = parser.parse_args(arguments)
    names = options.only.split(",") if options.only else NAMES
    with tempfile.TemporaryDirectory() as temporary:
        made = {name: target(name, Path(temporary) / name) for name in names}
    generator, ends, done = random.Random(options.seed), time.monotonic() + options.seconds, 0
    counts: dict[str, int] = {}
    while time.monotonic() < ends:
        name = names[done % len(names)]
        change = Change(
            generator.randrange(1 << 16),
            generator.randrange(1 << 16),
            generator.random(),
            generator.randrange(1 << 16),
        )
        options.keep.mkdir(exist_ok=True)
        (options.keep / "last.txt").write_text(f"{name} {change}\n")  # if the process dies of it
        try:
            outcome = run(made[name], change)
        except AssertionError as error:
            (options.keep / "found.txt").write_text(f"{name} {change}\n{error}\n")
            print(f"{name} {change}\n{error}")
            return 1
        counts[f"{name}: {outcome}"] = counts.get(f"{name}: {outcome}", 0) + 1
        done += 1
    for key, number in sorted(counts.items()):
        print(f"{number:8,}  {key}")
    print(f"{done:,} cases in {options.seconds:.0f} s, seed {options.seed}: nothing found")
    return 0


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
