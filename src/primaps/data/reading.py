"""One image or label map from one file, whatever its mode, with one clear sentence on failure.

Besides the formats of Pillow these are MATLAB files (``.mat``), in which Potsdam-3 comes: the image
under the key ``img``, red, green and blue first, and the label map under ``gt``.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock

import numpy as np
from jaxtyping import Integer
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from primaps.data.matlab import read_array
from primaps.data.stored import Stored
from primaps.utils.errors import InputError, PrimapsError

ORIENTATION, TURNED = 0x0112, 5
"""EXIF tag, and the values from which width and height are exchanged."""
ROWS = 256
"""Of an image that are converted to 8 bits at once."""
_lock, _inside, _filters = Lock(), list[None](), ExitStack()


class ImageError(PrimapsError, ValueError):
    """One file cannot be used; the message names it, the reason and what to do."""


def load_image(source: str | Path | Stored | Image.Image | np.ndarray | Tensor) -> Image.Image:
    """Read an image file as 8-bit RGB, upright; an image in memory is converted likewise.

    In memory are images of Pillow, arrays (H, W), (H, W, 3) or (H, W, 4), and tensors (3, H, W) of
    8 bits. Files may lie in archives or on servers.

    EXIF rotation is applied. Gray, palette and CMYK images are converted; transparency is put on
    white. Images of 16 or 32 bits are scaled from the smallest of 8, 10, 12, 14, 16, 24 or 32 bits
    that holds their largest value; images of floating point are stretched from their own minimum
    and maximum. Of several frames the first is taken, of a MATLAB file the first three channels.

    Raises:
        ImageError: the file is absent, no image, truncated, or too large.
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
            f"an image is a path, a Pillow image, an array or a tensor, not {type(source).__name__}"
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
    """Width and height of :func:`load_image`; of a file no more than the header is read, except of
    MATLAB files.

    Raises:
        ImageError: the file is absent or no image.
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
    """Width and height of an image turned as its EXIF says, without decoding it."""
    try:
        turned = image.getexif().get(ORIENTATION, 1) >= TURNED
    except Exception:  # odd EXIF is no reason to refuse the pixels
        turned = False
    return (image.height, image.width) if turned else image.size


def load_label(path: str | Path) -> Integer[np.ndarray, "h w"]:
    """Read a label map: one channel of class indices, 8 or 16 bits, a palette image, or a MATLAB
    file.

    Raises:
        ImageError: the file is absent or damaged, or is in color.
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
                "indices, so convert its colors to indices first"
            )
        return np.asarray(upright(image)).astype(np.int64)


def label_mode(path: str | Path) -> str | None:
    """The mode of a file that cannot be a label map; None if it has one channel of whole numbers.

    Raises:
        ImageError: the file is absent or no image.
    """
    with opened(path) as image:
        return None if _has_indices(image) else image.mode


def _has_indices(image: Image.Image) -> bool:
    return image.mode in ("L", "P", "1") or image.mode.startswith("I")


def read_mat(path: str | Path, key: str) -> np.ndarray:
    """One array of real numbers of a MATLAB file of version 5 (or 4), the versions before 7.3.

    Raises:
        ImageError: the file is absent, damaged, of version 7.3, or has no such array.
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
    """An image as it lies in its file, in its own mode, turned as EXIF says."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF: the pixels are whole, and stay as they lie
        return image.copy()


@contextmanager
def opened(path: str | Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """An image file, opened but not decoded; whatever goes wrong in the block is one sentence.

    Args:
        content: of the file, if it is at hand; ``path`` is what to call it then.

    Raises:
        ImageError: the message names the file and the reason.
    """
    try:
        if content is None and Path(path).exists() and not Path(path).is_file():
            raise ImageError(f"{path} is not a file")  # a pipe would be waited for
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
        raise ImageError(f"{path} needs more memory than there is; cut it into tiles") from None
    except Exception as error:  # decoders raise whatever a broken byte leads to
        raise ImageError(f"{path} is damaged ({_reason(error)}); restore or remove it") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what Pillow and NumPy remark about a file off the terminal.

    Filters of warnings are of the process, and files are read in threads: the first one in sets
    them, the last one out puts them back.
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


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _from_array(source: np.ndarray | Tensor) -> Image.Image:
    if isinstance(source, Tensor):
        array = source.detach().cpu().numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    else:
        array = source
    shapes = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not shapes or array.dtype != np.uint8 or 0 in array.shape:
        raise ImageError(
            f"an image in memory is {array.dtype} of the shape {tuple(source.shape)}; it must be "
            "uint8, an array (H, W, 3) or a tensor (3, H, W)"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _to_8_bit(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.any():
            raise ImageError("an image of floating point has no finite value")
        low = float(array.min(where=finite, initial=np.inf))
        high = float(array.max(where=finite, initial=-np.inf))
    else:
        largest = int(array.max())
        bits = next(b for b in (8, 10, 12, 14, 16, 24, 32) if largest < 1 << b)
        low, high = 0.0, float((1 << bits) - 1)
    scaled = np.empty(array.shape, np.uint8)
    for start in range(0, len(array), ROWS):  # some rows at a time, to spare memory
        # In double precision: the difference may exceed the type.
        values = np.nan_to_num(array[start : start + ROWS].astype(np.float64), nan=low,
                               posinf=low, neginf=low).clip(low, high)  # fmt: skip
        part = (values - low) / max(high - low, float(np.finfo(np.float32).tiny))
        scaled[start : start + ROWS] = part * 255 + 0.5
    return scaled
