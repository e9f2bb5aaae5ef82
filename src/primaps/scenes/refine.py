"""From blended logits to labels: the CRF on overlapping windows of which the cores are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor

from primaps.classes.apply import legend_values
from primaps.classes.legend import HIDDEN
from primaps.classes.tree import best_parts
from primaps.crf import CLASS_CRF
from primaps.em.pixels import interpolate, upsample
from primaps.model import PriMaPsEM
from primaps.scenes.crops import Crops, cores, starts
from primaps.scenes.logits import divided_tree
from primaps.scenes.pixels import (
    positions,
    scene_blocks,
    scene_labels,
    scene_valid,
)
from primaps.scenes.source import Box
from primaps.scenes.view import View, ahead
from primaps.scenes.work import RawFile, Work
from primaps.utils.parallel import lanes, overlapped
from primaps.utils.progress import ProgressCallback

WINDOW = 840
"""Side of windows in pixels. Larger ones overlap by less of their area, but no cache holds them."""
VALUES = 9_000_000
"""Marginals of a window at the most: K times its pixels, which decides the memory of the CRF."""
TOGETHER = 2
"""Windows that a CPU refines at the same time; they share its cores, and each has its memory."""
MARGIN = 42
"""Pixels that windows reach beyond their cores. More change hardly anything in a scene that a model
was fitted to."""
Finish = Callable[[Integer[Tensor, "h w"], Box], Integer[Tensor, "h w"]]
"""Classes of a box of the scene to the labels that are written."""


def refine(
    model: PriMaPsEM,
    view: View,
    crops: Crops,
    blended: RawFile,
    crf: bool,
    window: int | None,
    work: Work,
    progress: ProgressCallback,
) -> RawFile:
    """Labels of every pixel of the scene, 255 where there is nothing or a class is hidden.

    Args:
        window: side of windows in pixels of the view; None is :data:`WINDOW`, less for more
            classes.

    Returns:
        (height, width) of the scene on disk, 8 bits.
    """
    patch, classes = model.network.patch_size, model.config.classes
    out = work.file("labels.u8", (view.scene.height, view.scene.width), np.uint8)
    margin = math.ceil(MARGIN / patch) if crf else 1
    side = max(3 * margin, (window or min(WINDOW, math.isqrt(VALUES // classes))) // patch)
    rows, columns = (_windows(n, side, margin) for n in (crops.rows, crops.columns))
    done: int = work.get("refined", 0)

    def load(i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        (top, bottom), _ = rows[i]
        colors, valid = view.rows(top * patch, min(bottom * patch, view.height))
        # Places at the rim may reach beyond the scene, where networks see its flipped image.
        more = ((0, bottom * patch - top * patch - len(colors)),
                (0, crops.columns * patch - view.width))  # fmt: skip
        return blended.rows(top, bottom), np.pad(colors, (*more, (0, 0)), "symmetric"), valid

    def pieces() -> Iterator[list[Callable[[], None]]]:
        for i, (stored, colors, valid) in ahead(load, range(done, len(rows))):
            tall, kept = rows[i]
            for wide, own in columns:
                core = Box(*(min(patch * end, view.height) for end in kept),
                           *(min(patch * end, view.width) for end in own))  # fmt: skip
                box = Box(*tall, *wide)
                yield [partial(_label, model, view, stored, colors, valid, box, core, crf, out)]

    with lanes(model.backbone.device, TOGETHER, writers=0) as own:
        labeled = overlapped(pieces(), lambda piece: piece[0](), own)
        for step, _ in enumerate(labeled, done * len(columns) + 1):
            if step % len(columns) == 0:
                work.keep(refined=step // len(columns))
            progress("labels", step, len(rows) * len(columns), {})
    return out


def _windows(length: int, side: int, margin: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Windows on a line, as few as ``side`` allows and no longer than they have to be, each with
    the core that it keeps."""
    number = len(starts(length, side, 2 * margin))
    side = math.ceil((length + (number - 1) * 2 * margin) / number)
    begins = starts(length, side, 2 * margin)
    ends = [min(length, begin + side) for begin in begins]
    return list(zip(zip(begins, ends, strict=True), cores(length, begins, side), strict=True))


def _label(
    model: PriMaPsEM,
    view: View,
    stored: Float[np.ndarray, "rows channels columns"],
    colors: UInt8[np.ndarray, "H W 3"],
    valid: Bool[np.ndarray, "h w"],
    box: Box,
    core: Box,
    crf: bool,
    out: RawFile,
) -> None:
    """Label the core of a window.

    Args:
        stored: blended values of its rows of the grid.
        colors, valid: of its rows of the view, colors beyond it where the grid is.
        box: the window on the grid.
        core: in pixels of the view.
    """
    patch, classes = model.network.patch_size, model.config.classes
    top, left = box.top * patch, box.left * patch
    near = slice(core.top - top, core.bottom - top), slice(core.left, core.right)
    if not valid[near].any():
        for part in scene_blocks(view, core):
            out.put(np.full((part.bottom - part.top, part.right - part.left), HIDDEN), *part[::2])
        return
    # Interpolation differs from that of the whole at the rim alone, which is none of the core.
    values = torch.from_numpy(stored[:, :, box.left : box.right]).float().permute(1, 0, 2)
    logits = values[None, :classes].to(model.backbone.device)
    pixels = np.ascontiguousarray(colors[:, left : box.right * patch].transpose(2, 0, 1))
    if crf:
        probabilities = CLASS_CRF(torch.from_numpy(pixels)[None].to(logits.device), logits=logits)
    else:
        probabilities = upsample(logits, pixels.shape[1:]).softmax(1)
    finish = _finish(model, values[classes:], (box.top, box.left), view.scale * patch)
    for part, labels in scene_labels(view, probabilities[0], (top, left), core):
        shown = finish(labels, part).cpu().numpy().astype(np.uint8)
        shown[~scene_valid(view, part, valid, top)] = HIDDEN
        out.put(shown, part.top, part.left)


def _finish(
    model: PriMaPsEM, cosines: Float[Tensor, "l h w"], first: tuple[int, int], step: float
) -> Finish:
    """From the model's classes to those of its legend; ``step`` pixels per place of ``cosines``,
    which begin at place ``first``."""
    if model.legend_ is None or model.inventory_ is None:
        return lambda classes, box: classes
    legend, tree, divided = model.legend_, model.inventory_.tree, divided_tree(model)
    if divided is None:
        return lambda classes, box: legend_values(tree, legend, classes)

    def divide(classes: Tensor, box: Box) -> Tensor:
        rows = positions(box.top, box.bottom, step) - first[0]
        columns = positions(box.left, box.right, step) - first[1]
        parts = best_parts(tree, classes, lambda part: interpolate(cosines[part], rows, columns))
        return legend.table().to(parts.device)[parts.long()]

    return divide
