"""The images of an experiment: which to fit, which to score, and how to know them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from primaps.data import DataError, Dataset, load_dataset
from primaps.data.datasets import find_layout
from primaps.results import is_marked, output_file
from primaps.utils.errors import InputError
from primaps.utils.files import atomic_path


@dataclass(frozen=True)
class Source:
    """A data set as an experiment uses it.

    Attributes:
        train: what models are fitted to.
        score: what they are scored on; the same images if the data set has one split only.
    """

    train: Dataset
    score: Dataset


def load_source(name: str, root: str | Path) -> Source:
    """The splits ``train`` and ``val`` of a data set.

    Raises:
        DataError: it is not laid out as it should be, or has no classes.json.
    """
    source = Source(*(load_dataset(name, root, split) for split in ("train", "val")))
    if source.score.layout.unnamed:
        raise DataError(f"{root} has no classes.json: its labels have neither names nor a number")
    return source


def source_counts(source: Source) -> tuple[int, int, int]:
    """Images to fit, images to score and classes."""
    return len(source.train.samples), len(source.score.samples), len(source.score.classes)


def image_counts(name: str, root: Path | None) -> tuple[int, int, int]:
    """:func:`source_counts` of a data set, as published if it is not here.

    Raises:
        InputError: a folder with labels is not here.
    """
    if root is not None:
        return source_counts(load_source(name, root))
    if name == "folder":
        raise InputError("give --root: a folder with images, labels and classes.json")
    layout = find_layout(name, "")
    return layout.splits["train"] or 0, layout.splits["val"] or 0, len(layout.classes)


def list_digest(data: Dataset) -> str:
    """SHA-256 of the list of image ids, one a line: of the file that :func:`write_list` writes."""
    return hashlib.sha256(_lines(sample.key for sample in data.samples)).hexdigest()


def write_list(data: Dataset, path: Path) -> None:
    """Write the ids of the images of a split, one a line; beside a report of this package they may
    replace others."""
    known = is_marked(path.parent / "report.json")
    with (atomic_path if known else output_file)(path) as temporary:
        temporary.write_bytes(_lines(sample.key for sample in data.samples))


def fingerprint(data: Dataset) -> str:
    """Of ids, classes, and the sizes of all files in bytes, which are quick to read and hardly
    stay the same when a file changes."""
    about = [list(data.classes), sorted(data.layout.values.items()), data.ignore_index]
    lines = [json.dumps(about)]
    for sample in data.samples:
        label = sample.label
        there = label.stat().st_size if label is not None and label.is_file() else -1
        lines.append(f"{sample.key} {sample.source.stat().st_size} {there}")
    return hashlib.sha256(_lines(lines)).hexdigest()


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
