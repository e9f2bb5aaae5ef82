"""From tiles to labels: logits of tiles are blended on disk, then the CRF refines them by tiles.

Logits are blended because labels cannot be averaged. Tiles are processed one row at a time, and
memory does not depend on the height of the scene.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor

from primaps.classes.legend import HIDDEN, divides_classes, legend_values
from primaps.classes.tree import Tree, best_leaves, leaf_cosines
from primaps.config import InferenceOptions
from primaps.data import chunks
from primaps.inference import Segmenter
from primaps.results import RawFile, WorkFolder
from primaps.scenes.source import Box
from primaps.scenes.tiling import Tiles, cosine_weights, crf_spans
from primaps.scenes.view import View, centers, prefetched
from primaps.utils.bilinear import interpolate, largest_channel_at
from primaps.utils.parallel import lanes, overlapped
from primaps.utils.progress import ProgressCallback

R = TypeVar("R")
Values = Callable[[UInt8[Tensor, "b 3 H W"]], Float[Tensor, "b c h w"]]
Finish = Callable[[Integer[Tensor, "h w"], Box], Integer[Tensor, "h w"]]
"""Converts classes of the classifier to the labels that are written, in a box of the scene."""
CRF_TILE = 840
"""Largest default side of CRF tiles. Larger tiles spend less area on margins but miss the cache."""
CRF_VALUES = 9_000_000
"""Maximum marginals of a CRF tile: classes times pixels. It bounds the memory of the CRF."""
CRF_TOGETHER = 2
"""CRF tiles that a CPU refines at the same time."""
CRF_MARGIN = 42
"""Margin of CRF tiles in network pixels. Wider margins hardly change the classes of a scene that
the model was fitted to."""


def divided_tree(segmenter: Segmenter) -> Tree | None:
    """Return the class tree if edits or a cut divide a class of the fit, else None."""
    tree, legend = segmenter.tree, segmenter.legend
    return tree if tree and legend and divides_classes(tree, legend) else None


def blended_values(segmenter: Segmenter, options: InferenceOptions) -> tuple[Values, list[int]]:
    """Return the function whose values are blended, and the sizes of its groups of channels.

    The first group holds the K logits. If classes are divided, one more group per class holds the
    cosines with its leaves.
    """
    tree = divided_tree(segmenter)
    groups = [segmenter.classes] + (tree.owner.bincount().tolist() if tree else [])

    @torch.no_grad()
    def values(images: Tensor) -> Tensor:
        features = segmenter.encode(images, options)
        logits = segmenter.logits(features)
        if tree is None:
            return logits
        return torch.cat([logits, torch.stack([leaf_cosines(tree, each) for each in features])], 1)

    return values, groups


def blend(
    values: Values,
    groups: Sequence[int],
    view: View,
    tiles: Tiles,
    work: WorkFolder,
    progress: ProgressCallback,
    device: torch.device,
) -> RawFile:
    """Average the values of overlapping tiles with cosine weights, and write them to disk.

    Tiles without a valid pixel are skipped; values that no tile covers are zero.

    Args:
        values: maps images to values on the token grid; several threads call it.
        groups: sizes of channel groups; only differences in a group matter. Each group is
            stored in half precision after its maximum was subtracted, which keeps the largest
            values exact.

    Returns:
        (rows, channels, columns) of the token grid.
    """
    channels = sum(groups)
    out = work.file("blended.f16", (tiles.rows, channels, tiles.columns), np.float16)
    done: int = work.get("blended", 0)
    high, wide = tiles.side
    weights = cosine_weights(tiles.side)
    sums = torch.zeros(high, channels, tiles.columns)
    total = torch.zeros(high, 1, tiles.columns)
    # A resumed run repeats the tiles that reach into rows that are not finished.
    left = [i for i, top in enumerate(tiles.tops) if top + high > done]
    number, before = len(tiles.lefts), tiles.tops[left[0]] if left else 0
    for i, (colors, valid) in prefetched(partial(tile_row, view, tiles), left):
        top = tiles.tops[i]
        sums, total = (_shifted(each, top - before) for each in (sums, total))
        before = top
        for j, each in map_tiles(values, valid_tiles(tiles, colors, valid), device):
            columns = slice(tiles.lefts[j], tiles.lefts[j] + wide)
            sums[:, :, columns] += (each.cpu() * weights).permute(1, 0, 2)
            total[:, :, columns] += weights[:, None]
        end = tiles.tops[i + 1] if i + 1 < len(tiles.tops) else tiles.rows
        if end > done:
            finished = slice(max(done, top) - top, end - top)
            mean = sums[finished] / total[finished].clamp_min(1e-20)
            relative = [part - part.amax(1, keepdim=True) for part in mean.split(list(groups), 1)]
            out.put(torch.cat(relative, 1).clamp_min(-65504).half().numpy(), max(done, top))
            done = end
            work.save(blended=done)
        progress("tiles", (i + 1) * number, len(tiles.tops) * number, {})
    return out


def tile_row(
    view: View, tiles: Tiles, i: int
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """Return the colors and valid pixels of a row of tiles; colors beyond the view are reflected,
    and invalid."""
    top = tiles.tops[i] * tiles.patch
    bottom = top + tiles.side[0] * tiles.patch
    colors, valid = view.rows(top, min(bottom, view.height))
    padding = ((0, max(0, bottom - view.height)), (0, tiles.columns * tiles.patch - view.width))
    if not np.any(padding):  # a copy of the row would take memory
        return colors, valid
    return np.pad(colors, (*padding, (0, 0)), "symmetric"), np.pad(valid, padding)


def valid_tiles(
    tiles: Tiles, colors: UInt8[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"]
) -> list[tuple[int, UInt8[np.ndarray, "h tw 3"]]]:
    """Return the tiles of a row that have a valid pixel, with their numbers in the row."""
    starts = [left * tiles.patch for left in tiles.lefts]
    spans = [slice(start, start + tiles.side[1] * tiles.patch) for start in starts]
    return [(j, colors[:, span]) for j, span in enumerate(spans) if valid[:, span].any()]


def map_tiles(
    function: Callable[[UInt8[Tensor, "b 3 H W"]], Iterable[R]],
    tiles: Sequence[tuple[int, UInt8[np.ndarray, "H W 3"]]],
    device: torch.device,
) -> Iterator[tuple[int, R]]:
    """Apply a function to numbered tiles; yield the results in order, with their numbers.

    On a CPU every core processes one tile; an accelerator processes batches of eight.
    """

    def apply(numbered: list[tuple[int, np.ndarray]]) -> list[tuple[int, R]]:
        images = torch.from_numpy(np.stack([image for _, image in numbered]))
        found = function(images.permute(0, 3, 1, 2).contiguous())
        return [(number, one) for (number, _), one in zip(numbered, found, strict=True)]

    # No writer threads: nothing is written here, and every thread keeps memory.
    with lanes(device, writers=0) as threads:
        batches = chunks(tiles, 1 if device.type == "cpu" else 8)
        for batch in overlapped(batches, apply, threads):
            yield from batch


def _shifted(rows: Tensor, steps: int) -> Tensor:
    """Drop the first ``steps`` rows and append as many rows of zeros."""
    return F.pad(rows[steps:], (0, 0, 0, 0, 0, min(steps, len(rows)))) if steps else rows


def refine(
    segmenter: Segmenter,
    view: View,
    tiles: Tiles,
    blended: RawFile,
    options: InferenceOptions,
    crf_tile: int | None,
    work: WorkFolder,
    progress: ProgressCallback,
) -> RawFile:
    """Label every pixel of the scene: the CRF runs on overlapping tiles without their margins.

    Args:
        blended: result of :func:`blend`.
        options: options of inference.
        crf_tile: side of CRF tiles in network pixels; None is :data:`CRF_TILE`, or less for many
            classes.

    Returns:
        (height, width) of the scene, 8 bits; 255 for pixels without a value and hidden classes.
    """
    patch, classes = tiles.patch, segmenter.classes
    out = work.file("labels.u8", (view.scene.height, view.scene.width), np.uint8)
    reaches = options.crf or segmenter.pixel_level(options) is not None
    margin = math.ceil(CRF_MARGIN / patch) if reaches else 1
    side = max(3 * margin, (crf_tile or min(CRF_TILE, math.isqrt(CRF_VALUES // classes))) // patch)
    rows, columns = (crf_spans(n, side, margin) for n in (tiles.rows, tiles.columns))
    done: int = work.get("refined", 0)

    # Colors of two rows of tiles, one of which is read while the other one is in use. On disk,
    # because a row of a wide scene takes much memory.
    tallest = max(bottom - top for (top, bottom), _ in rows) * patch
    held = work.file("colors.u8", (2 * tallest, view.width, 4), np.uint8)

    def load(i: int) -> np.ndarray:
        (top, bottom), _ = rows[i]
        first = i % 2 * tallest - top * patch
        for piece in view.pieces(top * patch, min(bottom * patch, view.height)):
            colors, valid = view.piece(piece)
            held.put(np.dstack([colors, valid]), first + piece.top, piece.left)
        return blended.rows(top, bottom)

    def steps() -> Iterator[list[Callable[[], None]]]:
        for i, stored in prefetched(load, range(done, len(rows))):
            tall, inner_rows = rows[i]
            for wide, inner_columns in columns:
                inner = view_box(view, patch, inner_rows, inner_columns)
                box, seen = Box(*tall, *wide), view_box(view, patch, tall, wide)
                top = i % 2 * tallest
                pixels = held.rectangle(top, top + seen.shape[0], seen.left, seen.right)
                values = stored[:, :, box.left : box.right]
                yield [partial(_label, segmenter, view, values, pixels, box, inner, options, out)]

    with lanes(segmenter.encoder.device, CRF_TOGETHER, writers=0) as threads:
        labeled = overlapped(steps(), lambda step: step[0](), threads)
        for number, _ in enumerate(labeled, done * len(columns) + 1):
            if number % len(columns) == 0:
                work.save(refined=number // len(columns))
            progress("labels", number, len(rows) * len(columns), {})
    if options.crf:
        from primaps.crf.compiled import release_buffers

        release_buffers()  # polygons of a large scene need the memory
    return out


def view_box(view: View, patch: int, rows: tuple[int, int], columns: tuple[int, int]) -> Box:
    """Return the pixels of a view that tokens cover."""
    return Box(*(min(end * patch, view.height) for end in rows),
               *(min(end * patch, view.width) for end in columns))  # fmt: skip


def _label(
    segmenter: Segmenter,
    view: View,
    stored: Float[np.ndarray, "rows channels columns"],
    pixels: UInt8[np.ndarray, "h w 4"],
    box: Box,
    inner: Box,
    options: InferenceOptions,
    out: RawFile,
) -> None:
    """Label a CRF tile without its margin.

    Args:
        stored: blended values of the tokens of the tile.
        pixels: colors of the tile, and whether each pixel is valid; without those beyond the view.
        box: the tile in tokens.
        inner: the tile without its margin, in pixels of the view.
    """
    patch, classes = segmenter.encoder.patch_size, segmenter.classes
    top, left = box.top * patch, box.left * patch
    valid = pixels[..., 3] > 0
    rows = slice(inner.top - top, inner.bottom - top)
    if not valid[rows, inner.left - left : inner.right - left].any():
        for block in view.scene_blocks(inner):
            out.put(np.full(block.shape, HIDDEN), block.top, block.left)
        return
    # Interpolation differs from that of the whole scene only at the border, within the margin.
    values = torch.from_numpy(stored).float().permute(1, 0, 2)
    logits = values[None, :classes].to(segmenter.encoder.device)
    # Tokens at the border may extend beyond the scene, where pixels are reflected.
    padding = [(0, tokens * patch - n) for tokens, n in zip(box.shape, valid.shape, strict=True)]
    colors = np.pad(pixels[..., :3].transpose(2, 0, 1), [(0, 0), *padding], "symmetric")
    image = torch.from_numpy(np.ascontiguousarray(colors))[None]
    probabilities = segmenter.probabilities(logits, image, options)
    finish = _finish(segmenter, values[classes:], (box.top, box.left), view.scale * patch)
    for block, labels in scene_labels(view, probabilities[0], (top, left), inner):
        rejected = labels == classes  # the channel after the classes
        shown = finish(labels.clamp_max(classes - 1), block).cpu().numpy().astype(np.uint8)
        shown[rejected.cpu().numpy()] = HIDDEN
        shown[~view.scene_valid(block, valid, (top, left))] = HIDDEN
        out.put(shown, block.top, block.left)


def scene_labels(
    view: View, probabilities: Float[Tensor, "k h w"], origin: tuple[int, int], inner: Box
) -> Iterator[tuple[Box, Integer[Tensor, "bh bw"]]]:
    """Yield blocks of the scene with the largest channel of each pixel.

    Args:
        probabilities: of a tile of the view whose first pixel is ``origin``.
        inner: the tile without its margin, in pixels of the view.
    """
    for block in view.scene_blocks(inner):
        y = centers(block.top, block.bottom, view.scale) - origin[0]
        x = centers(block.left, block.right, view.scale) - origin[1]
        yield block, largest_channel_at(probabilities, y, x)


def _finish(
    segmenter: Segmenter, cosines: Float[Tensor, "l h w"], first: tuple[int, int], step: float
) -> Finish:
    """Return the function from classes of the classifier to classes of the legend.

    Args:
        cosines: with the leaves of the tree, on tokens; empty if no class is divided.
        first: row and column of the first token.
        step: scene pixels per token.
    """
    legend, tree = segmenter.legend, segmenter.tree
    if legend is None or tree is None:
        return lambda classes, box: classes
    if divided_tree(segmenter) is None:
        return lambda classes, box: legend_values(tree, legend, classes)

    def divide(classes: Tensor, box: Box) -> Tensor:
        rows = centers(box.top, box.bottom, step) - first[0]
        columns = centers(box.left, box.right, step) - first[1]
        leaves = best_leaves(tree, classes, lambda leaf: interpolate(cosines[leaf], rows, columns))
        return legend.table().to(leaves.device)[leaves.long()]

    return divide
