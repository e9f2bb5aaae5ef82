"""Images with label maps, which writers get and readers return."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8

from primaps.data.images import Stored
from primaps.exchange.classes import Classes
from primaps.geometry.regions import NO_LABEL, Regions, class_regions, connected_regions
from primaps.geometry.shapes import Bounds, Line, Points, Shape, paint
from primaps.utils.errors import InputError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class LabeledImage:
    """An image and its label map.

    Attributes:
        name: File name relative to the folder of images, with suffix and ``/`` as separator.
        key: Name without suffix, unique in a collection; the label map is ``<key>.png``.
        labels: Class 0..K-1 of every pixel; 255 means no label.
        file: The image: a path, or in an archive or on a server; None if labels were read without
            it.
        masks: Mask proposals 1..Z (0 means no mask), if the map has these instead of classes.
    """

    name: str
    key: str
    labels: UInt8[np.ndarray, "h w"]
    file: Path | Stored | None = None
    masks: Integer[np.ndarray, "h w"] | None = None

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.labels.shape[0]

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.labels.shape[1]

    @property
    def copy_name(self) -> str:
        """Name of a copy of the image; names of copies differ by more than their suffix."""
        return self.key + Path(self.name).suffix

    @property
    def split(self) -> str:
        """``train``, ``val`` or ``test`` if the image is in a folder of this name, else empty."""
        first, separator, _ = self.key.partition("/")
        return first if separator and first in SPLITS else ""

    def regions(self, per: str) -> Regions:
        """Return its regions, one per ``class`` or per connected ``region``, or one per mask."""
        if self.masks is not None:
            return _unclassified(class_regions(self.masks, nothing=0))
        return class_regions(self.labels) if per == "class" else connected_regions(self.labels)

    def connected_regions(self) -> Regions:
        """Return its connected regions; a mask proposal may be several."""
        if self.masks is not None:
            return _unclassified(connected_regions(self.masks, nothing=0))
        return connected_regions(self.labels)

    def copy_to(self, target: Path) -> Path:
        """Copy the image file; never a link, because tools repair training images in place.

        Raises:
            InputError: The image has no file.
        """
        if self.file is None:
            raise InputError(f"{self.name} has no image file to copy; choose another format")
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(self.file, Stored):
            target.write_bytes(self.file.read())
        else:
            shutil.copyfile(self.file, target)
        return target


def _unclassified(regions: Regions) -> Regions:
    """Give all regions the class 0."""
    return Regions(regions.numbers, np.zeros_like(regions.classes))


def mask_proposals(
    name: str, key: str, masks: Integer[np.ndarray, "h w"], file: Path | Stored | None = None
) -> LabeledImage:
    """Return an image with mask proposals; pixels of masks have the class 0."""
    labels = np.where(masks > 0, 0, NO_LABEL).astype(np.uint8)
    return LabeledImage(name, key, labels, file, masks)


@dataclass(frozen=True)
class ImageShapes:
    """What a file says about an image, not rasterized.

    Attributes:
        name: File name relative to the folder of images, with suffix and ``/`` as separator.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        shapes: Class and shape, in the order in which they cover each other. Iterate once: shapes
            are parsed one at a time. The class 255 means that the area has no label.
        base: Label map below the shapes; None for no labels.
    """

    name: str
    height: int
    width: int
    shapes: Iterable[tuple[int, Shape]] = ()
    base: UInt8[np.ndarray, "h w"] | None = None

    def label_map(
        self, notes: Counter[str] | None = None, where: object = "labels"
    ) -> UInt8[np.ndarray, "h w"]:
        """Return the label map.

        Args:
            notes: Counts shapes that have no pixels.
            where: File, for error messages.

        Raises:
            InputError: A shape is malformed.
        """
        notes = Counter() if notes is None else notes
        labels = np.full((self.height, self.width), NO_LABEL, np.uint8)
        if self.base is not None:
            labels[:] = self.base
        for k, shape in self.shapes:
            if isinstance(shape, Bounds):
                raise InputError(
                    f"{self.name} has a box without a mask; draw its outline or remove it"
                )
            if isinstance(shape, Line | Points):
                notes[f"{shape.kind}s, which are not areas and were left out"] += 1
            elif not self._paint(labels, shape, k, where):
                notes["areas that cover the center of no pixel"] += 1
        return labels

    def _paint(self, labels: UInt8[np.ndarray, "h w"], shape: Shape, k: int, where: object) -> bool:
        try:
            return paint(labels, shape, k)
        except InputError as error:
            raise InputError(f"{where}, {self.name}: {error}") from None


def label_map_image(name: str, labels: UInt8[np.ndarray, "h w"]) -> ImageShapes:
    """Return an image of which a file has the label map."""
    height, width = labels.shape
    return ImageShapes(name, height, width, base=labels)


@dataclass(frozen=True)
class Labels:
    """Labels that a reader found.

    Attributes:
        classes: Classes that the file names.
        total: Number of images.
        images: Shapes or label map of each image, read one at a time.
        notes: What is left out or chosen, as "points, which are not areas and were left out", and
            how often; complete when all images have been read.
    """

    classes: Classes
    total: int
    images: Iterator[ImageShapes]
    notes: Counter[str] = field(default_factory=Counter)
