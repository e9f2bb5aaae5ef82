"""Labeled data sets: samples, classes, label values, and their layout on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from primaps.data.collection import ImageFile
from primaps.data.images import ImageError, Stored, load_label
from primaps.utils.errors import InputError, PrimapsError
from primaps.utils.inputs import read_bytes

Color = tuple[int, int, int]


class DataError(PrimapsError, ValueError):
    """A data set is missing on disk, incomplete, or in another layout."""


@dataclass(frozen=True)
class Sample(ImageFile):
    """An image and its label map; None if the data set has no label map for the image."""

    source: Path | Stored
    label: Path | None = None


@dataclass(frozen=True)
class Finding:
    """Result of a check: ``level`` is ``ok``, ``warning`` or ``error``."""

    level: str
    text: str


@dataclass(frozen=True)
class Layout:
    """Layout of a data set on disk, and its classes and splits in the protocol.

    Attributes:
        name: ``cityscapes``, ``cocostuff``, ``potsdam`` or ``folder``.
        classes: names of the classes 0 to K - 1.
        values: class, or ``ignore_index``, of each value that a label map may have.
        splits: number of images of each split; None if the protocol does not define it.
        list_samples: function of root and split that returns all samples, also those that are not
            on disk.
        source: where to get the data.
        ignore_index: label that is not evaluated.
        colors: colors of the classes, if the data set defines them.
        size: width and height of the images, if they are all equal.
        check_names: function of root and split that checks the names of files.
        label_hint: function of a missing label map that describes what exists in its place.
        value_hints: label values that indicate a mistake, with a description.
        unnamed: no class names are known; the classes are the values in label maps.
    """

    name: str
    classes: tuple[str, ...]
    values: Mapping[int, int]
    splits: Mapping[str, int | None]
    list_samples: Callable[[Path, str], list[Sample]]
    source: str
    ignore_index: int = 255
    colors: tuple[Color, ...] | None = None
    size: tuple[int, int] | None = None
    check_names: Callable[[Path, str], Iterator[Finding]] = lambda root, split: iter(())
    label_hint: Callable[[Path], str] = lambda label: ""
    value_hints: Mapping[int, str] = field(default_factory=dict)
    unnamed: bool = False


@dataclass(frozen=True)
class Dataset:
    """A split of a labeled data set, from :func:`primaps.data.load_dataset`.

    Attributes:
        layout: classes, colors and label values.
        root: folder of the data set.
        split: name of the split, such as ``train`` or ``val``.
        samples: images with their label maps; ``model.fit(data.samples)`` works.
        absent: keys of the split without an image on disk.
    """

    layout: Layout
    root: Path
    split: str
    samples: tuple[Sample, ...]
    absent: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.layout.classes

    @property
    def ignore_index(self) -> int:
        """Label that is not evaluated."""
        return self.layout.ignore_index

    @property
    def colors(self) -> tuple[Color, ...] | None:
        """Colors of the classes, if the data set defines them."""
        return self.layout.colors

    @property
    def incomplete(self) -> str:
        """Sentence about the samples without an image on disk; empty if all images exist."""
        if not self.absent:
            return ""
        total = len(self.samples) + len(self.absent)
        return (
            f"{len(self.absent):,} of {total:,} ids of {self.layout.name} {self.split} have no "
            f"image in {self.root}; first: {self.absent[0]}"
        )

    def label(self, sample: Sample) -> Integer[np.ndarray, "h w"]:
        """Load the label map of a sample: classes 0 to K - 1 and ``ignore_index``.

        Raises:
            ImageError: the label map does not exist, cannot be read, or has an unknown value.
        """
        if sample.label is None or not sample.label.is_file():
            missing = f"label map {sample.label}" if sample.label else "label map in this data set"
            raise ImageError(f"{sample.source} has no {missing}")
        return map_values(load_label(sample.label), self.layout, sample.label)


def map_values(
    label: Integer[np.ndarray, "h w"], layout: Layout, path: Path
) -> Integer[np.ndarray, "h w"]:
    """Map the values of a label map to classes and the ignore index.

    Raises:
        ImageError: the label map has an unknown value.
    """
    table = np.full(max(layout.values) + 2, -1, np.int64)
    table[list(layout.values)] = list(layout.values.values())
    mapped = table[label.clip(-1, len(table) - 1)]  # the last entry, also index -1, is unknown
    if (mapped < 0).any():
        value = int(label[mapped < 0].min())
        hint = f"; {layout.value_hints[value]}" if value in layout.value_hints else ""
        raise ImageError(
            f"label {path} has the value {value}, which is none of the {len(layout.classes)} "
            f"classes and not the ignore index {layout.ignore_index}{hint}"
        )
    return mapped


LARGEST_LIST = 64 << 20
"""Bytes of a list of names: 118,287 ids of COCO have 1.5 MB."""


def need_folder(root: Path, folder: str, source: str) -> Path:
    """Return ``root/folder``, if it exists.

    Args:
        folder: relative path; its first part identifies the data set.
        source: where to get the data, for the error message.

    Raises:
        DataError: the folder does not exist; the message says whether the root is a folder too high
            or too deep, or the archive is not unpacked.
    """
    if (root / folder).is_dir():
        return root / folder
    first = Path(folder).parts[0]
    if not root.exists():
        raise DataError(f"{root} does not exist; give the folder that holds {first}/")
    if root.is_file():
        raise DataError(f"{root} is a file; unpack it and give the folder that holds {first}/")
    if (root / first).is_dir():
        raise DataError(f"{root / folder} does not exist; it is part of {source}")
    for above in list(root.resolve().parents)[:3]:
        if (above / first).is_dir():
            raise DataError(f"{root} is one folder too deep: give {above}, which holds {first}/")
    if below := next((path for path in sorted(root.glob(f"*/{first}")) if path.is_dir()), None):
        raise DataError(f"{root} is one folder too high: give {below.parent}, which holds {first}/")
    packed = [*root.glob("*.zip"), *root.glob("*.tar*"), *root.glob("*.tgz")]
    if packed:
        raise DataError(
            f"{root} has no folder {first}/; unpack {min(packed).name} (the data set consists of "
            f"{source})"
        )
    raise DataError(f"{root} has no folder {first}/; get {source}")


def read_list(path: Path, how: str) -> list[str]:
    """Read a list of names, one per line.

    Args:
        how: sentence about how to get the list, for the error message.

    Raises:
        DataError: the list does not exist, is empty, or has another content.
    """
    if not path.is_file():
        raise DataError(f"the list {path} does not exist; {how}")
    try:
        names = read_bytes(path, LARGEST_LIST).decode("utf-8-sig").split()
    except UnicodeDecodeError as error:
        raise DataError(f"the list {path} is not UTF-8 text ({error.reason}); {how}") from None
    except InputError as error:
        raise DataError(f"{error}; {how}") from None
    if strange := next((name for name in names if Path(name).name != name), None):
        raise DataError(f"the list {path} has {strange[:60]!r}, which is not a file name; {how}")
    if not names:
        raise DataError(f"the list {path} is empty; {how}")
    return names
