"""Normalization that a network expects, from the files of its image processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from primaps.utils.errors import InputError
from primaps.utils.inputs import read_json

FILES = ("preprocessor_config.json", "processor_config.json")
"""Files of an image processor; newer versions of transformers write the second one."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_KEYS = ("image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor")
LARGEST = 1e4
"""Maximum absolute value of a mean or standard deviation."""


class Normalization(NamedTuple):
    """Normalization of images in [0, 1], per channel.

    Attributes:
        mean: mean, which is subtracted.
        std: standard deviation, by which the difference is divided.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def read_normalization(folder: Path) -> Normalization | None:
    """Read the normalization in the files of an image processor; None if there are none.

    An image processor multiplies 8-bit images by ``rescale_factor`` if ``do_rescale`` is set, and
    subtracts ``image_mean`` and divides by ``image_std`` if ``do_normalize`` is set. The result
    applies to images in [0, 1].

    Raises:
        InputError: a file is not valid, or prepares images in a way that is not supported.
    """
    for path in (folder / name for name in FILES):
        if not path.is_file():
            continue
        content = read_json(path, dict[str, Any])
        nested = content.get("image_processor")
        content = nested if isinstance(nested, dict) else content
        if any(key in content for key in (*_KEYS, "do_flip_channel_order")):
            return _normalization(path, content)
    return None


def _normalization(path: Path, content: dict[str, Any]) -> Normalization:
    """Return the normalization of an image processor with these fields."""
    for flag in ("do_flip_channel_order", "do_grayscale"):
        if content.get(flag):
            kind = "BGR" if "flip" in flag else "gray"
            raise InputError(
                f"{path}: {flag} is true, but networks of {kind} images are not supported; choose "
                "another backbone"
            )
    scale = 1.0
    if content.get("do_rescale", True) is not False:
        scale = 255 * _numbers(path, "rescale_factor", content.get("rescale_factor", 1 / 255), 1)[0]
        scale = 1.0 if abs(scale - 1) < 1e-6 else scale
    else:
        scale = 255.0
    if scale <= 0:
        raise InputError(f"{path}: rescale_factor is {scale / 255}; it must be positive")
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if content.get("do_normalize", "image_mean" in content):
        mean = _numbers(path, "image_mean", content.get("image_mean"))
        std = _numbers(path, "image_std", content.get("image_std"))
        if min(std) <= 0:
            raise InputError(f"{path}: image_std is {list(std)}; it must be positive")
    if content.get("offset") or content.get("rescale_offset"):  # to [-1, 1] before normalization
        mean = tuple(one + 1 for one in mean)
    return Normalization(tuple(m / scale for m in mean), tuple(s / scale for s in std))


def _numbers(path: Path, name: str, value: Any, count: int = 3) -> tuple[float, ...]:
    """Return a field as numbers, one per channel; a single number holds for all channels."""
    numbers = value if isinstance(value, list) else [value]
    valid = all(
        isinstance(one, int | float) and not isinstance(one, bool) and abs(one) <= LARGEST
        for one in numbers
    )
    if not valid or len(numbers) not in (1, count):
        raise InputError(
            f"{path}: {name} is {value!r}; it must be {count} numbers, one per channel"
        )
    return tuple(float(one) for one in numbers) * (count // len(numbers))
