"""Label Studio: tasks with predictions of the brush.

The brush uses its own run-length encoding, a stream of bits. 32 bits count the values, 5 bits
are the width of a value, four times 4 bits the widths of run lengths. Then come blocks: 1 bit (one
value repeated, or as many values as the length), 2 bits that choose the width of the length, the
length less one, and the value or values. A mask has four values per pixel, as RGBA.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import Bool

from primaps.data.images import Stored
from primaps.exchange.classes import Classes, classes_of, parse_color
from primaps.exchange.files import (
    InputFiles,
    decode_image,
    get_field,
    image_size,
    json_array,
    parse_xml,
    safe_name,
    write_file,
)
from primaps.exchange.labeled import ImageShapes, LabeledImage, Labels
from primaps.geometry.outlines import parse_points
from primaps.geometry.rle import run_lengths
from primaps.geometry.shapes import Pixels, Points, Polygon, Shape, ellipse, rectangle
from primaps.utils.errors import InputError
from primaps.utils.validation import short

CONFIG = "labeling_config.xml"
LOCAL_FILES = "/data/local-files/?d="
"""Address of files below the document root of Label Studio."""
WIDTHS = (3, 4, 8, 16)
"""Widths of run lengths in bits."""
SHAPES = ("brush", "bitmask", "polygon", "rectangle", "ellipse", "keypoint")
"""Types of regions; a type with the ending "labels" has the label of the region."""
ANSWERS = (
    *("choices", "datetime", "number", "pairwise", "ranker", "rating"),
    *("relation", "taxonomy", "textarea"),
)
"""Types of other entries of a result."""
PREDICTED = "tasks without annotations, whose last prediction was read"


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
    if isinstance(image.file, Stored):
        raise InputError(
            f"{image.file} is in an archive or on a server, but Label Studio serves the image "
            "files of a folder; unpack it"
        )
    folder = image.file.parents[len(Path(image.name).parts) - 1]
    return f"{folder.name}/{image.name}"


@dataclass(frozen=True)
class _Task:
    """A task that is read.

    Attributes:
        name: Relative name of the image.
        size: Height and width of the image.
        regions: Label and content of each region.
    """

    name: str
    size: tuple[int, int]
    regions: list[tuple[str, dict[str, Any]]]


def read(files: InputFiles) -> Labels:
    """Read the JSON export: one annotation of each task, or its prediction if it has none.

    Brushes, bitmasks, polygons, rectangles and ellipses are read; later ones lie on top. Key points
    are left out.
    """
    names = [one for one in files.names if one.lower().endswith(".json")]
    name = names[0] if len(names) == 1 else files.find("tasks.json")
    where = files.where(name)
    content = files.json(name)
    if not isinstance(content, list):
        raise InputError(f'{where} must be a list of tasks; export "JSON" from Label Studio')
    notes: Counter[str] = Counter()
    tasks = [_read_task(task, files, where, notes) for task in content]
    predicted = notes.pop(PREDICTED, 0)
    if predicted < len(tasks):
        notes[PREDICTED] += predicted
    classes = _classes(files, tasks, where)
    index = {label: k for k, label in enumerate(classes.names)}

    def images() -> Iterator[ImageShapes]:
        for task in filter(None, tasks):
            place = f"{where}, {task.name}"
            yield ImageShapes(task.name, *task.size, _classified(task, index, place))

    return Labels(classes, len(tasks), images(), +notes)


def _classified(task: _Task, index: dict[str, int], where: str) -> Iterator[tuple[int, Shape]]:
    """Yield class and shape of the regions of a task."""
    for label, region in task.regions:
        yield index[label], _shape(region, *task.size, where)


def _read_task(task: Any, files: InputFiles, where: str, notes: Counter[str]) -> _Task | None:
    """Return the regions of a task, or None if it has neither regions nor a size."""
    data = get_field(task, "data", dict, where)
    address = get_field(data, "image", str, where)
    name = safe_name(data["name"] if "name" in data else _image_name(address), where)
    place = f"{where}, {name}"
    regions = _regions(_result(task, place, notes), place, notes)
    sizes = {
        image_size(region.get("original_width"), region.get("original_height"), place)
        for _, region in regions
    }
    if len(sizes) > 1:
        raise InputError(f"{place} has regions for images of different sizes; export it again")
    if sizes:
        return _Task(name, sizes.pop(), regions)
    if "width" in data or "height" in data:
        return _Task(name, image_size(data.get("width"), data.get("height"), place), regions)
    if name in files:
        return _Task(name, files.size(name), regions)
    notes["tasks without regions and without the size of the image, left out"] += 1
    return None


def _result(task: Any, where: str, notes: Counter[str]) -> list[Any]:
    """Return the result of the ground truth, the last annotation, or the last prediction."""

    def entries(key: str) -> list[Any]:
        return [] if task.get(key) is None else get_field(task, key, list, where)

    annotations, drafts = entries("annotations"), entries("drafts")
    valid = [one for one in annotations if not _flag(one, "was_cancelled", where)]
    truth = [one for one in valid if _flag(one, "ground_truth", where)]
    if valid:
        if len(valid) > 1 and len(truth) != 1:
            notes["tasks with several annotations, of which the last one was read"] += 1
        return get_field((truth or valid)[-1], "result", list, where)
    if drafts:
        notes["tasks with only a draft, which was left out (submit it in Label Studio)"] += 1
    elif annotations:
        notes["tasks with only cancelled annotations, read without labels"] += 1
    elif predictions := entries("predictions"):
        notes[PREDICTED] += 1
        return get_field(predictions[-1], "result", list, where)
    return []


def _flag(content: Any, key: str, where: str) -> bool:
    if not isinstance(content, dict):
        raise InputError(f"{where}: an annotation must be an object; export it again")
    return bool(content.get(key))


def _regions(
    result: list[Any], where: str, notes: Counter[str]
) -> list[tuple[str, dict[str, Any]]]:
    """Return label and content of each region of a result."""
    regions: list[dict[str, Any]] = []
    labels: dict[str, Any] = {}
    images = set()
    for one in result:
        kind = get_field(one, "type", str, where)
        if kind.removesuffix("labels") in SHAPES:
            regions.append(one)
            images.add((str(one.get("to_name")), str(one.get("item_index") or 0)))
        elif kind == "labels":  # of the region with the same id
            labels[str(one.get("id"))] = one
        elif kind in ANSWERS:
            notes[f"answers of the type {kind}, which are not areas and were left out"] += 1
        else:
            raise InputError(
                f"{where} has a region of the type {short(kind)}, which is not supported; remove "
                "it or draw it with another tool"
            )
    if len(images) > 1:
        raise InputError(f"{where} has regions of several images, which is not supported")
    return [(_label(one, labels, where), one) for one in regions]


def _label(region: dict[str, Any], labels: dict[str, Any], where: str) -> str:
    """Return the label of a region, which may be in another entry with the same id."""
    own = region["type"].endswith("labels")
    entry = region if own else labels.get(str(region.get("id")), {})
    key = region["type"] if own else "labels"
    found: Any = get_field(entry, "value", dict, where).get(key) if entry else []
    count = len(found) if isinstance(found, list) else 0
    if count != 1 or not isinstance(found[0], str):
        raise InputError(f"{where}: a region must have one label, got {count}; correct it")
    return found[0]


def _classes(files: InputFiles, tasks: list[_Task | None], where: str) -> Classes:
    """Return the classes of the labeling configuration, or the labels that occur, sorted."""
    used = {label for task in filter(None, tasks) for label, _ in task.regions}
    if CONFIG not in files:
        if not used:
            raise InputError(f"{where} has no labeled regions; add {CONFIG}, or label an image")
        return classes_of(sorted(used))
    listed: dict[str, tuple[int, int, int] | None] = {}
    for label in parse_xml(files.read(CONFIG), files.where(CONFIG)).iter("Label"):
        color = parse_color(label.get("background"))
        listed.setdefault(label.get("alias") or label.get("value") or "", color)
    if unknown := used - listed.keys():
        raise InputError(f"{where}: {CONFIG} does not have the label {min(unknown)!r}; add it")
    return classes_of(list(listed), list(listed.values()))


def _image_name(address: str) -> str:
    """Return the relative name of an image from its address in Label Studio."""
    parts = urlsplit(address)
    if local := parse_qs(parts.query).get("d"):
        return local[0]
    path = unquote(parts.path)
    uploaded = re.fullmatch(r"/data/upload/\d+/(?:[0-9a-f]{8}-)?(.+)", path)
    return uploaded[1] if uploaded else path.lstrip("/")


def _shape(region: dict[str, Any], height: int, width: int, where: str) -> Shape:
    """Return the shape of a region; its coordinates are percentages of the size of the image."""
    kind = region["type"].removesuffix("labels")
    value = get_field(region, "value", dict, where)
    if region.get("image_rotation"):
        raise InputError(
            f"{where} has a region on an image that was rotated by "
            f"{short(region['image_rotation'])} degrees; undo the rotation in Label Studio"
        )
    if kind == "brush":
        if value.get("format", "rle") != "rle":
            raise InputError(
                f"{where}: the format of a brush is {short(value['format'])}; it must be 'rle'"
            )
        mask = decode(get_field(value, "rle", list, where), height, width, where)
        return Pixels(0, 0, mask)
    if kind == "bitmask":
        return Pixels(0, 0, _bitmask(value, height, width, where))
    if kind == "polygon":
        points = parse_points(get_field(value, "points", list, where), where)
        return Polygon([points / 100 * [width, height]])

    def numbers(*names: str) -> list[float]:
        """Return positions or lengths in pixels, x and y in turn."""
        content = [get_field(value, name, (int, float), where) for name in names]
        return (parse_points(content, where, 1) / 100 * [width, height]).ravel().tolist()

    x, y = numbers("x", "y")
    degrees = get_field(value, "rotation", (int, float), where) if value.get("rotation") else 0.0
    if kind == "keypoint":
        return Points(np.array([[x, y]]))
    if kind == "ellipse":
        radius_x, radius_y = numbers("radiusX", "radiusY")
        return ellipse(x, y, radius_x, radius_y, where, degrees)
    across, down = numbers("width", "height")
    return rectangle(x, y, x + across, y + down, degrees, pivot=(x, y))


def _bitmask(value: dict[str, Any], height: int, width: int, where: str) -> Bool[np.ndarray, "h w"]:
    """Return the mask of an image: its opaque pixels or, without transparency, its bright ones."""
    address = get_field(value, "imageDataURL", str, where)
    head, _, text = address.partition(",")
    try:
        if not re.fullmatch(r"data:image/[a-z]+;base64", head):
            raise ValueError
        content = base64.b64decode(text, validate=True)
    except ValueError:
        raise InputError(
            f"{where}: 'imageDataURL' of a bitmask must be data:image/png;base64,...; export it "
            "again"
        ) from None
    pixels = decode_image(content, f"a bitmask of {where}", "RGBA")
    if pixels.shape[:2] != (height, width):
        raise InputError(
            f"{where}: a bitmask has {pixels.shape[1]} x {pixels.shape[0]} pixels, but its image "
            f"{width} x {height}; export it again"
        )
    opaque: Bool[np.ndarray, "h w"] = pixels[..., 3] > 0
    return opaque if not opaque.all() else np.any(pixels[..., :3], axis=2)


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
