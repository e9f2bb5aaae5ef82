"""CVAT for images 1.1: an XML file with masks as run lengths in their bounding boxes."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from jaxtyping import UInt8

from primaps.exchange.classes import Classes, classes_of, distinct_colors, parse_color
from primaps.exchange.files import InputFiles, image_size, parse_xml, safe_name, write_file
from primaps.exchange.labeled import LabeledImage, Labels
from primaps.geometry.outlines import paint, parse_points
from primaps.geometry.regions import NO_LABEL
from primaps.geometry.rle import run_lengths, set_positions
from primaps.utils.errors import InputError

WITHOUT_PIXELS = ("tag", "attribute")


def write(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``annotations.xml`` and ``labels.json``, the labels of the task to create."""
    colors = Classes(classes.names, distinct_colors(classes.colors)).hex_colors
    pairs = list(zip(classes.names, colors, strict=True))
    labels = [
        {"name": name, "color": color, "type": "any", "attributes": []} for name, color in pairs
    ]
    write_file(out / "labels.json", json.dumps(labels, ensure_ascii=False, indent=1) + "\n")
    with (out / "annotations.xml").open("w", encoding="utf-8", newline="\n") as file:
        file.write(
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
            "<meta><task><labels>\n"
        )
        for name, color in pairs:
            text = f"<name>{escape(name)}</name><color>{color}</color><type>any</type>"
            file.write(f"<label>{text}<attributes></attributes></label>\n")
        file.write("</labels></task></meta>\n")
        for i, image in enumerate(images):
            size = f'width="{image.width}" height="{image.height}"'
            file.write(f'<image id="{i}" name={quoteattr(image.name)} {size}>\n')
            for k, left, top, mask in image.regions(per).masks():
                lengths = ", ".join(map(str, run_lengths(mask.ravel()).tolist()))
                file.write(
                    f'<mask label={quoteattr(classes.names[k])} source="auto" occluded="0" '
                    f'rle="{lengths}" left="{left}" top="{top}" width="{mask.shape[1]}" '
                    f'height="{mask.shape[0]}" z_order="0"></mask>\n'
                )
            file.write("</image>\n")
        file.write("</annotations>\n")


def read(files: InputFiles) -> Labels:
    """Read masks and polygons; those with a higher ``z_order`` lie on top."""
    name = files.find(".xml")
    where = files.where(name)
    root = parse_xml(files.read(name), where)
    if root.find("track") is not None:
        raise InputError(f'{where} has video tracks; export "CVAT for images 1.1"')
    listed = root.findall("meta//labels/label")
    if root.tag != "annotations" or not listed:
        raise InputError(f'{where} has no <labels> of CVAT; export "CVAT for images 1.1"')
    names = [label.findtext("name") or "" for label in listed]
    classes = classes_of(names, [parse_color(label.findtext("color")) for label in listed])
    index = {name: k for k, name in enumerate(names)}

    def images() -> Iterator[tuple[str, UInt8[np.ndarray, "h w"]]]:
        for image in root.findall("image"):
            file = safe_name(image.get("name"), where)
            place = f"{where}, {file}"
            size = image_size(image.get("width"), image.get("height"), place)
            labels = np.full(size, NO_LABEL, np.uint8)
            shapes = [shape for shape in image if shape.tag not in WITHOUT_PIXELS]
            for shape in sorted(shapes, key=lambda one: _number(one, "z_order", place)):
                if (label := shape.get("label", "")) not in index:
                    raise InputError(f"{place}: <labels> does not have the label {label!r}; add it")
                _paint(labels, shape, index[label], place)
            yield file, labels
            image.clear()

    return Labels(classes, len(root.findall("image")), images())


def _paint(labels: UInt8[np.ndarray, "h w"], shape: ET.Element, k: int, where: str) -> None:
    if shape.tag == "mask":
        left, top, width, height = (
            _number(shape, name, where) for name in ("left", "top", "width", "height")
        )
        inside = left + width <= labels.shape[1] and top + height <= labels.shape[0]
        if min(left, top) < 0 or min(width, height) < 1 or not inside:
            raise InputError(f"{where} has a mask outside of the image; redraw it")
        try:
            lengths = [int(one) for one in (shape.get("rle") or "").split(",")]
        except ValueError:
            raise InputError(
                f"{where}: 'rle' must be integers separated by commas; redraw the mask"
            ) from None
        rows, columns = np.divmod(set_positions(lengths, width * height, where), width)
        labels[top + rows, left + columns] = k
    elif shape.tag == "polygon":
        pairs = [pair.split(",") for pair in (shape.get("points") or "").split(";")]
        paint(labels, [parse_points(pairs, where)], k)
    else:
        raise InputError(
            f"{where} has a <{shape.tag}>; only masks and polygons have pixels, so redraw it as "
            "one of these or remove it"
        )


def _number(shape: ET.Element, name: str, where: str) -> int:
    text = shape.get(name, "0" if name == "z_order" else "")
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        raise InputError(f"{where}: {name!r} must be a number, got {text!r}") from None
