"""Read one image or label map from one file, in every mode.

Besides the formats of Pillow these are MATLAB files (``.mat``), the format of Potsdam-3: the image
under the key ``img`` (red, green and blue first), and the label map under ``gt``.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from jaxtyping import Integer
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from primaps.data.matlab import read_array
from primaps.utils.errors import InputError, PrimapsError, reason

ORIENTATION, TURNED = 0x0112, 5
"""EXIF tag of the orientation, and its minimum value that exchanges width and height."""
ROWS = 256
"""Rows of an image that are converted to 8 bits at once."""
_lock, _inside, _filters = Lock(), list[None](), ExitStack()


class ImageError(PrimapsError, ValueError):
    """An image or label map cannot be used."""


@dataclass(frozen=True)
class Stored:
    """An image in an archive or on a server.

    Attributes:
        name: name of the image in messages.
        read: function that returns the bytes of the image, or raises :class:`primaps.ImageError`.
        archive: local archive that holds the image; None for an image on a server or in memory.
    """

    name: str
    read: Callable[[], bytes]
    archive: Path | None = None

    def __str__(self) -> str:
        return self.name


def load_image(source: str | Path | Stored | Image.Image | np.ndarray | Tensor) -> Image.Image:
    """Read an image as 8-bit RGB, rotated by its EXIF orientation.

    Gray, palette and CMYK images are converted to RGB. Transparent pixels become white. Images of
    16 or 32 bits are scaled from the smallest of 8, 10, 12, 14, 16, 24 or 32 bits that holds their
    maximum. Floating-point images are scaled from their minimum and maximum. Only the first frame,
    and the first three channels of a MATLAB file, are read.

    Args:
        source: file, also in an archive or on a server; or image in memory: of Pillow, 8-bit array
            (H, W), (H, W, 3) or (H, W, 4), or 8-bit tensor (3, H, W).

    Raises:
        ImageError: the file does not exist, is not an image, is damaged, or is too large.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source)
    if isinstance(source, np.ndarray | Tensor):
        return _to_rgb(_from_array(source))
    if isinstance(source, Stored):
        with opened(source.name, source.read()) as image:
            return _to_rgb(upright(image))
    if not isinstance(source, str | Path):
        raise ImageError(
            f"{type(source).__name__} is not an image; give a path, a Pillow image, an array or a "
            "tensor"
        )
    if Path(source).suffix.lower() == ".mat":
        return Image.fromarray(_mat_image(source))
    with opened(source) as image:
        return _to_rgb(upright(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def image_size(source: str | Path | Stored | Image.Image) -> tuple[int, int]:
    """Return width and height of :func:`load_image`.

    Only the header of a file is read, except for MATLAB files.

    Raises:
        ImageError: the file does not exist or is not an image.
    """
    if isinstance(source, Image.Image):
        return source.size
    if isinstance(source, Stored):
        with opened(source.name, source.read()) as image:
            return upright_size(image)
    if Path(source).suffix.lower() == ".mat":
        return load_image(source).size
    with opened(source) as image:
        return upright_size(image)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an image after EXIF rotation, without decoding it."""
    try:
        turned = image.getexif().get(ORIENTATION, 1) >= TURNED
    except Exception:  # damaged EXIF data: the pixels can still be read
        turned = False
    return (image.height, image.width) if turned else image.size


def load_label(path: str | Path) -> Integer[np.ndarray, "h w"]:
    """Read a label map with one channel of class indices.

    Args:
        path: image of 8 or 16 bits, palette image, or MATLAB file.

    Raises:
        ImageError: the file does not exist, is damaged, or is a color image.
    """
    if Path(path).suffix.lower() == ".mat":
        label = read_mat(path, "gt")
        if label.ndim != 2 or label.dtype.kind not in "iub":
            raise ImageError(
                f"label {path} has the shape {label.shape} and type {label.dtype}; a label map has "
                "one channel of class indices"
            )
        return label.astype(np.int64)
    with opened(path) as image:
        if not _has_indices(image):
            raise ImageError(
                f"label {path} is a {image.mode} image; a label map has one channel of class "
                "indices: convert its colors to indices"
            )
        return np.asarray(upright(image)).astype(np.int64)


def label_mode(path: str | Path) -> str | None:
    """Return the mode of an image that is not a label map; None if it has one integer channel.

    Raises:
        ImageError: the file does not exist or is not an image.
    """
    with opened(path) as image:
        return None if _has_indices(image) else image.mode


def _has_indices(image: Image.Image) -> bool:
    return image.mode in ("L", "P", "1") or image.mode.startswith("I")


def read_mat(path: str | Path, key: str) -> np.ndarray:
    """Read an array of real numbers from a MATLAB file of version 4 or 5 (before 7.3).

    Raises:
        ImageError: the file does not exist, is damaged, has version 7.3, or lacks the array.
    """
    try:
        return read_array(Path(path), key)
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror})") from None
    except InputError as error:
        raise ImageError(str(error)) from None


def _mat_image(path: str | Path) -> np.ndarray:
    array = read_mat(path, "img")
    if array.ndim != 3 or array.shape[2] not in (3, 4) or array.dtype != np.uint8:
        raise ImageError(
            f"the array 'img' of {path} has the shape {array.shape} and type {array.dtype}; an "
            "image is (height, width, 3 or 4) of uint8"
        )
    return array[..., :3]


def upright(image: Image.Image) -> Image.Image:
    """Decode an image in its own mode, and rotate it by its EXIF orientation."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data: the image is not rotated
        return image.copy()


@contextmanager
def opened(path: str | Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image file without decoding it; errors inside the block become one sentence.

    Args:
        path: the file.
        content: bytes of the file, if they are in memory; ``path`` is then only its name.

    Raises:
        ImageError: the file cannot be read; the message names the file and the reason.
    """
    try:
        if content is None and Path(path).exists() and not Path(path).is_file():
            raise ImageError(f"{path} is not a file")  # reading a pipe would block
        with quiet(), Image.open(path if content is None else io.BytesIO(content)) as image:
            yield image
    except ImageError as error:
        raise error if str(path) in str(error) else ImageError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path} is not an image that Pillow can read") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{path} has too many pixels to read at once; cut it into tiles") from None
    except MemoryError:
        raise ImageError(f"{path} needs more memory than is available; cut it into tiles") from None
    except Exception as error:  # decoders raise errors of many types for damaged files
        raise ImageError(f"{path} is damaged ({reason(error)}); restore or remove it") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings of Pillow and NumPy about a file.

    Warning filters belong to the process, and threads read files: the first thread that enters
    sets the filters, and the last thread that leaves restores them.
    """
    with _lock:
        if not _inside:
            _filters.enter_context(warnings.catch_warnings())
            for module in ("PIL", "numpy", "primaps.data"):
                warnings.filterwarnings("ignore", module=rf"{module}\b")
        _inside.append(None)
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            if not _inside:
                _filters.close()


def _from_array(source: np.ndarray | Tensor) -> Image.Image:
    if isinstance(source, Tensor):
        array = source.detach().cpu().numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    else:
        array = source
    shapes = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not shapes or array.dtype != np.uint8 or 0 in array.shape:
        raise ImageError(
            f"an image in memory is {array.dtype} of shape {tuple(source.shape)}; it must be a "
            "uint8 array (H, W, 3) or tensor (3, H, W)"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _to_8_bit(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.any():
            raise ImageError("a floating-point image has no finite value")
        low = float(array.min(where=finite, initial=np.inf))
        high = float(array.max(where=finite, initial=-np.inf))
    else:
        largest = int(array.max())
        bits = next(b for b in (8, 10, 12, 14, 16, 24, 32) if largest < 1 << b)
        low, high = 0.0, float((1 << bits) - 1)
    scaled = np.empty(array.shape, np.uint8)
    for start in range(0, len(array), ROWS):  # to save memory
        # In double precision, because the range may exceed the type.
        values = np.nan_to_num(array[start : start + ROWS].astype(np.float64), nan=low,
                               posinf=low, neginf=low).clip(low, high)  # fmt: skip
        part = (values - low) / max(high - low, float(np.finfo(np.float32).tiny))
        scaled[start : start + ROWS] = part * 255 + 0.5
    return scaled
