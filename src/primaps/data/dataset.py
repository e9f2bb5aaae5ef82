"""What every labeled data set is to the rest of the package: samples, classes, label values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from primaps.data.folder import ImageFile
from primaps.data.reading import ImageError, load_label
from primaps.utils.errors import PrimapsError

Color = tuple[int, int, int]


class DataError(PrimapsError, ValueError):
    """A data set is not laid out as it should be; the message says where and what to do."""


@dataclass(frozen=True)
class Sample(ImageFile):
    """An image file and the file of its label map; None if the data set has no label for it."""

    source: Path
    label: Path | None = None


@dataclass(frozen=True)
class Finding:
    """What a check found: ``level`` is ``fine``, ``odd`` (works, but look) or ``wrong``."""

    level: str
    text: str


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk, and what the protocol expects of it.

    Attributes:
        name: ``cityscapes``, ``cocostuff``, ``potsdam`` or ``folder``.
        classes: names of the classes 0..K-1.
        values: class, or ``ignore_index``, of every value that a label map may have.
        splits: number of images of each split; None where the protocol does not say.
        listed: the samples that a split of a root should have, whether they are on disk or not.
        source: where the data is to be had.
        ignore_index: label that is not counted.
        colors: of the classes, if the data set has its own.
        size: width and height of every image, if they are all alike.
        look: what names alone show about a split of a root.
        instead: what lies in place of a label map that is not there, or nothing.
        telltales: label values that betray a mistake, and which.
        guessed: no names are known, so classes are the values that occur in labels.
    """

    name: str
    classes: tuple[str, ...]
    values: Mapping[int, int]
    splits: Mapping[str, int | None]
    listed: Callable[[Path, str], list[Sample]]
    source: str
    ignore_index: int = 255
    colors: tuple[Color, ...] | None = None
    size: tuple[int, int] | None = None
    look: Callable[[Path, str], Iterator[Finding]] = lambda root, split: iter(())
    instead: Callable[[Path], str] = lambda label: ""
    telltales: Mapping[int, str] = field(default_factory=dict)
    guessed: bool = False


@dataclass(frozen=True)
class Dataset:
    """A split of a labeled data set. From :func:`primaps.data.load_dataset`.

    Attributes:
        layout: classes, colors and label values.
        root: folder that it was found in.
        split: ``train``, ``val``, ...
        samples: images with the files of their labels. They are
            :class:`primaps.data.ImageFile` as well, so ``model.fit(data.samples)`` works.
        absent: names that are on the list of the split, but have no image on disk.
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
        """Label that is not counted."""
        return self.layout.ignore_index

    @property
    def colors(self) -> tuple[Color, ...] | None:
        """Colors of the classes, if the data set has its own."""
        return self.layout.colors

    @property
    def incomplete(self) -> str:
        """A sentence about ids without an image; empty if there are none."""
        if not self.absent:
            return ""
        total = len(self.samples) + len(self.absent)
        return (
            f"{len(self.absent):,} of {total:,} ids of {self.layout.name} {self.split} have no "
            f"image in {self.root}; first: {self.absent[0]}"
        )

    def label(self, sample: Sample) -> Integer[np.ndarray, "h w"]:
        """Label map of a sample: classes 0..K-1 and ``ignore_index``.

        Raises:
            ImageError: there is none, it cannot be read, or it has a value outside the protocol.
        """
        if sample.label is None or not sample.label.is_file():
            raise ImageError(f"{sample.source} has no label {sample.label or 'at all'}")
        return map_values(load_label(sample.label), self.layout, sample.label)


def map_values(
    label: Integer[np.ndarray, "h w"], layout: Layout, path: Path
) -> Integer[np.ndarray, "h w"]:
    """Values of a label file to classes and the ignore index.

    Raises:
        ImageError: a value that the layout does not know.
    """
    table = np.full(max(layout.values) + 2, -1, np.int64)
    table[list(layout.values)] = list(layout.values.values())
    mapped = table[label.clip(-1, len(table) - 1)]  # the last entry (index -1 too) stays unknown
    if (mapped < 0).any():
        value = int(label[mapped < 0].min())
        hint = f"; {layout.telltales[value]}" if value in layout.telltales else ""
        raise ImageError(
            f"label {path} has the value {value}, which is none of the {len(layout.classes)} "
            f"classes and not the ignore index {layout.ignore_index}{hint}"
        )
    return mapped
