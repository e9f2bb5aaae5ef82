"""``voc`` and ``cvat-mask``: PNGs with a palette, a list of images and ``labelmap.txt``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from primaps.exchange.classes import NOTHING, Classes, distinct_colors, with_colors
from primaps.exchange.documents import png, put, zip_file
from primaps.exchange.labeled import LabeledImage, Read
from primaps.exchange.map_places import copy, subset
from primaps.exchange.source import Source
from primaps.utils.errors import InputError

BACKGROUND = "background"
BLACK = [0, 0, 0]
FOLDER, OBJECTS = "SegmentationClass", "SegmentationObject"


def write(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write the folders of a VOC devkit. In a PNG class k is k, and 255, in black, is no label."""
    colors = distinct_colors(classes.colors)
    _check_names(classes)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(classes)] = colors
    lists: dict[str, list[str]] = {}
    for image in images:
        put(out / FOLDER / f"{image.key}.png", png(image.labels, palette))
        put(out / OBJECTS / f"{image.key}.png", _objects(image))
        copy(image, out / "JPEGImages" / image.place)
        lists.setdefault(subset(image.key) or "train", []).append(image.key)
    for name, keys in lists.items():
        put(out / "ImageSets" / "Segmentation" / f"{name}.txt", "\n".join(keys) + "\n")
    put(out / "labelmap.txt", _labelmap([*classes.names, BACKGROUND], [*colors.tolist(), BLACK]))


def write_cvat(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``masks.zip``. In a PNG class k is k + 1, and 0, in black, is the background."""
    _check_names(classes)
    colors = np.concatenate([np.array([BLACK], np.uint8), distinct_colors(classes.colors)])
    keys = []
    with zip_file(out / "masks.zip") as packed:
        packed.add(
            "labelmap.txt", _labelmap([BACKGROUND, *classes.names], colors.tolist()).encode()
        )
        for image in images:
            shifted = image.labels + np.uint8(1)  # 255 becomes 0
            packed.add(f"{FOLDER}/{image.key}.png", png(shifted, colors))
            packed.add(f"{OBJECTS}/{image.key}.png", _objects(image))
            keys.append(image.key)
        content = "".join(f"{key}\n" for key in keys)
        packed.add("ImageSets/Segmentation/default.txt", content.encode())


def read(source: Source) -> Read:
    """Read the PNGs of ``SegmentationClass`` by their colors, which ``labelmap.txt`` declares.

    What is black, of the color of ``background`` or of VOC's void is no label.
    """
    name = source.find("labelmap.txt", "labelmap.txt")
    where = source.where(name)
    content = source.read(name)
    colors: dict[str, tuple[int, ...]] = {}
    try:
        for line in content.decode("utf-8-sig").splitlines():
            if line.strip() and not line.startswith("#"):
                label, color, *_ = line.strip().split(":")
                red, green, blue = (int(one) for one in color.split(","))
                if label in colors or not all(0 <= one < 256 for one in (red, green, blue)):
                    raise ValueError
                colors[label] = (red, green, blue)
    except ValueError:
        raise InputError(f"{where} must have lines name:red,green,blue:: of classes") from None
    names = [label for label in colors if label != BACKGROUND]
    classes = with_colors(names, [colors[label] for label in names])
    black, void = (0, 0, 0), (224, 224, 192)
    values = {colors.get(BACKGROUND, black): NOTHING, void: NOTHING, black: NOTHING}
    values |= {colors[label]: k for k, label in enumerate(names)}
    codes = np.array([_code(color) for color in values])
    order = codes.argsort()
    codes, table = codes[order], np.array(list(values.values()), np.uint8)[order]
    base = name[: -len("labelmap.txt")] + FOLDER + "/"
    files = [one for one in source.names if one.startswith(base) and one.lower().endswith(".png")]

    def labeled() -> Iterator[tuple[str, UInt8[np.ndarray, "h w"]]]:
        for file in files:
            found = source.picture(file, "RGB").astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
            place = np.searchsorted(codes, found).clip(0, len(codes) - 1)
            strange = codes[place] != found
            if strange.any():
                code = int(found[strange][0])
                raise InputError(
                    f"{source.where(file)} has the color {code >> 16},{code >> 8 & 255},"
                    f"{code & 255}, which labelmap.txt does not declare"
                )
            yield file[len(base) :], table[place]

    return Read(classes, len(files), labeled())


def instance_colors() -> UInt8[np.ndarray, "256 3"]:
    """The colors that VOC gives to numbers: their bits in turn to red, green and blue, high first.

    Examples:
        >>> instance_colors()[:5].tolist()
        [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    """
    number = np.arange(256)[:, None]
    channel = np.arange(3)
    bits = [(number >> (3 * i + channel) & 1) << (7 - i) for i in range(3)]
    return np.sum(bits, 0).astype(np.uint8)


def _objects(image: LabeledImage) -> bytes:
    """Each class as one object, what has no label as none.

    CVAT skips what is no object. Without these files it takes the background for a label, and
    refuses the whole upload because its task has none of this name.
    """
    return png(image.labels + np.uint8(1), instance_colors())  # 255 becomes 0


def _check_names(classes: Classes) -> None:
    for name in classes.names:
        if name == BACKGROUND:
            raise InputError(
                "a class is named 'background', which stands for pixels without a label in this "
                "format: give it another name"
            )
        if ":" in name or name.startswith("#"):
            raise InputError(
                f"the class {name!r} cannot be written to labelmap.txt, where ':' and '#' have a "
                "meaning of their own: give it another name"
            )


def _labelmap(names: list[str], colors: list[list[int]]) -> str:
    rows = [
        f"{name}:{red},{green},{blue}::"
        for name, (red, green, blue) in zip(names, colors, strict=True)
    ]
    return "\n".join(["# label:color_rgb:parts:actions", *rows]) + "\n"


def _code(color: tuple[int, ...]) -> int:
    return (color[0] << 16) + (color[1] << 8) + color[2]
