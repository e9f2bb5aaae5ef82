"""Check a data set on disk against the protocol: ``primaps data check``.

Lists, names, existence and headers are checked first, then the values of all label maps.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from primaps.data.collection import LABELS
from primaps.data.dataset import DataError, Finding, Layout, Sample
from primaps.data.datasets import DATASETS, find_layout
from primaps.data.images import ImageError, Stored, image_size, label_mode, load_label, read_mat
from primaps.utils.errors import InputError
from primaps.utils.progress import ProgressCallback, silent

T = TypeVar("T")
BLOCK = 256
"""Files that the threads get at once; an interrupt waits for one block."""
ABSENT = "images not on disk"


def check_dataset(
    name: str, root: str | Path, quick: bool = False, progress: ProgressCallback = silent
) -> Iterator[Finding]:
    """Check a data set, split by split.

    Args:
        name: ``cityscapes``, ``cocostuff``, ``potsdam`` or ``folder``.
        root: root folder; see :func:`primaps.data.load_dataset`.
        quick: do not read the values of label maps.

    Yields:
        Findings of one sentence each.

    Raises:
        InputError: the name is unknown.

    Examples:
        >>> for finding in check_dataset("potsdam", "nowhere"):
        ...     print(finding.level, finding.text)
        error train: nowhere does not exist; give the folder that holds imgs/
        error val: nowhere does not exist; give the folder that holds imgs/
        warning unlabeled: nowhere does not exist; give the folder that holds imgs/
    """
    root = Path(root).expanduser()
    try:
        layout = find_layout(name, root)
    except (DataError, InputError) as error:
        if name not in DATASETS:
            raise
        yield Finding("error", str(error))
        return
    for split in layout.splits:
        for finding in _check_split(layout, root, split, quick, progress):
            # The paper does not use the unlabeled patches of Potsdam.
            optional = split == "unlabeled" and finding.level == "error"
            level = "warning" if optional else finding.level
            yield Finding(level, f"{split}: {finding.text}")


def _check_split(
    layout: Layout, root: Path, split: str, quick: bool, progress: ProgressCallback
) -> Iterator[Finding]:
    try:
        samples = layout.list_samples(root, split)
        findings = list(layout.check_names(root, split))
    except (DataError, InputError) as error:
        yield Finding("error", str(error))
        return
    expected = layout.splits[split]
    if expected is not None and len(samples) != expected:
        yield Finding("error", f"{len(samples):,} images; the protocol has {expected:,}")
    yield from findings

    mistakes = _Mistakes(len(samples), layout.source)
    sizes: Counter[tuple[int, int]] = Counter()
    usable = []
    for sample, found in _each(lambda s: _size(layout, s), samples, f"{split}: sizes", progress):
        if isinstance(found, _Mistake):
            mistakes.add(found)
        else:
            sizes[found] += 1
            usable.append(sample)
    yield from mistakes.findings()
    if not usable:
        return
    shapes = f"all {_times(next(iter(sizes)))}" if len(sizes) == 1 else f"{len(sizes)} sizes"
    labeled = [sample for sample in usable if sample.label is not None]
    if quick or not labeled:
        text = f"{len(usable):,} images, {len(labeled):,} with a label of their size, {shapes}"
        yield Finding("ok", text)
        return

    mistakes, total, valid = _Mistakes(len(labeled), layout.source), Counter[int](), 0
    for _, counted in _each(lambda s: _values(layout, s), labeled, f"{split}: labels", progress):
        if isinstance(counted, _Mistake):
            mistakes.add(counted)
        else:
            total += counted
            valid += 1
    yield from mistakes.findings()
    pixels = total.total()
    if not pixels:
        return
    ignored = total[layout.ignore_index] / pixels
    text = f"{valid:,} images with labels of the protocol, {shapes}"
    yield Finding("ok", f"{text}, {ignored:.1%} of the pixels ignored")
    empty = [name for k, name in enumerate(layout.classes) if not total[k]]
    if empty and not layout.unnamed:
        yield Finding("warning", f"no pixel of {', '.join(empty)}")


class _Mistake(NamedTuple):
    """A type of problem, and the file that has it."""

    kind: str
    detail: str


class _Mistakes:
    """Collect mistakes; each type becomes one sentence with its number and its first file."""

    def __init__(self, files: int, source: str) -> None:
        self.files, self.source = files, source
        self.number: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, mistake: _Mistake) -> None:
        self.number[mistake.kind] += 1
        self.first.setdefault(mistake.kind, mistake.detail)

    def findings(self) -> Iterator[Finding]:
        for kind, number in self.number.items():
            text = f"{kind}: {number:,} of {self.files:,}, first {self.first[kind]}"
            hint = f"; get {self.source}" if kind == ABSENT else ""
            yield Finding("error", text + hint)


def _size(layout: Layout, sample: Sample) -> tuple[int, int] | _Mistake:
    """Return width and height of an image, after a comparison with its label map; by headers."""
    if isinstance(sample.source, Path) and not sample.source.is_file():
        return _Mistake(ABSENT, str(sample.source))
    if sample.label is not None and not sample.label.is_file():
        hint = layout.label_hint(sample.label)
        return _Mistake("labels not on disk" + f" ({hint})" * bool(hint), str(sample.label))
    try:
        size = _header(sample.source, label=False)
        other = size if sample.label is None else _header(sample.label, label=True)
    except _ColorError as error:
        return _Mistake("labels in color instead of class indices", str(error))
    except ImageError as error:
        return _Mistake("files that cannot be read", str(error))
    if size != other:
        detail = f"{sample.label} has {_times(other)} pixels, its image {_times(size)}"
        return _Mistake("labels with another size than their image", detail)
    if layout.size and size != layout.size:
        detail = f"{sample.source} with {_times(size)}"
        return _Mistake(f"images that are not {_times(layout.size)}", detail)
    return size


class _ColorError(Exception):
    """A label map contains colors instead of class indices."""


def _header(path: Path | Stored, label: bool) -> tuple[int, int]:
    """Return width and height after EXIF rotation; only MATLAB files are decoded."""
    if not label or isinstance(path, Stored):
        return image_size(path)
    if path.suffix.lower() == ".mat":
        shape = read_mat(path, "gt").shape
        if len(shape) != 2:
            raise _ColorError(f"{path} of shape {shape}")
        return shape[1], shape[0]
    if (mode := label_mode(path)) is not None:
        raise _ColorError(f"{path} ({mode})")
    return image_size(path)


def _values(layout: Layout, sample: Sample) -> Counter[int] | _Mistake:
    """Count the pixels of each class and of the ignore index in a label map."""
    assert sample.label is not None
    try:
        raw = load_label(sample.label)
    except ImageError as error:
        return _Mistake("labels that cannot be read", str(error))
    low = min(0, int(raw.min()))
    if int(raw.max()) - low < LABELS:
        counts = np.bincount((raw - low).ravel())
        found = {int(i) + low: int(counts[i]) for i in np.flatnonzero(counts)}
    else:  # a table would have as many entries as the maximum
        found = {int(v): int(n) for v, n in zip(*np.unique(raw, return_counts=True), strict=True)}
    unknown = sorted(found.keys() - layout.values.keys())
    if unknown:
        hints = layout.value_hints
        hint = next((hints[v] for v in unknown if v in hints), "")
        kind = "labels with values outside the protocol" + f" ({hint})" * bool(hint)
        return _Mistake(kind, f"{sample.label} with {', '.join(map(str, unknown[:5]))}")
    total: Counter[int] = Counter()
    for value, number in found.items():
        total[layout.values[value]] += number
    return total


def _each(
    function: Callable[[Sample], T],
    samples: Sequence[Sample],
    stage: str,
    progress: ProgressCallback,
) -> Iterator[tuple[Sample, T]]:
    """Apply ``function`` in threads, in order; decoding releases the interpreter lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(samples), BLOCK):
            block = samples[start : start + BLOCK]
            yield from zip(block, pool.map(function, block), strict=True)
            progress(stage, start + len(block), len(samples), {})


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
