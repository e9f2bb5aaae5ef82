"""One image or label map from one file, whatever its mode, with one clear sentence on failure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Integer
from PIL import Image, ImageOps, UnidentifiedImageError


class ImageError(ValueError):
    """One file cannot be used; the message names it, the reason and what to do."""


def load_image(source: str | Path | Image.Image) -> Image.Image:
    """Read an image file as 8-bit RGB, upright; an image in memory is converted likewise.

    EXIF rotation is applied. Grey, palette and CMYK images are converted; transparency is put on
    white. Images of 16 or 32 bits are scaled from the smallest of 8, 10, 12, 14, 16, 24 or 32 bits
    that holds their largest value; images of floating point are stretched from their own minimum
    and maximum. Of several frames the first is taken.

    Raises:
        ImageError: the file is absent, no image, truncated, or too large.
    """
    image = source if isinstance(source, Image.Image) else _read(source)
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def load_label(path: str | Path) -> Integer[np.ndarray, "h w"]:
    """Read a label map: one channel of class indices, 8 or 16 bits, or a palette image.

    Raises:
        ImageError: the file is absent or damaged, or is in colour.
    """
    image = _read(path)
    if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
        raise ImageError(
            f"label {path} is a {image.mode} image; a label map has one channel of class indices, "
            "so convert its colours to indices first"
        )
    return np.asarray(image).astype(np.int64)


def _read(path: str | Path) -> Image.Image:
    path = Path(path)
    try:
        image = Image.open(path)
        image.load()
        return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path} is not an image that Pillow can read") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{path} has too many pixels to read at once; cut it into tiles") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(f"{path} is damaged ({error}); restore or remove it") from None


def _to_8_bit(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.any():
            raise ImageError("an image of floating point has no finite value")
        low, high = array[finite].min(), array[finite].max()
        scaled = (np.where(finite, array, low) - low) / max(high - low, np.finfo(np.float32).tiny)
    else:
        largest = int(array.max())
        bits = next(b for b in (8, 10, 12, 14, 16, 24, 32) if largest < 1 << b)
        scaled = array.clip(0) / ((1 << bits) - 1)
    return (scaled * 255 + 0.5).astype(np.uint8)
