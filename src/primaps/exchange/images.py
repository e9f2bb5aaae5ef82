"""Sizes of images without decoding them."""

from __future__ import annotations

from PIL import Image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an image turned as its EXIF says, without decoding it."""
    turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)
