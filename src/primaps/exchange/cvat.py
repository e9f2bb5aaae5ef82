"""CVAT for images 1.1: an XML file with masks as run lengths in their bounding boxes."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from primaps.exchange.classes import Classes, classes_of, distinct_colors, parse_color
from primaps.exchange.files import InputFiles, image_size, parse_xml, safe_name, write_file
from primaps.exchange.labeled import ImageShapes, LabeledImage, Labels
from primaps.geometry.outlines import MAX_COORDINATE, parse_points
from primaps.geometry.rle import run_lengths, set_positions
from primaps.geometry.shapes import Line, Pixels, Points, Polygon, Shape, ellipse, rectangle
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
    """Read masks, polygons, boxes and ellipses; those with a higher ``z_order`` lie on top."""
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

    def images() -> Iterator[ImageShapes]:
        for image in root.findall("image"):
            file = safe_name(image.get("name"), where)
            place = f"{where}, {file}"
            size = image_size(image.get("width"), image.get("height"), place)
            shapes = [shape for shape in image if shape.tag not in WITHOUT_PIXELS]
            shapes.sort(key=lambda one: _integer(one, "z_order", place))
            yield ImageShapes(file, *size, _classified(shapes, index, *size, place))
            image.clear()

    return Labels(classes, len(root.findall("image")), images())


def _classified(
    shapes: list[ET.Element], index: dict[str, int], height: int, width: int, where: str
) -> Iterator[tuple[int, Shape]]:
    """Yield class and shape of the elements of an image."""
    for element in shapes:
        if (label := element.get("label", "")) not in index:
            raise InputError(f"{where}: <labels> does not have the label {label!r}; add it")
        yield index[label], _shape(element, height, width, where)


def _shape(element: ET.Element, height: int, width: int, where: str) -> Shape:
    def number(name: str) -> float:
        return _number(element, name, where)

    degrees = number("rotation") if "rotation" in element.attrib else 0.0
    if element.tag == "mask":
        return _mask(element, height, width, where)
    if element.tag == "box":
        return rectangle(number("xtl"), number("ytl"), number("xbr"), number("ybr"), degrees)
    if element.tag == "ellipse":
        radii = number("rx"), number("ry")
        return ellipse(number("cx"), number("cy"), *radii, where, degrees)
    if element.tag not in ("polygon", "polyline", "points"):
        raise InputError(
            f"{where} has a <{element.tag}>, which is not supported; redraw it as a mask or "
            "polygon, or remove it"
        )
    minimum = {"polygon": 3, "polyline": 2, "points": 1}[element.tag]
    pairs = [pair.split(",") for pair in (element.get("points") or "").split(";")]
    points = parse_points(pairs, where, minimum)
    if element.tag == "polygon":
        return Polygon([points])
    return Line(points) if element.tag == "polyline" else Points(points)


def _mask(element: ET.Element, height: int, width: int, where: str) -> Pixels:
    left, top, columns, rows = (
        _integer(element, name, where) for name in ("left", "top", "width", "height")
    )
    inside = left + columns <= width and top + rows <= height
    if min(left, top) < 0 or min(columns, rows) < 1 or not inside:
        raise InputError(f"{where} has a mask outside of the image; redraw it")
    try:
        lengths = [int(one) for one in (element.get("rle") or "").split(",")]
    except ValueError:
        raise InputError(
            f"{where}: 'rle' must be integers separated by commas; redraw the mask"
        ) from None
    bits = np.zeros(columns * rows, bool)
    bits[set_positions(lengths, columns * rows, where)] = True
    return Pixels(left, top, bits.reshape(rows, columns))


def _integer(element: ET.Element, name: str, where: str) -> int:
    return int(_number(element, name, where))


def _number(element: ET.Element, name: str, where: str) -> float:
    text = element.get(name, "0" if name == "z_order" else "")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) < MAX_COORDINATE:
        raise InputError(
            f"{where}: {name!r} must be a number below {MAX_COORDINATE:,.0f}, got {text[:60]!r}; "
            "export it again"
        )
    return number
