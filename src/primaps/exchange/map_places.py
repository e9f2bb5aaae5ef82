"""Where images of an export lie: copies, in lists by their first folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from primaps.exchange.labeled import LabeledImage
from primaps.utils.errors import InputError

SUBSETS = ("train", "val", "test")


def subset(key: str) -> str:
    """``train``, ``val`` or ``test`` if the image lies in a folder of this name, else nothing.

    Examples:
        >>> subset("val/a"), subset("a")
        ('val', '')
    """
    first = key.split("/")[0]
    return first if "/" in key and first in SUBSETS else ""


def copy(image: LabeledImage, target: Path) -> Path:
    """Copy the file of an image; never a link, since tools repair what they train on in place."""
    if image.file is None:
        raise InputError(f"{image.name} has no image file to copy")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(image.file, target)
    return target
