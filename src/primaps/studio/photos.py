"""Photos as the page shows them: upright, in sRGB, of a screen's size, pixels and no more."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageCms

from primaps.data import load_image
from primaps.data.stored import Stored

SIDE, THUMB = 1600, 240
"""Longest side of a photo and of a small one, in pixels."""
QUALITY = 88


def shown_size(width: int, height: int, side: int = SIDE) -> tuple[int, int]:
    """Width and height at which an image is shown.

    Examples:
        >>> shown_size(4000, 3000), shown_size(640, 480)
        ((1600, 1200), (640, 480))
    """
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def photo(source: str | Path | Image.Image | Stored, side: int = SIDE) -> Image.Image:
    """An image as :func:`primaps.load_image` reads it, at the size at which it is shown.

    Raises:
        ImageError: it cannot be read.
    """
    image = load_image(source)
    size = shown_size(image.width, image.height, side)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def jpeg(image: Image.Image) -> bytes:
    """Pixels in sRGB as a JPEG: what else the file said of itself (EXIF, comments) is left out."""
    profile = image.info.get("icc_profile")
    if profile:
        try:
            given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            own = ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, given, own) or image
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a profile that is damaged, or of another kind of pixels
    plain = image.copy()
    plain.info = {}
    file = io.BytesIO()
    plain.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def cut_out(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """A part of an image; ``box`` is left, top, right and bottom in 0..1."""
    left, top = int(box[0] * image.width), int(box[1] * image.height)
    right = max(left + 1, round(box[2] * image.width))
    bottom = max(top + 1, round(box[3] * image.height))
    part = image.crop((left, top, min(right, image.width), min(bottom, image.height)))
    part.thumbnail((2 * THUMB, 2 * THUMB))
    return part
