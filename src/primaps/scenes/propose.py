"""Propose masks of scenes: masks of tiles, joined where neighboring tiles agree."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from primaps.backbones.backbone import Backbone, image_features
from primaps.backbones.load import load_backbone
from primaps.data import LogCallback
from primaps.proposals.image_size import mask_probabilities
from primaps.results import RawFile, WorkFolder, resumable_file
from primaps.scenes.tile_inference import map_tiles, scene_labels, tile_row, valid_tiles, view_box
from primaps.scenes.tiling import Tiles, TilingOptions
from primaps.scenes.view import View, prefetched
from primaps.scenes.writer import Labels, write_labels, written_digest
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validated
from primaps.version import VERSION

logger = logging.getLogger("primaps")
MIN_OVERLAP = 0.5
"""IoU inside the overlap of two tiles above which two masks are joined. Above one half, a mask
matches at most one mask of the other tile."""


@validated
def propose_scene(
    path: str | Path,
    out: str | Path,
    *,
    backbone: str | Path | Backbone = "dinov2-vits14",
    threshold: float = 0.4,
    mask_crf: bool = True,
    device: str | torch.device = "auto",
    engine: str | None = None,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
    **tiling: Any,
) -> int | None:
    """Write the mask proposals of an image of any size.

    Command line: ``primaps propose scene.tif --out masks.tif``.

    Masks, unlike logits, cannot be blended. They are proposed in each tile. Two masks of
    neighboring tiles are joined if they agree on the overlap, and every pixel takes its mask from
    the tile with the nearest center. Masks are numbered 1, 2, ... over the scene; 0 means no mask,
    or a pixel that is not valid. A run that was killed is resumed by the same call.

    Args:
        path: the scene: a GeoTIFF, a TIFF, a slide or another image file.
        out: the ``.tif`` to write.
        backbone: name, hub id, folder or :class:`primaps.Backbone`.
        threshold: psi of Eq. 6, in [0, 1).
        mask_crf: refine the masks of each tile by the dense CRF.
        device: device of the backbone; ``auto`` is a GPU if available.
        engine: see :func:`primaps.load_backbone`.
        progress: progress callback.
        log: called with one sentence if the scene seems to have nodata that is not declared.
        **tiling: fields of :class:`primaps.scenes.tiling.TilingOptions`; ``crf_tile`` has no
            effect.

    Returns:
        Number of masks; None if an earlier call had written them.

    Raises:
        SceneError: the scene is damaged, or has five or more bands and none are selected.
        OutputError: ``out`` exists and is not the result of this call.
        WeightsError: the weights of the backbone are not available.
        InputError: an option does not fit the scene.
        MissingPackageError: the scene needs a package that is not installed.
    """
    options, path, out = TilingOptions(**tiling), Path(path).expanduser(), Path(out).expanduser()
    network = load_backbone(backbone, device, engine=engine)
    manifest = {
        "primaps": VERSION,
        "command": "propose scene",
        "backbone": network.digest or network.name,
        "precision": network.arithmetic,
        "threshold": threshold,
        "mask_crf": mask_crf,
        **asdict(options),
    }
    with (
        closing(options.open(path, log)) as scene,
        resumable_file(out, path, manifest, written_digest) as (work, digest),
    ):
        if work is None:
            return None
        view = options.view(scene)
        tiles = options.tiles(view, network, network.default_size)
        mask_options = {"threshold": threshold, "crf": "dense" if mask_crf else None}
        raw = tile_masks(network, view, tiles, mask_options, work, progress)
        table = scene_numbers(work)
        count, dtype = int(table.max()), "uint16" if table.max() < 1 << 16 else "uint32"
        colors = np.zeros((0, 3), np.uint8)
        labels = Labels(
            raw, 0, [], colors, scene.georeference, lambda masks: table[masks].astype(dtype), dtype
        )
        write_labels(labels, out, digest, progress)
    return count


def tile_masks(
    network: Backbone,
    view: View,
    tiles: Tiles,
    options: dict[str, Any],
    work: WorkFolder,
    progress: ProgressCallback,
) -> RawFile:
    """Write the masks of all tiles to disk at the scene's size, each mask with its own number.

    For every row of tiles the state of ``work`` gets the first number, the numbers that are visible
    in the map, and the pairs of masks that agree.
    """
    raw = work.file("masks.u32", (view.scene.height, view.scene.width), np.uint32)
    rows: list[dict[str, Any]] = work.get("rows", [])
    patch, done = tiles.patch, len(rows)
    # A resumed run repeats the last finished row, which the next row is compared with.
    begin = max(0, done - 1)
    following: int = rows[begin]["first"] if rows else 1
    above: dict[int, np.ndarray] = {}

    def masks(images: Tensor) -> list[Tensor]:
        images = images.to(network.device)
        return list(mask_probabilities(image_features(network, images), images, **options))

    rows_of_tiles = prefetched(partial(tile_row, view, tiles), range(begin, len(tiles.tops)))
    for i, (colors, valid) in rows_of_tiles:
        row: dict[str, Any] = {"first": following, "shown": [], "pairs": []}
        here: dict[int, np.ndarray] = {}
        top = tiles.tops[i] * patch
        for j, probabilities in map_tiles(masks, valid_tiles(tiles, colors, valid), network.device):
            here[j] = _numbered(probabilities.argmax(0), following)
            if i >= done:
                inner = view_box(view, patch, *tiles.inner(i, j))
                origin = (top, tiles.lefts[j] * patch)
                for block, labels in scene_labels(view, probabilities, origin, inner):
                    numbers = _numbered(labels, following)
                    numbers[~view.scene_valid(block, valid, (top, 0))] = 0
                    row["shown"] += np.unique(numbers).tolist()
                    raw.put(numbers, block.top, block.left)
                if j - 1 in here:
                    step = (tiles.lefts[j] - tiles.lefts[j - 1]) * patch
                    row["pairs"] += agreeing(here[j - 1][:, step:], here[j][:, : -step or None])
                if j in above:
                    step = (tiles.tops[i] - tiles.tops[i - 1]) * patch
                    row["pairs"] += agreeing(above[j][step:], here[j][:-step])
            following += len(probabilities) - 1
        above = here
        if i >= done:
            row["shown"] = sorted(set(row["shown"]) - {0})
            rows.append(row)
            work.save(rows=rows)
        progress("tiles", (i + 1) * len(tiles.lefts), len(tiles.tops) * len(tiles.lefts), {})
    return raw


def _numbered(masks: Integer[Tensor, "h w"], first: int) -> Integer[np.ndarray, "h w"]:
    """Number the masks 1, 2, ... of a tile from ``first``; 0 stays 0."""
    numbers = masks.cpu().numpy().astype(np.int64)
    return np.where(numbers > 0, numbers + first - 1, 0)


def agreeing(one: Integer[np.ndarray, "h w"], other: Integer[np.ndarray, "h w"]) -> list[list[int]]:
    """Return the pairs of masks, one of each map, whose IoU exceeds :data:`MIN_OVERLAP`.

    Examples:
        >>> agreeing(np.array([[1, 1, 2, 0]]), np.array([[5, 5, 6, 6]]))
        [[1, 5]]
    """
    if not one.size:
        return []
    pairs, common = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1, return_counts=True)
    sizes = [dict(zip(*np.unique(each, return_counts=True), strict=True)) for each in (one, other)]
    return [
        [int(a), int(b)]
        for (a, b), n in zip(pairs.T, common, strict=True)
        if a and b and n > MIN_OVERLAP * (sizes[0][a] + sizes[1][b] - n)
    ]


def scene_numbers(work: WorkFolder) -> Integer[np.ndarray, " n"]:
    """Return the number in the scene of every mask of a tile; 0 stays 0.

    Joined masks have one number; numbers follow the order in which tiles show masks.
    """
    rows = work.get("rows", [])
    pairs = np.array([pair for row in rows for pair in row["pairs"]], np.int64).reshape(-1, 2)
    shown = np.array([number for row in rows for number in row["shown"]], np.int64)
    count = int(max(shown.max(initial=0), pairs.max(initial=0))) + 1
    graph = coo_matrix((np.ones(len(pairs), bool), pairs.T), shape=(count, count))
    groups = connected_components(graph, directed=False)[1]
    present, firsts = np.unique(groups[shown], return_index=True)
    table = np.zeros(groups.max() + 1, np.int64)
    table[present[np.argsort(firsts)]] = np.arange(1, len(present) + 1)
    numbers = table[groups]
    numbers[0] = 0
    return numbers
