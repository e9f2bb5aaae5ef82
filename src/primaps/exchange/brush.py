"""The run-length code of Label Studio's brush: a stream of bits of any width.

32 bits count the values, 5 bits give the width of one, four times 4 bits the widths of lengths.
Then come blocks: 1 bit (one value repeated, or as many values), 2 bits for the width of the length,
the length less one, and the value or values. A mask has four values per pixel, as RGBA has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool

from primaps.exchange.errors import MAX_PIXELS
from primaps.geometry.rle import run_lengths
from primaps.utils.errors import InputError

_WIDTHS = (3, 4, 8, 16)


def encode(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """Bytes of a mask: blocks of one value repeated.

    Examples:
        >>> encode(np.ones((1, 2), bool))
        [0, 0, 0, 8, 57, 27, 252, 255, 224]
    """
    lengths = 4 * run_lengths(mask.ravel())
    values = np.arange(len(lengths)) % 2 * 255
    # A block holds at most 2^16 values: longer runs are several.
    longest = 1 << _WIDTHS[-1]
    blocks = -(-lengths // longest)
    pieces = np.full(blocks.sum(), longest)
    ends = blocks.cumsum()[blocks > 0] - 1
    pieces[ends] = (lengths - (blocks - 1) * longest)[blocks > 0]
    values = np.repeat(values, blocks)

    choice = np.searchsorted([1 << width for width in _WIDTHS], pieces)
    width = np.array(_WIDTHS)[choice]
    # All fields of a block as one number: 1, which width, length less one, value.
    number = ((4 + choice) << width | (pieces - 1)) << 8 | values
    size = 11 + width
    head = 4 * mask.size << 21 | 7 << 16
    for i, one in enumerate(_WIDTHS):
        head |= (one - 1) << 12 - 4 * i
    number, size = np.append(head, number), np.append(53, size)
    shift = np.repeat(size.cumsum(), size) - np.arange(size.sum()) - 1
    bits = np.repeat(number, size) >> shift & 1
    return np.packbits(bits.astype(np.uint8)).tolist()


def decode(content: Any, height: int, width: int, where: str) -> Bool[np.ndarray, "h w"]:
    """A mask from bytes: where the last value of a pixel, its opacity, is not zero.

    Raises:
        InputError: the bytes are none, end too early, or give another size.
    """
    try:
        data = bytes(content)
    except (TypeError, ValueError):
        raise InputError(f"{where}: the code of a brush must be a list of bytes") from None
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    text = bits.tobytes().translate(bytes([48, 49]) + bytes(254))  # "0" and "1": int() is quick
    place = 0

    def take(size: int) -> int:
        nonlocal place
        place += size
        if place > len(text):
            raise InputError(f"{where}: the code of a brush ends too early; is it cut off?")
        return int(text[place - size : place], 2)

    count, word = take(32), take(5) + 1
    widths = [take(4) + 1 for _ in range(4)]
    if count != 4 * height * width or height * width > MAX_PIXELS:
        raise InputError(
            f"{where}: a brush has {count} values, but an image of {width} x {height} pixels "
            f"{4 * height * width}"
        )
    values = np.zeros(count, bool)
    done = 0
    while done < count:
        repeated = take(1)
        end = done + take(widths[take(2)]) + 1
        if repeated:
            values[done:end] = take(word) != 0
        else:
            take(word * (end - done))
            block = bits[place - word * (end - done) : place].reshape(-1, word).max(1)
            values[done:end] = block[: count - done]
        done = end
    return values[3::4].reshape(height, width)
