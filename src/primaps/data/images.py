"""Read one image or label map from one file, in every mode.

Besides the formats of Pillow these are MATLAB files (``.mat``), the format of Potsdam-3: the image
under the key ``img`` (red, green and blue first), and the label map under ``gt``.

Pillow keeps the upper 8 bits of color images of 16 bits. :class:`DeepImage` reads all 16, because
cameras and microscopes store values of 10, 12 or 14 bits in them.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Integer, Num, UInt8
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from primaps.data.matlab import read_array
from primaps.utils.errors import InputError, PrimapsError, reason

ORIENTATION, TURNED = 0x0112, 5
"""EXIF tag of the orientation, and its minimum value that exchanges width and height."""
BITS_PER_SAMPLE, PHOTOMETRIC, PLANAR = 258, 262, 284
"""TIFF tags of the bits of a sample, of the meaning of 0, and of the order of the samples."""
ROWS = 256
"""Rows of an image that are converted to 8 bits at once."""
DEPTHS = (8, 10, 12, 14, 16, 24, 32)
"""Numbers of bits that integer images are scaled from."""
SRGB_TOLERANCE = 2
"""Maximum difference of 8-bit colors to those of sRGB, up to which a color profile is ignored."""
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


def load_image(
    source: str | Path | Stored | Image.Image | np.ndarray | Tensor, depth: int | None = None
) -> Image.Image:
    """Read an image as 8-bit sRGB, rotated by its EXIF orientation.

    Gray, palette and CMYK images are converted to RGB, and colors by the color profile of the file
    (ICC) to sRGB. Transparent pixels become white. Integers of more than 8 bits, gray or in color,
    are scaled from ``depth`` bits. Floating-point images are scaled from their minimum and maximum.
    Inverted gray (TIFF, MINISWHITE) is inverted. Only the first frame, and the first three channels
    of a MATLAB file, are read.

    Args:
        source: file, also in an archive or on a server; or image in memory: of Pillow, 8-bit array
            (H, W), (H, W, 3) or (H, W, 4), or 8-bit tensor (3, H, W).
        depth: bits of the values of an image of more than 8 bits, 8 to 32. None is the smallest of
            8, 10, 12, 14, 16, 24 or 32 that holds the maximum of this image; images of one
            collection need one depth, see :func:`primaps.data.at_depth`.

    Raises:
        ImageError: the file does not exist, is not an image, is damaged, is too large, or has a
            value of more than ``depth`` bits.
    """
    if isinstance(source, str | Path) and Path(source).suffix.lower() == ".mat":
        return Image.fromarray(_mat_image(source))
    with _source_image(source) as (image, again):
        turn = not isinstance(source, Image.Image)
        deep = _read_deep(image, again, turn)
        if deep is not None:
            return _to_srgb(deep.to_8_bit(depth))
        return _to_srgb(upright(image) if turn else image)


def value_bits(source: str | Path | Stored | Image.Image) -> tuple[int, int] | None:
    """Return the bits, one of :data:`DEPTHS`, that hold the values of an image, and those it has.

    None for 8-bit and floating-point images, of which only the header is read.

    Raises:
        ImageError: the image cannot be read.
    """
    if isinstance(source, str | Path) and Path(source).suffix.lower() == ".mat":
        return None
    with _source_image(source) as (image, again):
        deep = None if image.mode == "F" else _read_deep(image, again)
        return None if deep is None else (deep.bits, 8 * deep.values.dtype.itemsize)


def is_deep(source: str | Path | Stored | Image.Image) -> bool:
    """Return whether an image has integers of more than 8 bits, by its header.

    Raises:
        ImageError: the file does not exist or is not an image.
    """
    if isinstance(source, str | Path) and Path(source).suffix.lower() == ".mat":
        return False
    with _source_image(source) as (image, _):
        return image.mode.startswith("I") or _deep_mode(image) is not None


Reopen = Callable[[], Any]
"""Function that opens an image once more, as a context manager."""


@contextmanager
def _source_image(source: Any) -> Iterator[tuple[Image.Image, Reopen]]:
    """Open anything that :func:`load_image` reads, and give the way to open it once more."""
    if isinstance(source, np.ndarray | Tensor):
        source = _from_array(source)
    if isinstance(source, Image.Image):
        # A file that Pillow has opened but not decoded still has all its bits.
        content = _content(source) if _deep_mode(source) is not None else b""
        yield source, lambda: opened("image", content)
        return
    if not isinstance(source, str | Path | Stored):
        raise ImageError(
            f"{type(source).__name__} is not an image; give a path, a Pillow image, an array or a "
            "tensor"
        )
    stored = source.read() if isinstance(source, Stored) else None
    with opened(str(source), stored) as image:
        yield image, lambda: opened(str(source), stored)


def _content(image: Any) -> bytes:
    image.fp.seek(0)
    return bytes(image.fp.read())


# Images of more than 8 bits


@dataclass(frozen=True)
class DeepImage:
    """The values of an image of more than 8 bits per sample, unscaled and upright.

    Attributes:
        values: integers or floating-point numbers (h, w), or (h, w, channels).
        mode: mode of Pillow of the same image in 8 bits: L, LA, RGB, RGBA, RGBa or CMYK.
        declared: bits of a sample as the file declares them.
        inverted: whether 0 is white (TIFF, MINISWHITE).
        info: metadata of Pillow.
    """

    values: Num[np.ndarray, "h w ..."]
    mode: str = "L"
    declared: int = 16
    inverted: bool = False
    info: Mapping[Any, Any] = field(default_factory=dict)

    @property
    def colors(self) -> Num[np.ndarray, "h w ..."]:
        """The values without the alpha channel."""
        return self.values[..., :-1] if self.mode in ("LA", "RGBA", "RGBa") else self.values

    @property
    def bits(self) -> int:
        """Smallest number of bits in :data:`DEPTHS` that holds the values."""
        if 8 < self.declared < 16:
            return self.declared
        largest = int(self.colors.max())
        return next(bits for bits in DEPTHS if largest < 1 << bits)

    def to_8_bit(self, depth: int | None = None) -> Image.Image:
        """Scale integers from ``depth`` bits, and floating-point values from their range.

        Raises:
            ImageError: an integer has more bits, or no value is finite.
        """
        if self.values.dtype.kind == "f":
            finite = np.isfinite(self.values)
            if not finite.any():
                raise ImageError("a floating-point image has no finite value")
            low = float(self.values.min(where=finite, initial=np.inf))
            high = float(self.values.max(where=finite, initial=-np.inf))
            return self._image(_scaled(self.values, low, high, self.inverted))
        needed = self.bits
        if depth is not None and needed > depth and int(self.colors.max()) >= 1 << depth:
            raise ImageError(
                f"the value {int(self.colors.max())} needs {needed} bits, but the images are read "
                f"with {depth}; choose depth {needed} for the whole collection (a model: fit "
                "again), or scale the image"
            )
        white = float((1 << (depth or needed)) - 1)
        scaled = _scaled(self.values, 0.0, white, self.inverted)
        if self.colors is not self.values:
            # Opacity often uses all bits, whatever the colors use.
            alpha = self.values[..., -1]
            opaque = white if alpha.max() <= white else float((1 << 16) - 1)
            scaled[..., -1] = _scaled(alpha, 0.0, opaque)
        return self._image(scaled)

    def _image(self, scaled: UInt8[np.ndarray, "h w ..."]) -> Image.Image:
        if self.mode == "RGBa":  # premultiplied with the opacity: over white
            white = 255 - scaled[..., 3:].astype(np.uint16)
            scaled = (scaled[..., :3] + white).clip(0, 255).astype(np.uint8)
        clear = self.info.get("transparency")
        if self.mode == "RGB" and isinstance(clear, tuple):
            scaled[(self.values == clear).all(2)] = 255
        mode = "RGB" if self.mode == "RGBa" else self.mode
        image = Image.frombytes(mode, scaled.shape[1::-1], scaled.tobytes())
        if "icc_profile" in self.info:
            image.info["icc_profile"] = self.info["icc_profile"]
        return image


def _scaled(
    values: Num[np.ndarray, "h w ..."], low: float, high: float, inverted: bool = False
) -> UInt8[np.ndarray, "h w ..."]:
    """Scale a range of values to 0 to 255; values that are not finite become 0."""
    scaled = np.empty(values.shape, np.uint8)
    lost = high if inverted else low
    for start in range(0, len(values), ROWS):  # to save memory
        # In double precision, because the range may exceed the type.
        part = np.nan_to_num(values[start : start + ROWS].astype(np.float64), nan=lost,
                             posinf=lost, neginf=lost).clip(low, high)  # fmt: skip
        part = (part - low) / max(high - low, float(np.finfo(np.float32).tiny))
        part = part * 255 + 0.5
        scaled[start : start + ROWS] = 255 - part.astype(np.uint8) if inverted else part
    return scaled


def _read_deep(image: Image.Image, again: Reopen, turn: bool = True) -> DeepImage | None:
    """Return the values of an image of more than 8 bits; None for other images.

    Args:
        turn: rotate the image by its EXIF orientation.
    """
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(upright(image) if turn else image)
        bits = tags.get(BITS_PER_SAMPLE, (16,))
        return DeepImage(values, "L", int(bits[0]), tags.get(PHOTOMETRIC) == 0, image.info)
    raw = _deep_mode(image)
    if raw is None:
        return None
    info = dict(image.info)
    if raw == "planar":
        return DeepImage(_planar_values(image, again, turn), image.mode, info=info)
    if raw == "LA;16B":  # the four bytes of a pixel
        pixels = np.asarray(_decoded(again, "RGBA", turn)).astype(np.uint16)
        return DeepImage(pixels[..., 0::2] << 8 | pixels[..., 1::2], "LA", info=info)
    mode = "RGBa" if raw.startswith("RGBa") else image.mode
    high, low = _byte_modes(raw.replace("RGBa", "RGBA"))
    values = np.asarray(_decoded(again, high, turn)).astype(np.uint16) << 8
    values |= np.asarray(_decoded(again, low, turn))
    return DeepImage(values, mode, info=info)


def _deep_mode(image: Image.Image) -> str | None:
    """Return the raw mode in which Pillow would drop the lower 8 bits of an image, or None."""
    tile = getattr(image, "tile", None)
    if not tile:
        return None
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    if tags and max(tags.get(BITS_PER_SAMPLE, (8,))) > 8 and tags.get(PLANAR) == 2:
        return "planar" if not image.mode.startswith(("I", "F")) else None
    raw = tile[0][3]
    raw = raw[0] if isinstance(raw, tuple) and raw else raw
    deep = isinstance(raw, str) and not raw.startswith("I") and raw[-4:] in (";16B", ";16L", ";16N")
    return raw if deep else None


def _byte_modes(raw: str) -> tuple[str, str]:
    """Return the raw modes of the upper and of the lower bytes of samples of 16 bits.

    Examples:
        >>> _byte_modes("RGB;16B")
        ('RGB;16B', 'RGB;16L')
    """
    order = raw[-1]
    if order == "N":
        order = "L" if sys.byteorder == "little" else "B"
    return f"{raw[:-1]}{order}", f"{raw[:-1]}{'B' if order == 'L' else 'L'}"


def _decoded(again: Reopen, raw: str, turn: bool) -> Image.Image:
    """Decode an image with another raw mode."""
    with again() as image:
        image.tile = [_with_raw_mode(tile, raw) for tile in image.tile]
        return upright(image) if turn else image.copy()


def _with_raw_mode(tile: Any, raw: str) -> Any:
    arguments = (raw, *tile[3][1:]) if isinstance(tile[3], tuple) else raw
    changed = (*tile[:3], arguments)
    return type(tile)(*changed) if hasattr(tile, "_fields") else changed  # a tuple before 11.1


def _planar_values(image: Image.Image, again: Reopen, turn: bool) -> Num[np.ndarray, "h w c"]:
    """Read a TIFF with one plane per channel, which Pillow reads as bytes of other pixels."""
    try:
        import tifffile
    except ImportError:
        raise ImageError(
            f"{image.mode} of 16 bits in separate planes needs tifffile: pip install "
            "'primaps[slides]', or save the image with interleaved channels"
        ) from None
    turned = image.getexif().get(ORIENTATION, 1) if turn else 1
    with again() as file, tifffile.TiffFile(io.BytesIO(_content(file))) as tiff:
        page: Any = tiff.pages[0]
        values = np.moveaxis(page.asarray(), 0, -1) if page.planarconfig == 2 else page.asarray()
    values = values[..., : len(image.getbands())]
    values = values.swapaxes(0, 1) if turned >= TURNED else values
    down, right = turned in (3, 4, 7, 8), turned in (2, 3, 6, 7)
    return values[:: -1 if down else 1, :: -1 if right else 1]


# Colors


def _to_srgb(image: Image.Image) -> Image.Image:
    """Convert an 8-bit image of any mode to sRGB, by its color profile if it has one."""
    profile = image.info.get("icc_profile")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    converted = None
    if profile and image.mode in ("L", "CMYK"):
        converted = _by_profile(image, profile)
    if converted is None:
        image = image.convert("RGB")
        converted = _by_profile(image, profile) if profile else None
    image = image if converted is None else converted
    image.info.pop("icc_profile", None)  # it does not describe these pixels
    return image


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Convert to sRGB; None if the profile is that of sRGB, of other pixels, or damaged."""
    transform = _transform(profile, image.mode)
    return None if transform is None else ImageCms.applyTransform(image, transform)


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from a profile to sRGB, if it changes colors visibly."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space != {"L": "GRAY"}.get(mode, mode):
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode == "CMYK":
            return transform
        levels = np.linspace(0, 255, 9).round().astype(np.uint8)
        colors = np.stack(np.meshgrid(*[levels] * 3), -1).reshape(-1, 1, 3)
        probe = Image.fromarray(levels[:, None] if mode == "L" else colors)
        found = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int)
        same = np.abs(found - np.asarray(probe.convert("RGB"))).max() <= SRGB_TOLERANCE
        return None if same else transform
    except (ImageCms.PyCMSError, OSError, ValueError, AttributeError):
        return None


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
