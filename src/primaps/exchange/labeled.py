"""What formats exchange: images with their label maps, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8

from primaps.exchange.classes import NOTHING, Classes
from primaps.geometry.regions import Regions, class_regions, connected_regions


@dataclass(frozen=True)
class LabeledImage:
    """An image and its label map.

    Attributes:
        name: file name relative to the folder of images, with its suffix and ``/`` in between.
        key: the same without suffix, unique in a collection: its label map is ``<key>.png``.
        labels: class 0..K-1 of every pixel; 255 is none.
        file: the image; None where labels were read without it.
        masks: proposals 1..Z (0 is none), if the map has these instead of classes.
    """

    name: str
    key: str
    labels: UInt8[np.ndarray, "h w"]
    file: Path | None = None
    masks: Integer[np.ndarray, "h w"] | None = None

    @property
    def height(self) -> int:
        """In pixels."""
        return self.labels.shape[0]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.labels.shape[1]

    @property
    def place(self) -> str:
        """Name of a copy of the image, which differs from others by more than its suffix."""
        return self.key + Path(self.name).suffix

    def regions(self, per: str) -> Regions:
        """Its regions, ``per`` ``class`` or connected ``region``; proposals stay what they are."""
        if self.masks is None:
            return class_regions(self.labels) if per == "class" else connected_regions(self.labels)
        regions = class_regions(self.masks, nothing=0)
        return Regions(regions.numbers, np.zeros_like(regions.classes))

    def parts(self) -> Regions:
        """Its connected regions, which have outlines; a proposal may be several."""
        if self.masks is None:
            return connected_regions(self.labels)
        regions = connected_regions(self.masks, nothing=0)
        return Regions(regions.numbers, np.zeros_like(regions.classes))


def proposals(
    name: str, key: str, masks: Integer[np.ndarray, "h w"], file: Path | None = None
) -> LabeledImage:
    """An image with mask proposals: pixels in a mask are of class 0."""
    labels = np.where(masks > 0, 0, NOTHING).astype(np.uint8)
    return LabeledImage(name, key, labels, file, masks)


class Read(NamedTuple):
    """What a reader gives: the classes that a file names, the number of its images, and their names
    (with suffix) and label maps, one at a time."""

    classes: Classes
    total: int
    images: Iterator[tuple[str, UInt8[np.ndarray, "h w"]]]
