"""Label Studio: tasks with predictions of the brush.

The brush uses its own run-length encoding, a stream of bits. 32 bits count the values, 5 bits
are the width of a value, four times 4 bits the widths of run lengths. Then come blocks: 1 bit (one
value repeated, or as many values as the length), 2 bits that choose the width of the length, the
length less one, and the value or values. A mask has four values per pixel, as RGBA.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import Bool, UInt8

from primaps.exchange.classes import Classes, classes_of, parse_color
from primaps.exchange.files import (
    InputFiles,
    get_field,
    image_size,
    json_array,
    parse_xml,
    safe_name,
    write_file,
)
from primaps.exchange.labeled import LabeledImage, Labels
from primaps.geometry.outlines import fill, parse_points
from primaps.geometry.regions import NO_LABEL
from primaps.geometry.rle import run_lengths
from primaps.utils.errors import InputError

CONFIG = "labeling_config.xml"
LOCAL_FILES = "/data/local-files/?d="
"""Address of files below the document root of Label Studio."""
WIDTHS = (3, 4, 8, 16)
"""Widths of run lengths in bits."""


def write(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``tasks.json``, for images in local storage, and the labeling configuration."""
    labels = [
        f"    <Label value={quoteattr(name)} background={quoteattr(color)}/>"
        for name, color in zip(classes.names, classes.hex_colors, strict=True)
    ]
    config = ['<View>\n  <Image name="image" value="$image" zoom="true"/>']
    config += [
        '  <BrushLabels name="label" toName="image">', *labels, "  </BrushLabels>\n</View>\n",
    ]  # fmt: skip
    write_file(out / CONFIG, "\n".join(config))
    with json_array(out / "tasks.json") as add:
        for i, image in enumerate(images, 1):
            result = []
            for n, (k, left, top, box) in enumerate(image.regions(per).masks(), 1):
                mask = np.zeros(image.labels.shape, bool)
                mask[top : top + box.shape[0], left : left + box.shape[1]] = box
                brush = {"format": "rle", "rle": encode(mask), "brushlabels": [classes.names[k]]}
                region = {
                    "id": f"{i}-{n}",
                    "type": "brushlabels",
                    "from_name": "label",
                    "to_name": "image",
                    "image_rotation": 0,
                    "original_width": image.width,
                    "original_height": image.height,
                    "value": brush,
                }
                result.append(region)
            data = {
                "image": LOCAL_FILES + quote(_storage_path(image)),
                "name": image.name,
                "width": image.width,  # for tasks without regions, which have no other size
                "height": image.height,
            }
            add({"data": data, "predictions": [{"model_version": "primaps", "result": result}]})


def _storage_path(image: LabeledImage) -> str:
    """Return the path of an image from the folder above that of the images.

    Label Studio does not accept the document root itself as a storage folder.
    """
    if image.file is None:
        return image.name
    folder = image.file.parents[len(Path(image.name).parts) - 1]
    return f"{folder.name}/{image.name}"


def read(files: InputFiles) -> Labels:
    """Read the JSON export: the last annotation that was not cancelled, or else the prediction.

    Brushes and polygons are read; later ones lie on top.
    """
    names = [one for one in files.names if one.lower().endswith(".json")]
    name = names[0] if len(names) == 1 else files.find("tasks.json")
    where = files.where(name)
    tasks = files.json(name)
    if not isinstance(tasks, list):
        raise InputError(f'{where} must be a list of tasks; export "JSON" from Label Studio')
    results = [_results(task, where) for task in tasks]
    classes = _classes(files, results, where)
    index = {label: k for k, label in enumerate(classes.names)}

    def images() -> Iterator[tuple[str, UInt8[np.ndarray, "h w"]]]:
        for task, regions in zip(tasks, results, strict=True):
            data = get_field(task, "data", dict, where)
            address = get_field(data, "image", str, where)
            file = safe_name(data["name"] if "name" in data else _image_name(address), where)
            place = f"{where}, {file}"
            size = regions[0] if regions else {}
            width = size.get("original_width", data.get("width"))
            height = size.get("original_height", data.get("height"))
            labels = np.full(image_size(width, height, place), NO_LABEL, np.uint8)
            for region in regions:
                label, mask = _mask(region, labels.shape, place)
                labels[mask] = index[label]
            yield file, labels

    return Labels(classes, len(tasks), images())


def _results(task: Any, where: str) -> list[dict[str, Any]]:
    """Return the regions of a task that have pixels."""
    get_field(task, "data", dict, where)
    annotations = [
        one
        for one in task.get("annotations") or []
        if isinstance(one, dict) and not one.get("was_cancelled")
    ]
    chosen = annotations or task.get("predictions") or []
    if not isinstance(chosen, list) or not chosen:
        return []
    return [
        one
        for one in get_field(chosen[-1], "result", list, where)
        if get_field(one, "type", str, where) in ("brushlabels", "polygonlabels")
    ]


