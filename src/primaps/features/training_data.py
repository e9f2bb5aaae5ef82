"""Training data of a fit: batches of feature maps, sampled patch tokens, and a table of all masks.

Feature maps of an image are stored as (2, C, h, w): [0] of the image, [1] of the flipped image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float16, Integer, Shaped
from torch import Tensor

from primaps.backbones.backbone import mean_of_both
from primaps.utils.distributed import gather, processes, rank
from primaps.utils.parallel import lanes, overlapped
from primaps.utils.seeding import generator

Augment = Callable[[Tensor, Tensor, int], Tensor]
"""Rows of images, which of them to flip, and the step number, to features of augmented images."""
Coding = Callable[[Tensor], Tensor]
"""Features of a batch to the codes that prototypes are fitted to."""
MAX_TOKENS = 1 << 18
"""Patch tokens that :func:`sample_tokens` samples of all images: 200 MB with 384 channels."""
EXTRA_COLUMNS = 2
"""Columns of :func:`mask_rows` after the feature: area and mask number."""


class ImageArrays:
    """One array per image, all of one shape, gathered by index as tensors.

    Args:
        arrays: a list of arrays (for example views of a memory-mapped file), or a tensor; gathered
            rows are on the device of the tensor.

    Examples:
        >>> arrays = ImageArrays(torch.arange(6).view(3, 2))
        >>> arrays.take(torch.tensor([2, 0])).tolist()
        [[4, 5], [0, 1]]
        >>> arrays.take(torch.tensor([2, 0]), torch.tensor([0, 1])).tolist()
        [4, 1]
    """

    def __init__(self, arrays: Sequence[np.ndarray] | np.ndarray | Tensor) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        if isinstance(self.arrays, np.ndarray | Tensor):
            return tuple(self.arrays.shape[1:])
        return tuple(self.arrays[0].shape)

    def take(
        self, index: Integer[Tensor, " b"], inner: Integer[Tensor, " b"] | None = None
    ) -> Shaped[Tensor, "b ..."]:
        """Return the rows at ``index``, or one entry of each row at ``inner``."""
        arrays = self.arrays
        if isinstance(arrays, Tensor):
            where = (index,) if inner is None else (index, inner)
            return arrays[tuple(each.to(arrays.device) for each in where)]

        def entry(row: int, inner_row: int) -> np.ndarray:
            array = arrays[row] if len(arrays) else np.empty(self.shape, np.float16)
            return array if inner is None else array[inner_row]

        first = entry(0, 0)
        out = np.empty((len(index), *first.shape), first.dtype)
        inner_rows = [0] * len(index) if inner is None else inner.tolist()
        for i, (row, inner_row) in enumerate(zip(index.tolist(), inner_rows, strict=True)):
            out[i] = entry(row, inner_row)
        return torch.from_numpy(out)

    def chunks(self, size: int = 64) -> Iterator[Tensor]:
        """Yield all rows in order, ``size`` at a time."""
        for first in range(0, len(self), size):
            yield self.take(torch.arange(first, min(first + size, len(self))))

    def to(self, device: torch.device) -> ImageArrays:
        """Move the rows to a GPU as one tensor if they fit into half of its free memory."""
        if device.type != "cuda" or isinstance(self.arrays, Tensor) or not len(self):
            return self
        if len(self) * self.arrays[0].nbytes > torch.cuda.mem_get_info(device)[0] // 2:
            return self
        return ImageArrays(torch.cat([chunk.to(device) for chunk in self.chunks()]))


@dataclass(frozen=True)
class Batch:
    """The images of one step of EM that this process has.

    Attributes:
        clean: features of the images, for the momentum prototypes.
        augmented: features of the augmented images, for the student.
        flip: which images are flipped, in both.
        rows: rows of the images among those of this process.
    """

    clean: Float[Tensor, "b c h w"]
    augmented: Float[Tensor, "b c h w"]
    flip: Bool[Tensor, " b"]
    rows: Integer[Tensor, " b"]


@dataclass(frozen=True)
class Views:
    """Feature maps of the training images of this process, clean and augmented.

    Attributes:
        clean: (2, C, h, w) of each image.
        row_of: row of each image of the collection in ``clean``, -1 if another process has it;
            None if this process has all images in order.
        augmented: features (C, h, w) of each photometrically augmented image, one entry per view.
        flipped: which of the augmented images are flipped.
        fresh: computes augmented features in every step, instead of ``augmented``.
        projection: features to the codes that prototypes are fitted to; None for features.
        device: device of the batches.
    """

    clean: ImageArrays
    row_of: Integer[Tensor, " n"] | None = None
    augmented: tuple[ImageArrays, ...] = ()
    flipped: Bool[Tensor, "v m"] | None = None
    fresh: Augment | None = None
    projection: Coding | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        """Number of images of all processes."""
        return len(self.clean) if self.row_of is None else len(self.row_of)

    def chunks(self, size: int = 64) -> Iterator[Shaped[Tensor, "_ 2 c h w"]]:
        """Yield stored features of the images of this process, in order, ``size`` at a time."""
        row_of = torch.arange(len(self.clean)) if self.row_of is None else self.row_of
        for rows in row_of[row_of >= 0].split(size):
            yield self.clean.take(rows)

    def local_rows(
        self, index: Integer[Tensor, " b"]
    ) -> tuple[Integer[Tensor, " h"], Bool[Tensor, " b"]]:
        """Return rows of the images at ``index`` in this process, and the mask of these images."""
        rows = index if self.row_of is None else self.row_of[index]
        return rows[rows >= 0], rows >= 0

    def features(
        self, rows: Integer[Tensor, " b"], flip: Bool[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Return clean features of images or, where ``flip``, of their flipped images."""
        return self.project(self.clean.take(rows, flip.long()))

    def project(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Map stored features to what prototypes are fitted to."""
        features = features.to(self.device).float()
        return self.projection(features) if self.projection else features

    def flip_average(self, row: int) -> Float[Tensor, "c h w"]:
        """Average the features of an image of this process with those of its flipped image."""
        both = self.project(self.clean.take(torch.tensor([row]))[0])
        return mean_of_both(both[None])[0]

    def batch(self, index: Integer[Tensor, " b"], step: int, seed: int) -> Batch:
        """Return the features of a batch; ``step`` and ``seed`` determine all random numbers."""
        random = generator("views", seed, step)
        rows, local = self.local_rows(index)
        if self.augmented:
            assert self.flipped is not None
            view = torch.randint(len(self.augmented), (len(index),), generator=random)[local]
            flip = self.flipped[view, rows]
            clean = self.features(rows, flip)
            augmented = torch.empty_like(clean)
            for number in view.unique().tolist():
                at = (view == number).nonzero()[:, 0]
                augmented[at.to(self.device)] = self.project(self.augmented[number].take(rows[at]))
            return Batch(clean, augmented, flip, rows)
        flip = (torch.rand(len(index), generator=random) < 0.5)[local]
        clean = self.features(rows, flip)
        augmented = self.project(self.fresh(rows, flip, step)) if self.fresh else clean
        return Batch(clean, augmented, flip, rows)


def batch_indices(
    step: int, count: int, batch_size: int, purpose: str, seed: int
) -> Integer[Tensor, " b"]:
    """Return the images of the batch of a step (from 1).

    Each epoch is a permutation of the ``count`` images; an incomplete last batch is dropped.

    Examples:
        >>> batch_indices(1, 5, 2, "EM", 0).tolist() == batch_indices(1, 5, 2, "EM", 0).tolist()
        True
        >>> len(batch_indices(7, 5, 32, "EM", 0))
        5
    """
    batch_size = min(batch_size, count)
    epoch, number = divmod(step - 1, count // batch_size)
    order = torch.randperm(count, generator=generator(purpose, seed, epoch))
    return order[number * batch_size : (number + 1) * batch_size]


@dataclass(frozen=True)
class SampledTokens:
    """L2-normalized features of sampled patch tokens of the images of this process.

    A k-means step reads a few tokens of each of many images. In a feature map the channels of a
    token lie far apart in memory; here they are contiguous.

    Attributes:
        directions: features of length 1, P tokens per image.
        row_of: row of each image of the collection, -1 if another process has it.
    """

    directions: Float16[Tensor, "n p c"]
    row_of: Integer[Tensor, " all"]

    def __len__(self) -> int:
        """Number of images of all processes."""
        return len(self.row_of)

    @property
    def device(self) -> torch.device:
        """Device of the features."""
        return self.directions.device

    def local_rows(
        self, index: Integer[Tensor, " b"]
    ) -> tuple[Integer[Tensor, " h"], Bool[Tensor, " b"]]:
        """Return rows of the images at ``index`` in this process, and the mask of these images."""
        rows = self.row_of[index]
        return rows[rows >= 0], rows >= 0

    def features(
        self, rows: Integer[Tensor, " b"], tokens: Integer[Tensor, " s"]
    ) -> Float[Tensor, "1 c 1 bs"]:
        """Return the same ``tokens`` (0..P-1) of each image, as one feature map of one row."""
        where = rows[:, None] * self.directions.shape[1] + tokens
        found = self.directions.flatten(0, 1).index_select(0, where.flatten().to(self.device))
        return found.float().T[None, :, None]


def sample_tokens(views: Views, min_tokens: int, seed: int) -> SampledTokens:
    """Sample patch tokens of images and flipped images without replacement.

    The same number is sampled from each image, :data:`MAX_TOKENS` from all images together.

    Args:
        min_tokens: minimum number per image, for large collections.
    """
    height, width = views.clean.shape[-2:]
    each = min(max(min_tokens, MAX_TOKENS // len(views)), 2 * height * width)
    row_of = torch.arange(len(views)) if views.row_of is None else views.row_of.clone()
    local = (row_of >= 0).nonzero()[:, 0]
    row_of[local] = torch.arange(len(local))

    def maps() -> Iterator[list[tuple[int, Tensor]]]:
        for numbers, both in zip(local.split(64), views.chunks(64), strict=True):
            codes = both
            if views.projection:
                codes = views.project(both.flatten(0, 1)).unflatten(0, (-1, 2))
            yield from ([pair] for pair in zip(numbers.tolist(), codes, strict=True))

    def sample(one: list[tuple[int, Tensor]]) -> Float16[Tensor, "p c"]:
        ((number, both),) = one
        random = generator("positions", seed, number)
        tokens = torch.randperm(2 * height * width, generator=random)[:each]
        found = both.transpose(0, 1).flatten(1).index_select(1, tokens.to(both.device)).T
        return F.normalize(found.to(views.device).float(), dim=1).half()

    with lanes(views.device) as threads:
        sampled = list(overlapped(maps(), sample, threads))
    no_images = torch.empty(0, each, 0, dtype=torch.float16)
    return SampledTokens(torch.stack(sampled) if sampled else no_images, row_of)


@dataclass(frozen=True)
class MaskTable:
    """All masks of a collection, each with the direction of its features, its area and its image.

    The recipe "orthogonal" and the class tree are computed from this table. It takes about a
    hundredth of the memory of the feature maps.

    Attributes:
        features: direction of the sum of the features over the pixels of each mask, of length 1.
        areas: pixels of each mask.
        images: number of the image of each mask.
        numbers: number of each mask in its image, 1..Z.
    """

    features: Float[Tensor, "m c"]
    areas: Float[Tensor, " m"]
    images: Integer[Tensor, " m"]
    numbers: Integer[Tensor, " m"]

    def __len__(self) -> int:
        return len(self.features)

    def to(self, device: torch.device) -> MaskTable:
        """Move the table to a device."""
        return MaskTable(*(getattr(self, field.name).to(device) for field in fields(self)))


def mask_rows(
    features: Float[Tensor, "c h w"], masks: Integer[Tensor, "H W"]
) -> Float[Tensor, "z c+2"]:
    """Return one row per mask of an image: direction of its features, area in pixels, and number.

    Each patch token is weighted by the share of its pixels that lies in the mask.

    Args:
        features: feature map, averaged over the image and its flipped image.
        masks: mask proposals at image size, 0 = ignore.

    Examples:
        >>> masks = torch.tensor([[0, 3], [0, 3]])
        >>> mask_rows(torch.tensor([[[2.0, 4.0]], [[0.0, 3.0]]]), masks).tolist()
        [[0.800000011920929, 0.6000000238418579, 2.0, 3.0]]
    """
    numbers = torch.bincount(masks.flatten().long()).nonzero()[:, 0]
    numbers = numbers[numbers > 0]
    inside = (masks == numbers.view(-1, 1, 1)).float()
    share = F.adaptive_avg_pool2d(inside, (features.shape[1], features.shape[2]))
    directions = F.normalize(share.flatten(1) @ features.flatten(1).T, dim=1)
    return torch.cat([directions, inside.sum((1, 2))[:, None], numbers[:, None]], 1)


def table_of(rows: Iterable[Float[Tensor, "_ columns"]], counts: Sequence[int]) -> MaskTable:
    """Concatenate the :func:`mask_rows` of the images of this process.

    Args:
        counts: masks per image. They allow filling one preallocated table; with a million images
            memory does not hold two.
    """
    rows = iter(rows)
    first = next(rows)
    table = first.new_empty(sum(counts), first.shape[1])
    for target, source in zip(table.split(list(counts)), chain([first], rows), strict=True):
        target.copy_(source)
    images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(table.device)
    return MaskTable(table[:, :-EXTRA_COLUMNS], table[:, -2].clone(), images, table[:, -1].long())


def mask_table(views: Views, masks: ImageArrays) -> MaskTable:
    """Build the table of the masks of this process from its feature maps.

    Args:
        masks: mask proposals (H, W) of each image at image size, 0 = ignore.
    """

    def rows(image: list[int]) -> Tensor:
        with threads.turn:
            features = views.flip_average(image[0])
            return mask_rows(features, masks.take(torch.tensor(image))[0].to(features.device))

    # On the same number of threads as FeatureCache.compute, because the last bits depend on it.
    with lanes(views.device) as threads:
        found = list(overlapped(([image] for image in range(len(views.clean))), rows, threads))
    return table_of(found, [len(rows) for rows in found])


def gather_table(table: MaskTable, max_masks: int, seed: int = 0) -> MaskTable:
    """Return the masks of all processes, at most ``max_masks``; the result is the same in each.

    Beyond the maximum the masks are sampled with ``seed``. Masks of one image keep a common image
    number, which differs from the one in ``table``.
    """
    share = -(-max_masks // processes())
    if len(table) > share:
        random = generator("masks", seed, rank())
        sample = torch.randperm(len(table), generator=random)[:share].sort().values
        sample = sample.to(table.features.device)
        table = MaskTable(*(getattr(table, field.name)[sample] for field in fields(table)))
    if processes() == 1:
        return table
    parts = gather([getattr(table, field.name).cpu() for field in fields(table)])
    first = 0
    for part in parts:
        part[2] = part[2] + first
        first = int(part[2].max()) + 1 if len(part[2]) else first
    device = table.features.device
    return MaskTable(*(torch.cat(column).to(device) for column in zip(*parts, strict=True)))
