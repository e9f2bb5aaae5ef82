"""Mask proposals of a scene: those of crops, joined where neighbors agree on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
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
from primaps.proposals.image_size import mask_probabilities
from primaps.scenes.crops import Crops, cores
from primaps.scenes.logits import crop_row, on_lanes
from primaps.scenes.pixels import scene_labels, scene_valid
from primaps.scenes.reader import open_scene
from primaps.scenes.source import Box
from primaps.scenes.tiling import TilingOptions
from primaps.scenes.view import View, ahead
from primaps.scenes.work import RawFile, Work, result_of
from primaps.scenes.writer import Labels, write_labels, written_digest
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validated
from primaps.version import VERSION

AGREE = 0.5
"""Intersection over union, inside the overlap of two crops, above which two masks are one: a mask
then agrees with one other at most."""


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
    **fields: Any,
) -> int | None:
    """Mask proposals of an image of any size: ``primaps propose scene.tif --out masks.tif``.

    Masks of crops cannot be blended as class logits can. Each crop has masks of its own; two
    masks of neighboring crops become one if they agree on the overlap; each pixel takes its mask
    from the crop whose middle is nearest. Masks are numbered 1, 2, ... over the scene, 0 = ignore
    or no value. What a killed run did is kept beside ``out``: the same call goes on.

    Args:
        threshold: psi of Eq. 6, in [0, 1).
        mask_crf: refine the masks of each crop by the dense CRF.
        engine: of :func:`primaps.load_backbone`.
        **fields: of :class:`primaps.scenes.tiling.TilingOptions`; a window plays no part.

    Returns:
        Number of masks; None if an earlier call had done all.

    Raises:
        SceneError: the scene is damaged, or nothing says which of its bands to show.
        ResultError: ``out`` exists and is of something else.
        WeightsError: the backbone has no weights here.
        InputError: options do not fit the scene.
        MissingPackageError: the scene needs a package that is not installed.
    """
    tiling, path, out = TilingOptions(**fields), Path(path).expanduser(), Path(out).expanduser()
    network = load_backbone(backbone, device, engine=engine)
    options = {
        "primaps": VERSION,
        "command": "propose scene",
        "backbone": network.digest or network.name,
        "precision": network.arithmetic,
        "threshold": threshold,
        "mask_crf": mask_crf,
        **tiling.to_dict(),
    }
    with (
        closing(open_scene(path, tiling.bands)) as scene,
        result_of(out, path, options, written_digest) as (work, digest),
    ):
        if work is None:
            return None
        view = tiling.view(scene)
        crops = tiling.crops(view, network, network.default_size)
        mask_options = {"threshold": threshold, "crf": "dense" if mask_crf else None}
        raw = crop_masks(network, view, crops, mask_options, work, progress)
        table = joined(work)
        count, kind = int(table.max()), "uint16" if table.max() < 1 << 16 else "uint32"
        none = np.zeros((0, 3), np.uint8)
        labels = Labels(
            raw, 0, [], none, scene.place, lambda values: table[values].astype(kind), kind
        )
        write_labels(labels, out, digest, progress)
    return count


def crop_masks(
    network: Backbone,
    view: View,
    crops: Crops,
    options: dict[str, Any],
    work: Work,
    progress: ProgressCallback,
) -> RawFile:
    """Masks of all crops on disk, each with a number of its own, at the scene's size; and in the
    state of the work which of them show, and which agree, row by row of crops."""
    raw = work.file("masks.u32", (view.scene.height, view.scene.width), np.uint32)
    rows: list[dict[str, Any]] = work.get("rows", [])
    patch, done = network.patch_size, len(rows)
    # The row before the first new one is found again, to be compared with it.
    begin = max(0, done - 1)
    following: int = rows[begin]["first"] if rows else 1
    above: dict[int, np.ndarray] = {}

    def load(i: int) -> tuple[np.ndarray, np.ndarray]:
        return crop_row(view, crops, i, patch)

    for i, (colors, valid) in ahead(load, range(begin, len(crops.tops))):
        line: dict[str, Any] = {"first": following, "shown": [], "pairs": []}
        here: dict[int, np.ndarray] = {}
        for j, probabilities in _row_probabilities(network, crops, colors, valid, options):
            masks = probabilities.argmax(0).cpu().numpy().astype(np.int64)
            here[j] = np.where(masks > 0, masks + following - 1, 0)
            if i >= done:
                core, top = _core(view, crops, i, j, patch), crops.tops[i] * patch
                origin = (top, crops.lefts[j] * patch)
                for part, found in scene_labels(view, probabilities, origin, core):
                    numbers = found.cpu().numpy().astype(np.int64)
                    numbers = np.where(numbers > 0, numbers + following - 1, 0)
                    numbers[~scene_valid(view, part, valid, top)] = 0
                    line["shown"] += np.unique(numbers).tolist()
                    raw.put(numbers, part.top, part.left)
                if j - 1 in here:
                    step = (crops.lefts[j] - crops.lefts[j - 1]) * patch
                    line["pairs"] += agreeing(here[j - 1][:, step:], here[j][:, : -step or None])
                if j in above:
                    step = (crops.tops[i] - crops.tops[i - 1]) * patch
                    line["pairs"] += agreeing(above[j][step:], here[j][:-step])
            following += len(probabilities) - 1
        above = here
        if i >= done:
            line["shown"] = sorted(set(line["shown"]) - {0})
            rows.append(line)
            work.keep(rows=rows)
        each = len(crops.lefts)
        progress("crops", (i + 1) * each, len(crops.tops) * each, {})
    return raw


def _row_probabilities(
    network: Backbone,
    crops: Crops,
    colors: np.ndarray,
    valid: np.ndarray,
    options: dict[str, Any],
) -> Iterator[tuple[int, Tensor]]:
    """Number in its row, and probabilities of masks, of every crop that shows something."""
    patch = network.patch_size
    spans = [slice(at * patch, (at + crops.side[1]) * patch) for at in crops.lefts]
    shown = [(j, colors[:, span]) for j, span in enumerate(spans) if valid[:, span].any()]

    def masks(images: Tensor) -> list[Tensor]:
        images = images.to(network.device)
        return list(mask_probabilities(image_features(network, images), images, **options))

    yield from on_lanes(masks, shown, network.device)


def _core(view: View, crops: Crops, i: int, j: int, patch: int) -> Box:
    """What a crop keeps, in pixels of the view."""
    rows = cores(crops.rows, crops.tops, crops.side[0])[i]
    columns = cores(crops.columns, crops.lefts, crops.side[1])[j]
    return Box(*(min(end * patch, view.height) for end in rows),
               *(min(end * patch, view.width) for end in columns))  # fmt: skip


def agreeing(one: Integer[np.ndarray, "h w"], other: Integer[np.ndarray, "h w"]) -> list[list[int]]:
    """Pairs of masks, one of each map, whose intersection over union exceeds :data:`AGREE`.

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
        if a and b and n > AGREE * (sizes[0][a] + sizes[1][b] - n)
    ]


def joined(work: Work) -> Integer[np.ndarray, " n"]:
    """Number of each mask of a crop over the whole scene, in the order in which crops show
    them; 0 stays 0."""
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
