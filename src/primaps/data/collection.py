"""Whatever names the images of a collection, as its files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from primaps.data.folder import ImageFile, find_images

ImageCollection = str | Path | Sequence[str | Path] | Sequence[ImageFile] | Sequence[Image.Image]
"""Files, folders or globs; or image files, or images in memory."""


def image_files(images: ImageCollection) -> list[ImageFile]:
    """Paths become the files that they name; image files and Pillow images stay what they are.

    Raises:
        NotFoundError: a path does not exist, or there is no image.

    Examples:
        >>> [file.key for file in image_files([Image.new("L", (8, 8)), Image.new("L", (8, 8))])]
        ['0', '1']
    """
    if isinstance(images, str | Path) or not isinstance(images, Iterable):
        return find_images(images)
    items: list[Any] = list(images)
    if items and all(isinstance(item, ImageFile) for item in items):
        return items
    if items and all(isinstance(item, Image.Image) for item in items):
        return [ImageFile(item, str(i)) for i, item in enumerate(items)]
    return find_images(items)
