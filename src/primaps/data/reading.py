"""One image or label map from one file, whatever its mode, with one clear sentence on failure.

Besides the formats of Pillow these are MATLAB files (``.mat``), in which Potsdam-3 comes: the image
under the key ``img``, red, green and blue first, and the label map under ``gt``.
"""

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
    and maximum. Of several frames the first is taken, of a MATLAB file the first three channels.

    Raises:
        ImageError: the file is absent, no image, truncated, or too large.
    """
    if isinstance(source, Image.Image):
        image = source
    elif Path(source).suffix.lower() == ".mat":
        image = Image.fromarray(_mat_image(source))
    else:
        image = _read(source)
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def load_label(path: str | Path) -> Integer[np.ndarray, "h w"]:
    """Read a label map: one channel of class indices, 8 or 16 bits, a palette image, or a MATLAB
    file.

    Raises:
        ImageError: the file is absent or damaged, or is in colour.
    """
    if Path(path).suffix.lower() == ".mat":
        return read_mat(path, "gt").astype(np.int64)
    image = _read(path)
    if not has_indices(image):
        raise ImageError(
            f"label {path} is a {image.mode} image; a label map has one channel of class indices, "
            "so convert its colours to indices first"
        )
    return np.asarray(image).astype(np.int64)


def has_indices(image: Image.Image) -> bool:
    """Whether an image has one channel of whole numbers, as a label map must; not decoded."""
    return image.mode in ("L", "P", "1") or image.mode.startswith("I")


def read_mat(path: str | Path, key: str) -> np.ndarray:
    """One array of a MATLAB file of version 5 (or 4), the versions before 7.3.

    Raises:
        ImageError: the file is absent, damaged, of version 7.3, or has no such array.
    """
    from scipy.io import loadmat

    try:
        with Path(path).open("rb") as file:
            if file.read(20).startswith(b"MATLAB 7.3"):
                raise ImageError(
                    f"{path} is a MATLAB file of version 7.3 (HDF5); save it again with "
                    'save(..., "-v7") in MATLAB'
                )
            file.seek(0)
            content = loadmat(file, variable_names=[key])
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist") from None
    except ImageError:
        raise
    except Exception as error:  # scipy raises whatever a broken byte leads to
        raise ImageError(f"{path} is no MATLAB file or damaged ({error}); restore it") from None
    if key not in content:
        raise ImageError(f"{path} has no array {key!r}; is it of another data set?")
    return np.asarray(content[key])


def _mat_image(path: str | Path) -> np.ndarray:
    array = read_mat(path, "img")
    if array.ndim != 3 or array.shape[2] not in (3, 4) or array.dtype != np.uint8:
        raise ImageError(
            f"the array 'img' of {path} has the shape {array.shape} and type {array.dtype}; an "
            "image is (height, width, 3 or 4) of uint8"
        )
    return array[..., :3]


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
