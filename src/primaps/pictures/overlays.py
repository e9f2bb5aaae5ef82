"""Overlays of label maps, legends, image grids and the preview of a fit, as Pillow images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw, ImageFont

from primaps.config import InferenceOptions
from primaps.model import PriMaPsEM
from primaps.results import write_marked_png
from primaps.utils.colors import palette
from primaps.utils.errors import InputError

GAP = 8
"""Space between the images of a grid in pixels."""


def overlay(
    image: Image.Image,
    labels: Integer[np.ndarray, "h w"],
    colors: UInt8[np.ndarray, "k 3"] | None = None,
    alpha: float = 0.55,
    ignore: int | None = None,
) -> Image.Image:
    """Blend the colors of a label map over its image and outline the regions.

    Args:
        image: image in RGB.
        labels: label map at the size of the image; labels are indices into ``colors``.
        colors: RGB colors; None takes the default palette.
        alpha: opacity of the colors in [0, 1].
        ignore: label of pixels that are darkened instead of colored.

    Raises:
        InputError: image and labels differ in size.
    """
    if colors is None:
        colors = palette(int(labels.max()) + 1)
    rgb = image.convert("RGB")
    if labels.shape != rgb.size[::-1]:
        size = rgb.size[::-1]
        raise InputError(f"labels {labels.shape} and image {size} differ in size")
    blended = Image.blend(rgb, Image.fromarray(colors.take(labels, 0)), alpha)
    left_out = labels == ignore
    if left_out.any():
        black = Image.new("RGB", rgb.size)
        blended.paste(Image.blend(black, rgb, 0.45), mask=Image.fromarray(left_out))
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    white = Image.new("RGB", rgb.size, "white")
    blended.paste(Image.blend(blended, white, 0.65), mask=Image.fromarray(edge))
    return blended


def overlay_masks(image: Image.Image, masks: Integer[np.ndarray, "h w"]) -> Image.Image:
    """Draw masks 1..Z in colors over their image; pixels outside of masks (0) are darkened."""
    colors = palette(max(1, int(masks.max())))
    return overlay(image, masks, np.concatenate([np.zeros_like(colors[:1]), colors]), ignore=0)


def with_legend(
    image: Image.Image,
    names: Sequence[str],
    colors: UInt8[np.ndarray, "k 3"],
    text: int | None = None,
) -> Image.Image:
    """Add a legend below an image, in as many columns as fit its width.

    Args:
        image: image in RGB.
        names: one entry per color; an empty list returns the image itself.
        colors: RGB colors.
        text: font size in pixels; None derives it from the width of the image.
    """
    if not names:
        return image
    font = _font(text or max(12, min(28, image.width // 28)))
    height = round(font.size * 1.5)
    entry = max(round(font.getlength(name)) for name in names) + 2 * height
    columns = max(1, min(len(names), image.width // entry))
    rows = -(-len(names) // columns)
    width = max(image.width, entry)
    sheet = Image.new("RGB", (width, image.height + rows * height + 2 * GAP), "white")
    sheet.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for i, (name, color) in enumerate(zip(names, colors, strict=False)):
        x = (i % columns) * (width // columns) + GAP
        y = image.height + GAP + (i // columns) * height
        box = (x, y + height // 6, x + height, y + height - height // 6)
        draw.rectangle(box, tuple(int(c) for c in color), "black")
        draw.text((x + height + GAP // 2, y + height // 2), name, "black", font, anchor="lm")
    return sheet


def grid(
    rows: Sequence[Sequence[Image.Image]], titles: Sequence[str] = (), height: int = 240
) -> Image.Image:
    """Arrange images in rows and columns on white.

    Args:
        rows: rows of images.
        titles: titles of the columns.
        height: height of each image in pixels.
    """
    scaled = [
        [cell.resize((max(1, round(cell.width * height / cell.height)), height)) for cell in row]
        for row in rows
    ]
    columns = max(len(row) for row in scaled)
    widths = [max(row[i].width for row in scaled if i < len(row)) for i in range(columns)]
    font = _font(max(12, height // 14))
    top = round(font.size * 2) if titles else GAP
    sheet = Image.new(
        "RGB",
        (sum(widths) + GAP * (columns + 1), top + (height + GAP) * len(scaled)),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for i, title in enumerate(titles):
        x = GAP + sum(widths[:i]) + GAP * i
        draw.text((x + widths[i] // 2, top // 2), title, "black", font, anchor="mm")
    for r, row in enumerate(scaled):
        for i, cell in enumerate(row):
            x = GAP + sum(widths[:i]) + GAP * i + (widths[i] - cell.width) // 2
            sheet.paste(cell, (x, top + r * (height + GAP)))
    return sheet


def examples(
    rows: Sequence[tuple[Image.Image, Sequence[Integer[np.ndarray, "h w"]]]],
    titles: Sequence[str],
    classes: Sequence[str],
    colors: UInt8[np.ndarray, "k 3"] | None = None,
    ignore: int | None = 255,
    height: int = 240,
) -> Image.Image:
    """Draw a sheet of examples with a legend; each row has an image and overlays of label maps.

    Args:
        rows: images with their label maps (label, predictions) at the size of the image.
        titles: titles of the columns.
        classes: class names; the legend lists those that occur.
        colors: RGB colors of the classes; None takes the default palette.
        ignore: label of pixels that are darkened.
        height: height of each image in pixels.
    """
    shades = palette(len(classes)) if colors is None else colors
    present: set[int] = set()
    shades = np.concatenate(
        [shades, np.zeros_like(shades[:1])]
    )  # the last entry is for ignored pixels
    pictures = []
    for image, maps in rows:
        pictures.append([image])
        for labels in maps:
            known = np.where(labels == ignore, len(classes), labels)
            present |= set(np.unique(known).tolist()) - {len(classes)}
            pictures[-1].append(overlay(image, known, shades, 0.75, ignore=len(classes)))
    shown = sorted(present)
    sheet = grid(pictures, titles, height)
    return with_legend(sheet, [classes[k] for k in shown], shades[shown], max(12, height // 14))


def model_preview(model: PriMaPsEM, path: str | Path, crf: bool = True) -> None:
    """Draw up to six training images with their mask proposals and predicted classes.

    Args:
        model: model that was fitted in this process.
        path: PNG file to write.
        crf: refine the predicted classes by the dense CRF.

    Raises:
        InputError: the model was loaded, and has no training images.
    """
    if model.samples_ is None:
        raise InputError("a loaded model has no training images; draw the preview after fit")
    images = model.samples_.to(model.backbone.device)
    masks = model.masks(model.backbone(images.float() / 255), images).cpu().numpy()
    sizes = [(images.shape[2], images.shape[3])] * len(images)
    found = model.segmenter.segment_batch(images, sizes, InferenceOptions(crf=crf))
    labels = np.stack([one.labels.cpu().numpy() for one in found])
    colors = palette(model.config.classes)
    rows = []
    for image, mask, label in zip(images.cpu(), masks, labels, strict=True):
        rgb = Image.fromarray(image.permute(1, 2, 0).numpy())
        rows.append([rgb, overlay_masks(rgb, mask), overlay(rgb, label, colors)])
    sheet = grid(rows, ("image", "mask proposals", "predicted classes"))
    present = np.flatnonzero(np.bincount(labels.flatten(), minlength=len(colors)))
    sheet = with_legend(sheet, [f"class {k}" for k in present], colors[present])
    write_marked_png(sheet, path)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType; install a wheel of Pillow from PyPI")
    return font
