"""``cvat``: "CVAT for images 1.1", an XML file with masks as run lengths in their boxes."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import UInt8

from primaps.exchange.classes import NOTHING, Classes, distinct_colors, parse_color, with_colors
from primaps.exchange.documents import put
from primaps.exchange.errors import need_size
from primaps.exchange.labeled import LabeledImage, Read
from primaps.exchange.source import Source, safe_name
from primaps.geometry.outlines import paint, parse_points
from primaps.geometry.rle import from_run_lengths, run_lengths
from primaps.utils.errors import InputError

WITHOUT_PIXELS = ("tag", "attribute")


def write(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``annotations.xml`` and ``labels.json``, the labels to create the task with."""
    distinct = Classes(classes.names, distinct_colors(classes.colors))
    pairs = list(zip(classes.names, distinct.hexadecimal, strict=True))
    labels = [
        {"name": name, "color": color, "type": "any", "attributes": []} for name, color in pairs
    ]
    put(out / "labels.json", json.dumps(labels, ensure_ascii=False, indent=1) + "\n")
    with (out / "annotations.xml").open("w", encoding="utf-8", newline="\n") as file:
        file.write(
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
        )
        file.write("<meta><task><labels>\n")
        for name, color in pairs:
            text = f"<name>{_escaped(name)}</name><color>{color}</color><type>any</type>"
            file.write(f"<label>{text}<attributes></attributes></label>\n")
        file.write("</labels></task></meta>\n")
        for i, image in enumerate(images):
            size = f'width="{image.width}" height="{image.height}"'
            file.write(f'<image id="{i}" name={quoteattr(image.name)} {size}>\n')
            for k, left, top, mask in image.regions(per).masks():
                rle = ", ".join(map(str, run_lengths(mask.ravel()).tolist()))
                file.write(
                    f'<mask label={quoteattr(classes.names[k])} source="auto" occluded="0" '
                    f'rle="{rle}" left="{left}" top="{top}" width="{mask.shape[1]}" '
                    f'height="{mask.shape[0]}" z_order="0"></mask>\n'
                )
            file.write("</image>\n")
        file.write("</annotations>\n")


def read(source: Source) -> Read:
    """Read masks and polygons of images; those with a higher ``z_order`` lie on top."""
    name = source.find(".xml", "XML file")
    where = source.where(name)
    root = parse_xml(source.read(name), where)
    if root.tag != "annotations":
        raise InputError(f"{where} is no file of CVAT: it begins with <{root.tag}>")
    if root.find("track") is not None:
        raise InputError(f'{where} has tracks of a video: export "CVAT for images 1.1"')
    listed = root.findall("meta//labels/label")
    names = [label.findtext("name") or "" for label in listed]
    if not listed:
        raise InputError(f"{where} has no <labels> in its <meta>; is it of CVAT?")
    classes = with_colors(names, [parse_color(label.findtext("color")) for label in listed])
    index = {name: k for k, name in enumerate(names)}

    def labeled() -> Iterator[tuple[str, UInt8[np.ndarray, "h w"]]]:
        for image in root.findall("image"):
            file = safe_name(image.get("name"), where)
            about = f"{where}, {file}"
            labels = np.full(
                need_size(image.get("width"), image.get("height"), about), NOTHING, np.uint8
            )
            shapes = [shape for shape in image if shape.tag not in WITHOUT_PIXELS]
            for shape in sorted(shapes, key=lambda one: _number(one, "z_order", about)):
                if shape.get("label") not in index:
                    raise InputError(
                        f"{about} has the label {shape.get('label')!r}, which <meta> does not list"
                    )
                _paint(labels, shape, index[str(shape.get("label"))], about)
            yield file, labels
            image.clear()

    return Read(classes, len(root.findall("image")), labeled())


def parse_xml(content: bytes, where: str) -> ET.Element:
    """An XML document without declarations of its own, which could grow without bound.

    Raises:
        InputError: it is no XML, or declares a document type.
    """

    class Plain(ET.TreeBuilder):
        def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
            raise InputError(f"{where} declares a document type, which no such file needs")

    try:
        return ET.fromstring(content, ET.XMLParser(target=Plain()))
    except (ET.ParseError, ValueError, LookupError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where} is no XML ({error}); is it cut off?") from None


def _paint(labels: UInt8[np.ndarray, "h w"], shape: ET.Element, k: int, where: str) -> None:
    if shape.tag == "mask":
        left, top, width, height = (
            _number(shape, one, where) for one in ("left", "top", "width", "height")
        )
        if min(left, top) < 0 or min(width, height) < 1:
            raise InputError(f"{where} has a mask outside of the image")
        try:
            lengths = [int(one) for one in (shape.get("rle") or "").split(",")]
        except ValueError:
            raise InputError(f"{where}: 'rle' must be numbers with commas between") from None
        if left + width > labels.shape[1] or top + height > labels.shape[0]:
            raise InputError(f"{where} has a mask outside of the image")
        mask = from_run_lengths(lengths, width * height, where).reshape(height, width)
        labels[top : top + height, left : left + width][mask] = k
    elif shape.tag == "polygon":
        pairs = [pair.split(",") for pair in (shape.get("points") or "").split(";")]
        paint(labels, [parse_points(pairs, where)], k)
    else:
        raise InputError(
            f"{where} has a <{shape.tag}>: only masks and polygons say which pixels they have, so "
            "turn it into one of these or remove it"
        )


def _number(shape: ET.Element, name: str, where: str) -> int:
    text = shape.get(name, "0" if name == "z_order" else "")
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        raise InputError(f"{where}: {name!r} must be a number, but is {text!r}") from None


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
