"""Pascal VOC and CVAT's Segmentation mask 1.1: palette PNGs, image lists and ``labelmap.txt``."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from primaps.exchange.classes import Classes, classes_of, distinct_colors
from primaps.exchange.files import InputFiles, add_to_zip, png, write_file
from primaps.exchange.labeled import ImageShapes, LabeledImage, Labels, label_map_image
from primaps.geometry.regions import NO_LABEL
from primaps.utils.errors import InputError

BACKGROUND, LABELMAP = "background", "labelmap.txt"
BLACK, VOID = (0, 0, 0), (224, 224, 192)
"""Colors without a label; VOID is the outline of objects in the original data set."""
FOLDER, OBJECTS = "SegmentationClass", "SegmentationObject"


def write(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write the folders of a VOC devkit; class k is the value k, and 255 (black) is no label."""
    colors = distinct_colors(classes.colors)
    labelmap = _labelmap((*classes.names, BACKGROUND), [*colors.tolist(), BLACK])
    write_file(out / LABELMAP, labelmap)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(classes)] = colors
    lists: dict[str, list[str]] = {}
    for image in images:
        write_file(out / FOLDER / f"{image.key}.png", png(image.labels, palette))
        write_file(out / OBJECTS / f"{image.key}.png", _objects(image))
        image.copy_to(out / "JPEGImages" / image.copy_name)
        lists.setdefault(image.split or "train", []).append(image.key)
    for name, keys in lists.items():
        write_file(out / "ImageSets" / "Segmentation" / f"{name}.txt", "\n".join(keys) + "\n")


def write_cvat(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``masks.zip``; class k is the value k + 1, and 0 (black) is the background."""
    colors = np.concatenate([np.array([BLACK], np.uint8), distinct_colors(classes.colors)])
    labelmap = _labelmap((BACKGROUND, *classes.names), colors.tolist())
    keys = []
    with zipfile.ZipFile(out / "masks.zip", "w") as archive:
        add_to_zip(archive, LABELMAP, labelmap.encode())
        for image in images:
            values = image.labels + np.uint8(1)  # 255 becomes 0
            add_to_zip(archive, f"{FOLDER}/{image.key}.png", png(values, colors))
            add_to_zip(archive, f"{OBJECTS}/{image.key}.png", _objects(image))
            keys.append(image.key)
        content = "".join(f"{key}\n" for key in keys)
        add_to_zip(archive, "ImageSets/Segmentation/default.txt", content.encode())


def read(files: InputFiles) -> Labels:
    """Read the PNGs of ``SegmentationClass`` by their colors, which ``labelmap.txt`` declares.

    Black, the color of ``background``, and VOC's void color are no label.
    """
    name = files.find(LABELMAP)
    colors = _read_labelmap(files.read(name), files.where(name))
    names = [label for label in colors if label != BACKGROUND]
    classes = classes_of(names, [colors[label] for label in names])
    values = {colors.get(BACKGROUND, BLACK): NO_LABEL, VOID: NO_LABEL, BLACK: NO_LABEL}
    values |= {colors[label]: k for k, label in enumerate(names)}
    codes = np.array(list(values)) @ np.array([1 << 16, 1 << 8, 1])
    order = codes.argsort()
    codes, table = codes[order], np.array(list(values.values()), np.uint8)[order]
    base = name[: -len(LABELMAP)] + FOLDER + "/"
    pngs = [one for one in files.names if one.startswith(base) and one.lower().endswith(".png")]

    def images() -> Iterator[ImageShapes]:
        for path in pngs:
            found = files.image(path, "RGB").astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
            index = np.searchsorted(codes, found).clip(0, len(codes) - 1)
            unknown = codes[index] != found
            if unknown.any():
                code = int(found[unknown][0])
                raise InputError(
                    f"{files.where(path)}: {LABELMAP} does not declare the color {code >> 16},"
                    f"{code >> 8 & 255},{code & 255}; add it"
                )
            yield label_map_image(path[len(base) :], table[index])

    return Labels(classes, len(pngs), images())


def _labelmap(names: Iterable[str], colors: Iterable[Iterable[int]]) -> str:
    rows = ["# label:color_rgb:parts:actions"]
    for name, color in zip(names, colors, strict=True):
        if ":" in name or name.startswith("#"):
            raise InputError(
                f"the class name {name!r} has ':' or a leading '#', which {LABELMAP} cannot hold; "
                "rename it"
            )
        if any(row.startswith(f"{name}:") for row in rows):
            raise InputError(
                "the class name 'background' stands for pixels without a label in this format; "
                "rename it"
            )
        rows.append(f"{name}:{','.join(map(str, color))}::")
    return "\n".join(rows) + "\n"


def _read_labelmap(content: bytes, where: str) -> dict[str, tuple[int, ...]]:
    """Return the color of each label."""
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
        raise InputError(
            f"{where} must have a line name:red,green,blue:: for each class; export it again"
        ) from None
    return colors


def instance_colors() -> UInt8[np.ndarray, "256 3"]:
    """Return VOC's palette: bits of the number go to red, green, blue in turn, high bits first.

    Examples:
        >>> instance_colors()[:5].tolist()
        [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    """
    number = np.arange(256)[:, None]
    channel = np.arange(3)
    bits = [(number >> (3 * i + channel) & 1) << (7 - i) for i in range(3)]
    return np.sum(bits, 0).astype(np.uint8)


def _objects(image: LabeledImage) -> bytes:
    """Return a PNG with each class as one object, and no object where there is no label.

    Without these files CVAT takes the background for a label and rejects the upload, because its
    task has no such label.
    """
    return png(image.labels + np.uint8(1), instance_colors())  # 255 becomes 0
