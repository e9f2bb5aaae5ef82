"""Colors of scene files: from stored samples to gray or RGB.

TIFF declares what its samples mean by the tag PhotometricInterpretation. Gray whose zero is white,
samples of 1 to 7 bits, palettes, CMYK, YCbCr, CIELAB and complex numbers are converted here, by the
same functions for rasterio and tifffile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from primaps.scenes.source import SceneError

BITS, COMPRESSION, PHOTOMETRIC = 258, 259, 262
INK_SET, COEFFICIENTS, SUBSAMPLING, BLACK_WHITE = 332, 529, 530, 532
COLOR_TAGS = frozenset(
    (BITS, COMPRESSION, PHOTOMETRIC, INK_SET, COEFFICIENTS, SUBSAMPLING, BLACK_WHITE)
)
"""TIFF tags that the colors depend on."""
MINISWHITE, PALETTE, CMYK, YCBCR, CIELAB, ICCLAB = 0, 3, 5, 6, 8, 9
"""Values of PhotometricInterpretation that are converted."""
PLAIN = frozenset((1, 2, 4, 34892))
"""Values whose samples are gray or RGB: MINISBLACK, RGB, transparency mask and LinearRaw."""
NOT_SUPPORTED = {10: "ITULAB", 32803: "a color filter array", 32844: "LogL", 32845: "LogLuv"}
APERIO_YCBCR = 33003
"""JPEG 2000 of Aperio scanners whose samples are YCbCr, whatever PhotometricInterpretation says."""
CONVERTING = frozenset((6, 7, 22610, 33007, 34892, 34934, 50001, 50002, 52546))
"""Compressions whose decoders return RGB: JPEG, JPEG XR, WebP and JPEG XL."""
LUMA = (0.299, 0.587, 0.114)
"""Default of YCbCrCoefficients: red, green and blue in the luminance."""
VIDEO_8 = (0, 255, 128, 255, 128, 255)
"""Default of ReferenceBlackWhite with 8 bits: black and white of Y, Cb and Cr."""
WHITE_D50 = (0.9642, 1.0, 0.8249)
"""White point of CIELAB in TIFF, as XYZ."""
XYZ_TO_RGB = np.array(
    [[3.1338561, -1.6168667, -0.4906146],
     [-0.9787684, 1.9161415, 0.0334540],
     [0.0719453, -0.2289914, 1.4052427]], np.float32,
)  # fmt: skip
"""From XYZ relative to D50 to linear sRGB, with the white point adapted (Bradford)."""

Tags = Mapping[int, tuple[float, ...]]
"""Values of TIFF tags by their codes."""
Convert = Callable[[Shaped[np.ndarray, "bands h w"]], Shaped[np.ndarray, "bands h w"]]


@dataclass(frozen=True)
class Coloring:
    """How the stored samples of a file become gray or RGB.

    Attributes:
        convert: function from stored samples to gray or RGB.
        bands: bands, counted from 1, that are converted to RGB together; None if each band is
            converted on its own.
        eight_bit: whether the result is 8-bit colors; None if it has the type of the samples.
        factor, offset: a sample ``s`` becomes ``factor * s + offset``; this converts the limits of
            a stretch, which are given for samples.
        linear: whether ``factor`` and ``offset`` describe the conversion.
        work_bytes: bytes per pixel that the conversion needs, besides the samples.
    """

    convert: Convert = lambda samples: samples
    bands: tuple[int, ...] | None = None
    eight_bit: bool | None = None
    factor: float = 1.0
    offset: float = 0.0
    linear: bool = True
    work_bytes: int = 0


def tiff_coloring(path: Path, tags: Tags, dtype: np.dtype, count: int) -> Coloring:
    """Return the conversion of a TIFF, except of palettes.

    Args:
        tags: values of :data:`COLOR_TAGS`; missing ones have the defaults of TIFF.
        dtype: type of the samples in memory.
        count: number of bands.

    Raises:
        SceneError: the color space is not supported.
    """
    photometric = int(tags.get(PHOTOMETRIC, (1,))[0])
    compression = int(tags.get(COMPRESSION, (1,))[0])
    bits = sorted({int(each) for each in tags.get(BITS, ())})
    if len(bits) > 1:
        raise SceneError(
            f"{path} has bands of {bits[0]} and {bits[-1]} bits; save it with one number of bits, "
            f"such as: gdal_translate -ot Byte {path.name} new.tif"
        )
    if compression == APERIO_YCBCR or (photometric == YCBCR and compression not in CONVERTING):
        return ycbcr(path, tags, dtype)
    if photometric == CMYK:
        inks = int(tags.get(INK_SET, (1,))[0])
        if inks != 1 or count < 4:
            raise SceneError(
                f"{path} has {count} inks that are not cyan, magenta, yellow and black; convert it "
                "to RGB"
            )
        return cmyk(path, dtype)
    if photometric in (CIELAB, ICCLAB):
        return cielab(path, dtype, photometric == ICCLAB)
    if photometric == YCBCR:
        return Coloring(bands=(1, 2, 3))
    if photometric in NOT_SUPPORTED:
        raise SceneError(
            f"{path} is stored as {NOT_SUPPORTED[photometric]}, which is not supported; convert it "
            "to RGB"
        )
    return gray(dtype, bits[0] if bits else None, photometric == MINISWHITE)


def gray(dtype: np.dtype, bits: int | None, inverted: bool = False) -> Coloring:
    """Return the conversion of bands that are gray, or red, green and blue.

    Samples of less than 8 bits are scaled to 0 to 255. Complex samples become amplitudes.

    Args:
        dtype: type of the samples in memory.
        bits: bits per sample in the file; None is the size of ``dtype``.
        inverted: whether zero is white (MINISWHITE).

    Examples:
        >>> gray(np.dtype("uint8"), 4, inverted=True).convert(np.array([[[0, 1, 15]]])).tolist()
        [[[255, 238, 0]]]
        >>> gray(np.dtype("complex64"), None).convert(np.array([[[3 + 4j]]])).tolist()
        [[[5.0]]]
    """
    if dtype.kind == "c":
        plain = Coloring(lambda samples: np.abs(samples).astype(np.float32), eight_bit=False)
        if not inverted:
            return plain
        return replace(plain, convert=lambda samples: -plain.convert(samples), factor=-1.0)
    if dtype.kind == "b" or (dtype == np.uint8 and bits is not None and bits < 8):
        largest = 1 if dtype.kind == "b" else (1 << (bits or 1)) - 1
        table = _scaled_table(largest)
        factor = 255 / largest
        if inverted:
            table, factor = 255 - table, -factor
        offset = 255.0 if inverted else 0.0
        return Coloring(lambda samples: table[samples.astype(np.uint8)], None, True, factor, offset)
    if not inverted:
        return Coloring()
    if dtype.kind == "u":
        top = (1 << bits) - 1 if bits and bits < 8 * dtype.itemsize else int(np.iinfo(dtype).max)
        white = dtype.type(top)
        return Coloring(lambda samples: white - np.minimum(samples, white), None, None, -1.0, top)
    # Signed integers and floats have no largest value that is known; the stretch finds the limits.
    wide = np.float64 if dtype.itemsize > 4 or dtype == np.int32 else np.float32
    return Coloring(lambda samples: np.negative(samples, dtype=wide), factor=-1.0, eight_bit=False)


def _scaled_table(largest: int) -> UInt8[np.ndarray, " 256"]:
    """Return 0 to 255 for the samples 0 to ``largest``."""
    return (np.arange(256).clip(0, largest) * 255 / largest + 0.5).astype(np.uint8)


def palette(table: UInt8[np.ndarray, "3 n"]) -> Coloring:
    """Return the conversion of palette indices; indices without a color are black."""

    def convert(samples: np.ndarray) -> np.ndarray:
        indices = samples[0].astype(np.int64)
        colors = table[:, indices.clip(0, table.shape[1] - 1)]
        return np.where((indices >= 0) & (indices < table.shape[1]), colors, 0)

    return Coloring(convert, None, True, linear=False, work_bytes=16)


def cmyk(path: Path, dtype: np.dtype) -> Coloring:
    """Return the conversion of cyan, magenta, yellow and black to RGB.

    Raises:
        SceneError: the samples are neither 8 nor 16 bits.
    """
    largest = _largest(path, dtype, "CMYK")

    def convert(samples: np.ndarray) -> UInt8[np.ndarray, "3 h w"]:
        paper = 1 - samples.astype(np.float32) / largest
        return (paper[:3] * paper[3] * 255 + 0.5).astype(np.uint8)

    return Coloring(convert, (1, 2, 3, 4), True, linear=False, work_bytes=32)


def ycbcr(path: Path, tags: Tags, dtype: np.dtype) -> Coloring:
    """Return the conversion of luminance and two color differences to RGB (TIFF 6.0, section 21).

    Raises:
        SceneError: the samples are neither 8 nor 16 bits, or the tags have impossible values.
    """
    largest = _largest(path, dtype, "YCbCr")
    red, green, blue = tags.get(COEFFICIENTS) or LUMA
    half = (largest + 1) // 2
    limits = tags.get(BLACK_WHITE) or VIDEO_8
    if limits == VIDEO_8:  # some programs write these for 16 bits, too
        limits = (0, largest, half, largest, half, largest)
    black, white = np.array(limits, np.float32).reshape(3, 2).T
    if not green > 0 or len(limits) != 6 or not (white > black).all():
        raise SceneError(f"{path} has impossible YCbCr tags; convert it to RGB")
    scale = (np.array([largest, half - 1, half - 1]) / (white - black)).astype(np.float32)

    def convert(samples: np.ndarray) -> UInt8[np.ndarray, "3 h w"]:
        levels = (samples.astype(np.float32) - black[:, None, None]) * scale[:, None, None]
        luma = levels[0]
        out = np.empty((3, *luma.shape), np.float32)
        out[0] = luma + (2 - 2 * red) * levels[2]
        out[2] = luma + (2 - 2 * blue) * levels[1]
        out[1] = (luma - blue * out[2] - red * out[0]) / green
        return (out * (255 / largest) + 0.5).clip(0, 255).astype(np.uint8)

    return Coloring(convert, (1, 2, 3), True, linear=False, work_bytes=32)


def cielab(path: Path, dtype: np.dtype, icc: bool = False) -> Coloring:
    """Return the conversion of CIELAB with the white point D50 to sRGB.

    Args:
        path: the file, for messages.
        dtype: type of the samples.
        icc: whether a* and b* have an offset of one half (ICCLAB) instead of a sign.

    Raises:
        SceneError: the samples are neither 8 nor 16 bits.
    """
    largest = _largest(path, dtype, "CIELAB")
    unit, signed = (largest + 1) // 256, np.dtype(f"int{8 * dtype.itemsize}")

    def convert(samples: np.ndarray) -> UInt8[np.ndarray, "3 h w"]:
        light = samples[0].astype(np.float32) * (100 / largest)
        if icc:
            chroma = samples[1:].astype(np.float32) / unit - 128
        else:
            chroma = np.ascontiguousarray(samples[1:]).view(signed).astype(np.float32) / unit
        return lab_to_rgb(light, chroma)

    return Coloring(convert, (1, 2, 3), True, linear=False, work_bytes=48)


def lab_to_rgb(
    light: Float[np.ndarray, "h w"], chroma: Float[np.ndarray, "2 h w"]
) -> UInt8[np.ndarray, "3 h w"]:
    """Convert L* of 0 to 100, and a* and b* of -128 to 127, to 8-bit sRGB.

    Examples:
        >>> light, chroma = np.array([[0.0, 53.585, 100.0]]), np.zeros((2, 1, 3))
        >>> lab_to_rgb(light, chroma)[:, 0].T.tolist()
        [[0, 0, 0], [128, 128, 128], [255, 255, 255]]
    """
    y = (light + 16) / 116
    cubes = np.stack([y + chroma[0] / 500, y, y - chroma[1] / 200]).astype(np.float32)
    xyz = np.where(cubes > 6 / 29, cubes**3, 3 * (6 / 29) ** 2 * (cubes - 4 / 29))
    xyz *= np.array(WHITE_D50, np.float32)[:, None, None]
    linear = np.einsum("ij,jhw->ihw", XYZ_TO_RGB, xyz).clip(0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (curved * 255 + 0.5).clip(0, 255).astype(np.uint8)


def color_table(colormap: Sequence[Sequence[int]]) -> UInt8[np.ndarray, "3 n"]:
    """Return 8-bit colors of the 16-bit ColorMap of a TIFF; some programs write 8 bits there."""
    table = np.asarray(colormap)
    return (table >> 8 if table.max() > 255 else table).astype(np.uint8)


def _largest(path: Path, dtype: np.dtype, space: str) -> int:
    if dtype not in (np.uint8, np.uint16):
        raise SceneError(
            f"{path} has {space} samples of the type {dtype}, which is not supported; convert it "
            "to RGB"
        )
    return int(np.iinfo(dtype).max)
