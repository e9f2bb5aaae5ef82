"""Class logits of a scene on its feature grid: those of overlapping crops, blended.

Labels cannot be blended, and marginals of a CRF should not be: logits are what neighboring crops
can agree on. Rows of crops go by one at a time, so memory does not depend on the scene's height.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from primaps.backbones.backbone import image_features
from primaps.classes.apply import needs_parts
from primaps.classes.tree import Tree, part_cosines
from primaps.data import chunks
from primaps.model import PriMaPsEM
from primaps.scenes.crops import Crops, cosine_weights
from primaps.scenes.view import View, ahead
from primaps.scenes.work import RawFile, Work
from primaps.utils.parallel import lanes, overlapped
from primaps.utils.progress import ProgressCallback

R = TypeVar("R")
Values = Callable[[UInt8[Tensor, "b 3 H W"]], Float[Tensor, "b c h w"]]


def divided_tree(model: PriMaPsEM) -> Tree | None:
    """The tree of classes, if classes of the model are divided after edits or a cut."""
    tree = model.inventory_ and model.inventory_.tree
    return tree if tree and model.legend_ and needs_parts(tree, model.legend_) else None


def model_values(model: PriMaPsEM) -> tuple[Values, list[int]]:
    """What is blended, and its groups: K logits; if classes are divided, for each class the cosines
    with its parts."""
    tree = divided_tree(model)
    groups = [model.config.classes] + (tree.owner.bincount().tolist() if tree else [])

    @torch.no_grad()
    def values(images: Tensor) -> Tensor:
        features = image_features(model.encoder, images)
        logits = model.logits(features)
        if tree is None:
            return logits
        return torch.cat([logits, torch.stack([part_cosines(tree, each) for each in features])], 1)

    return values, groups


def blend(
    values: Values,
    groups: Sequence[int],
    view: View,
    crops: Crops,
    patch: int,
    work: Work,
    progress: ProgressCallback,
    device: torch.device,
) -> RawFile:
    """Blend values of crops with cosine weights, and write them as half precision.

    Crops that show nothing are left out; where no crop is, values are zero.

    Args:
        values: called in threads, see :func:`on_lanes`.
        groups: number of channels, one group after the other, of which only differences count:
            they are stored less their largest, which leaves the precision to those that compete.

    Returns:
        (rows, channels, columns) on disk.
    """
    channels = sum(groups)
    out = work.file("blended.f16", (crops.rows, channels, crops.columns), np.float16)
    done: int = work.get("blended", 0)
    high, wide = crops.side
    weights = cosine_weights(crops.side)
    sums = torch.zeros(high, channels, crops.columns)
    total = torch.zeros(high, 1, crops.columns)
    # A run that goes on sees again the crops that reach into rows which are not done.
    left = [i for i, top in enumerate(crops.tops) if top + high > done]
    number, before = len(crops.lefts), crops.tops[left[0]] if left else 0
    for i, (colors, valid) in ahead(lambda i: crop_row(view, crops, i, patch), left):
        top = crops.tops[i]
        sums, total = (_moved(each, top - before) for each in (sums, total))
        before = top
        spans = [(at, slice(at * patch, (at + wide) * patch)) for at in crops.lefts]
        shown = [(at, colors[:, span]) for at, span in spans if valid[:, span].any()]
        for at, each in on_lanes(values, shown, device):
            sums[:, :, at : at + wide] += (each.cpu() * weights).permute(1, 0, 2)
            total[:, :, at : at + wide] += weights[:, None]
        end = crops.tops[i + 1] if i + 1 < len(crops.tops) else crops.rows
        if end > done:
            fresh = slice(max(done, top) - top, end - top)
            mean = sums[fresh] / total[fresh].clamp_min(1e-20)
            less = [part - part.amax(1, keepdim=True) for part in mean.split(list(groups), 1)]
            out.put(torch.cat(less, 1).clamp_min(-65504).half().numpy(), max(done, top))
            done = end
            work.keep(blended=done)
        progress("crops", (i + 1) * number, len(crops.tops) * number, {})
    return out


def on_lanes(
    work: Callable[[UInt8[Tensor, "b 3 H W"]], Iterable[R]],
    crops: Sequence[tuple[int, UInt8[np.ndarray, "H W 3"]]],
    device: torch.device,
) -> Iterator[tuple[int, R]]:
    """What ``work`` makes of each crop, in order, with the number that came with it.

    On a CPU each core computes a crop of its own; an accelerator takes eight together.
    """

    def batch_of(numbered: list[tuple[int, np.ndarray]]) -> list[tuple[int, R]]:
        images = torch.from_numpy(np.stack([image for _, image in numbered]))
        found = work(images.permute(0, 3, 1, 2).contiguous())
        return [(number, one) for (number, _), one in zip(numbered, found, strict=True)]

    # Nothing is written here; and each thread keeps some of the memory that it has used.
    with lanes(device, writers=0) as own:
        batches = chunks(crops, 1 if device.type == "cpu" else 8)
        for batch in overlapped(batches, batch_of, own):
            yield from batch


def crop_row(
    view: View, crops: Crops, i: int, patch: int
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """Colors of a row of crops, flipped beyond the scene, and where they show anything."""
    top = crops.tops[i] * patch
    bottom = top + crops.side[0] * patch
    colors, valid = view.rows(top, min(bottom, view.height))
    more = ((0, max(0, bottom - view.height)), (0, crops.columns * patch - view.width))
    return np.pad(colors, (*more, (0, 0)), "symmetric"), np.pad(valid, more)


def _moved(rows: Tensor, steps: int) -> Tensor:
    """Rows without the first ``steps``, and zeros after them."""
    return F.pad(rows[steps:], (0, 0, 0, 0, 0, min(steps, len(rows)))) if steps else rows