def _classes(files: InputFiles, results: list[list[dict[str, Any]]], where: str) -> Classes:
    """Return the classes of the labeling configuration, or the labels that occur, sorted."""
    used = set()
    for region in (region for regions in results for region in regions):
        labels = get_field(get_field(region, "value", dict, where), region["type"], list, where)
        if len(labels) != 1 or not isinstance(labels[0], str):
            raise InputError(
                f"{where}: a region must have one label, got {len(labels)}; correct it"
            )
        used.add(labels[0])
    if CONFIG not in files:
        return classes_of(sorted(used))
    listed = list(parse_xml(files.read(CONFIG), files.where(CONFIG)).iter("Label"))
    names = [label.get("value", "") for label in listed]
    if unknown := used - set(names):
        raise InputError(f"{where}: {CONFIG} does not have the label {min(unknown)!r}; add it")
    return classes_of(names, [parse_color(label.get("background")) for label in listed])


def _image_name(address: str) -> str:
    """Return the relative name of an image from its address in Label Studio."""
    parts = urlsplit(address)
    if local := parse_qs(parts.query).get("d"):
        return local[0]
    path = unquote(parts.path)
    uploaded = re.fullmatch(r"/data/upload/\d+/(?:[0-9a-f]{8}-)?(.+)", path)
    return uploaded[1] if uploaded else path.lstrip("/")


def _mask(
    region: dict[str, Any], shape: tuple[int, ...], where: str
) -> tuple[str, Bool[np.ndarray, "h w"]]:
    """Return the label and the mask of a region."""
    height, width = shape
    size = (region.get("original_height", height), region.get("original_width", width))
    if size != shape:
        raise InputError(f"{where} has regions for images of different sizes; export it again")
    value = region["value"]
    (label,) = value[region["type"]]
    if region["type"] == "brushlabels":
        return label, decode(get_field(value, "rle", list, where), height, width, where)
    percent = parse_points(get_field(value, "points", list, where), where)
    return label, fill([percent / 100 * [width, height]], height, width)


def encode(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """Return the bytes of the brush of a mask, in blocks of one repeated value.

    Examples:
        >>> encode(np.ones((1, 2), bool))
        [0, 0, 0, 8, 57, 27, 252, 255, 224]
    """
    lengths = 4 * run_lengths(mask.ravel())
    values = np.arange(len(lengths)) % 2 * 255
    # A block holds at most 2^16 values, so longer runs are split.
    longest = 1 << WIDTHS[-1]
    blocks = -(-lengths // longest)
    pieces = np.full(blocks.sum(), longest)
    pieces[blocks.cumsum()[blocks > 0] - 1] = (lengths - (blocks - 1) * longest)[blocks > 0]
    values = np.repeat(values, blocks)

    choice = np.searchsorted([1 << width for width in WIDTHS], pieces)
    width = np.array(WIDTHS)[choice]
    # All fields of a block in one number: 1, which width, length less one, value.
    number = ((4 + choice) << width | (pieces - 1)) << 8 | values
    head = 4 * mask.size << 21 | 7 << 16
    for i, one in enumerate(WIDTHS):
        head |= (one - 1) << 12 - 4 * i
    number, size = np.append(head, number), np.append(53, 11 + width)
    shift = np.repeat(size.cumsum(), size) - np.arange(size.sum()) - 1
    bits = np.repeat(number, size) >> shift & 1
    return np.packbits(bits.astype(np.uint8)).tolist()


def decode(content: Any, height: int, width: int, where: str) -> Bool[np.ndarray, "h w"]:
    """Return the mask of the bytes of a brush: pixels whose opacity is not zero.

    Args:
        content: List of bytes. Anything else is rejected.
        height: Height of the image, checked by the caller.
        width: Width of the image.
        where: File and image, for error messages.

    Raises:
        InputError: The content is not bytes, is cut off, or has another number of pixels.
    """
    try:
        data = bytes(content)
    except (TypeError, ValueError):
        raise InputError(
            f"{where}: the run lengths of a brush must be bytes; export it again"
        ) from None
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    text = bits.tobytes().translate(bytes([48, 49]) + bytes(254))  # "0" and "1" for int()
    position = 0

    def take(size: int) -> int:
        nonlocal position
        position += size
        if position > len(text):
            raise InputError(f"{where}: the run lengths of a brush end early; is the file cut off?")
        return int(text[position - size : position], 2)

    count, value_width = take(32), take(5) + 1
    widths = [take(4) + 1 for _ in range(4)]
    if count != 4 * height * width:
        raise InputError(
            f"{where}: a brush has {count} values, but an image of {width} x {height} pixels has "
            f"{4 * height * width}; export it again"
        )
    values = np.zeros(count, bool)
    done = 0
    while done < count:
        repeated = take(1)
        end = done + take(widths[take(2)]) + 1
        if repeated:
            values[done:end] = take(value_width) != 0
        else:
            start = position
            take(value_width * (end - done))
            block = bits[start:position].reshape(-1, value_width).max(1)
            values[done:end] = block[: count - done]
        done = end
    return values[3::4].reshape(height, width)
