"""``labelstudio``: tasks with predictions of the brush, one region per class."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import UInt8

from primaps.exchange import brush
from primaps.exchange.classes import NOTHING, Classes, parse_color, with_colors
from primaps.exchange.cvat import parse_xml
from primaps.exchange.documents import json_array, put
from primaps.exchange.errors import need, need_size, parse_json
from primaps.exchange.labeled import LabeledImage, Read
from primaps.exchange.source import Source, safe_name
from primaps.geometry.outlines import fill, parse_points
from primaps.utils.errors import InputError

CONFIG = "labeling_config.xml"
LOCAL = "/data/local-files/?d="
"""How Label Studio addresses files below its document root."""


def write(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``tasks.json``, for images in the local storage, and the labeling configuration."""
    rows = [
        f"    <Label value={quoteattr(name)} background={quoteattr(color)}/>"
        for name, color in zip(classes.names, classes.hexadecimal, strict=True)
    ]
    config = ['<View>\n  <Image name="image" value="$image" zoom="true"/>']
    config += ['  <BrushLabels name="label" toName="image">', *rows, "  </BrushLabels>\n</View>\n"]
    put(out / CONFIG, "\n".join(config))
    with json_array(out / "tasks.json") as add:
        for i, image in enumerate(images, 1):
            size = {"original_width": image.width, "original_height": image.height}
            result = []
            for n, (k, left, top, part) in enumerate(image.regions(per).masks(), 1):
                mask = np.zeros(image.labels.shape, bool)
                mask[top : top + part.shape[0], left : left + part.shape[1]] = part
                region = {
                    "id": f"{i}-{n}",
                    "type": "brushlabels",
                    "from_name": "label",
                    "to_name": "image",
                    "image_rotation": 0,
                    **size,
                    "value": {
                        "format": "rle",
                        "rle": brush.encode(mask),
                        "brushlabels": [classes.names[k]],
                    },
                }
                result.append(region)
            # What the way back needs stands beside: a task without regions says no size.
            data = {
                "image": LOCAL + quote(_address(image)),
                "name": image.name,
                "width": image.width,
                "height": image.height,
            }
            add({"data": data, "predictions": [{"model_version": "primaps", "result": result}]})


def read(source: Source) -> Read:
    """Read the JSON export: of each task the last annotation that was not cancelled, or else the
    prediction. Brushes and polygons count; later ones lie on top."""
    found = [one for one in source.names if one.lower().endswith(".json")]
    name = found[0] if len(found) == 1 else source.find("tasks.json", "JSON file")
    where = source.where(name)
    tasks = parse_json(source.read(name), where)
    if not isinstance(tasks, list):
        raise InputError(f'{where} must be a list of tasks: export "JSON" from Label Studio')
    classes = _classes(source, tasks, where)
    index = {label: k for k, label in enumerate(classes.names)}

    def labeled() -> Iterator[tuple[str, UInt8[np.ndarray, "h w"]]]:
        for task in tasks:
            data = need(task, "data", dict, where)
            address = need(data, "image", str, where)
            file = safe_name(data["name"], where) if "name" in data else _file(address, where)
            about = f"{where}, {file}"
            results = _results(task, where)
            first = results[0] if results else {}
            wide = first.get("original_width", data.get("width"))
            high = first.get("original_height", data.get("height"))
            if wide is None or high is None:
                raise InputError(
                    f"{about} has no region and no size: add 'width' and 'height' to its data"
                )
            labels = np.full(need_size(wide, high, about), NOTHING, np.uint8)
            for result in results:
                name, mask = _region(result, labels.shape, about)
                labels[mask] = index[name]
            yield file, labels

    return Read(classes, len(tasks), labeled())


def _results(task: Any, where: str) -> list[dict[str, Any]]:
    """The regions of a task that have pixels."""
    done = [
        one
        for one in task.get("annotations") or []
        if isinstance(one, dict) and not one.get("was_cancelled")
    ]
    chosen = done or task.get("predictions") or []
    if not isinstance(chosen, list) or not chosen:
        return []
    results = need(chosen[-1], "result", list, where)
    return [
        one for one in results if need(one, "type", str, where) in ("brushlabels", "polygonlabels")
    ]


def _region(result: dict[str, Any], shape: tuple[int, ...], where: str) -> tuple[str, Any]:
    value = need(result, "value", dict, where)
    (label,) = need(value, result["type"], list, where) or [""]
    size = (result.get("original_height", shape[0]), result.get("original_width", shape[1]))
    if size != shape:
        raise InputError(f"{where} has regions for images of different sizes")
    if result["type"] == "brushlabels":
        return label, brush.decode(need(value, "rle", list, where), shape[0], shape[1], where)
    percent = parse_points(need(value, "points", list, where), where)
    return label, fill([percent / 100 * [shape[1], shape[0]]], shape[0], shape[1])


def _classes(source: Source, tasks: list[Any], where: str) -> Classes:
    """From the labeling configuration beside the tasks, or the labels that occur, sorted."""
    used = set()
    for task in tasks:
        need(task, "data", dict, where)
        for result in _results(task, where):
            labels = need(need(result, "value", dict, where), result["type"], list, where)
            if len(labels) != 1 or not isinstance(labels[0], str):
                raise InputError(f"{where} has a region with {len(labels)} labels; give it one")
            used.add(labels[0])
    if CONFIG not in source:
        return with_colors(sorted(used), [None] * len(used))
    listed = list(parse_xml(source.read(CONFIG), source.where(CONFIG)).iter("Label"))
    names = [label.get("value", "") for label in listed]
    if strange := used - set(names):
        raise InputError(f"{where} has the label {min(strange)!r}, which {CONFIG} does not list")
    return with_colors(names, [parse_color(label.get("background")) for label in listed])


def _address(image: LabeledImage) -> str:
    """Path of an image from the folder above that of the images: Label Studio takes no folder as
    storage that is the document root itself."""
    if image.file is None:
        return image.name
    folder = image.file.parents[len(Path(image.name).parts) - 1]
    return f"{folder.name}/{image.name}"


def _file(address: str, where: str) -> str:
    """Relative name of an image from its address in Label Studio."""
    parts = urlsplit(address)
    given = parse_qs(parts.query).get("d")
    if given:
        return safe_name(given[0], where)
    path = unquote(parts.path)
    uploaded = re.fullmatch(r"/data/upload/\d+/(?:[0-9a-f]{8}-)?(.+)", path)
    return safe_name(uploaded[1] if uploaded else path.lstrip("/"), where)
