"""Layout of the output of a network: which of its numbers are the features of which pixels.

Networks return tokens (B, N, C), with special tokens before or after the patch tokens, or maps
(B, C, h, w) or (B, h, w, C). A network is measured by one probe before it is used. Documentation,
configurations and names of classes are not relied on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from primaps.utils.errors import PrimapsError, reason

SQUARE, OBLONG = (3, 3), (4, 3)
"""Rows and columns of the images of the probe, in units."""
UNITS = (32, 64)
"""Sides of a unit in pixels, which are multiples of the stride of most hierarchical networks."""
SAME = 0.02
"""Maximum relative difference of two runs on the same images; rounding in bfloat16 stays below."""
CORNERS = 3
"""Minimum number of the four corners whose change must be largest in the features there."""


class LayoutError(PrimapsError, ValueError):
    """The output of a network is not understood."""


@dataclass(frozen=True)
class Layout:
    """Layout of the output of a network.

    Attributes:
        stride: distance between features in pixels, the same in both directions.
        form: ``tokens`` (B, N, C) in rows, ``map`` (B, C, h, w), or ``channels last`` (B, h, w, C).
        leading: number of tokens before the patch tokens.
        trailing: number of tokens after the patch tokens.
    """

    stride: int
    form: Literal["tokens", "map", "channels last"] = "tokens"
    leading: int = 0
    trailing: int = 0

    def feature_map(
        self, output: Tensor, images: Float[Tensor, "b 3 H W"]
    ) -> Float[Tensor, "b c h w"]:
        """Return the output of a network for images as a feature map.

        Raises:
            LayoutError: the output has another shape than at the probe.

        Examples:
            >>> output = torch.arange(7.0).view(1, 7, 1)  # a class token and 2 x 3 patches
            >>> images = torch.zeros(1, 3, 28, 42)
            >>> Layout(14, leading=1).feature_map(output, images).tolist()
            [[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]]
        """
        batch, h, w = len(images), *(side // self.stride for side in images.shape[-2:])
        if self.form == "tokens":
            expected = [batch, self.leading + h * w + self.trailing, *output.shape[2:3]]
        elif self.form == "map":
            expected = [batch, *output.shape[1:2], h, w]
        else:
            expected = [batch, h, w, *output.shape[3:4]]
        if list(output.shape) != expected:
            raise LayoutError(
                f"the network returns {tuple(output.shape)} for images {tuple(images.shape)}; at "
                f"stride {self.stride} this is not a feature map of {h} x {w} for each image"
            )
        if self.form == "map":
            return output
        if self.form == "channels last":
            return output.permute(0, 3, 1, 2)
        patches = output[:, self.leading : self.leading + h * w]
        return patches.transpose(1, 2).reshape(batch, -1, h, w)


@torch.no_grad()
def find_layout(
    network: Callable[[Tensor], Tensor],
    patch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Layout:
    """Find the layout of the output of a network by a probe on small images.

    The network gets square and oblong images of noise in batches. Its output must have the shape
    of tokens or of a map at one stride. An image alone must have the same output in a second run.
    If the pixels in a corner of an image change, the features of this corner must change most. The
    number of special tokens follows from this.

    Args:
        network: maps normalized images (B, 3, H, W) to its output.
        patch_size: side of a patch in pixels; None if it is not known.
        dtype: type of the images.

    Raises:
        LayoutError: the output is not understood.

    Examples:
        >>> find_layout(torch.nn.AvgPool2d(16))
        Layout(stride=16, form='map', leading=0, trailing=0)
    """
    units = [patch_size] if patch_size is not None and patch_size >= 8 else []
    problem: LayoutError | None = None
    for unit in [*units, *(one for one in UNITS if one not in units)]:
        try:
            with torch.random.fork_rng(devices=[]):  # a network that samples uses no seed of ours
                return _probed(network, unit, dtype)
        except LayoutError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _probed(network: Callable[[Tensor], Tensor], unit: int, dtype: torch.dtype) -> Layout:
    """Find the layout by images whose sides are multiples of ``unit``."""
    generator = torch.Generator().manual_seed(0)

    def noise(count: int, rows: int, columns: int) -> Tensor:
        return torch.randn(count, 3, rows * unit, columns * unit, generator=generator).to(dtype)

    square, oblong = noise(2, *SQUARE), noise(1, *OBLONG)
    output = _run(network, square)
    if _difference(output[1:], _run(network, square[1:])) > SAME:
        raise LayoutError(
            "the network returns other features for the same images in a second run (random "
            "masks, shuffled tokens, or statistics of the batch)"
        )
    before = _run(network, oblong)
    form, stride, special = _shape(output, before, unit)
    changed = oblong.repeat(4, 1, 1, 1)
    h, w = (side // stride for side in oblong.shape[-2:])
    for image, (y, x) in zip(changed, _corners(h, w), strict=True):
        cell = image[:, y * stride : (y + 1) * stride, x * stride : (x + 1) * stride]
        cell.copy_(torch.randn(cell.shape, generator=generator))
    after = _run(network, changed)
    if form == "tokens":
        leading = _leading(_changes(before, after), h, w, special)
        return Layout(stride, "tokens", leading, special - leading)
    layout = Layout(stride, form)
    maps = [layout.feature_map(before, oblong), layout.feature_map(after, changed)]
    _check_map(_changes(*(one.flatten(2).transpose(1, 2) for one in maps)), h, w)
    return layout


def _run(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Run the network and check what does not depend on its layout."""
    size = "x".join(str(side) for side in images.shape[-2:])
    try:
        output = network(images)
    except Exception as error:  # networks raise errors of many types
        raise LayoutError(
            f"the network cannot process images of {size} pixels ({reason(error)})"
        ) from error
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise LayoutError(
            f"the network returns a {type(output).__name__} instead of a tensor of features"
        )
    if not output.ndim or len(output) != len(images):
        raise LayoutError(
            f"the network returns {tuple(output.shape)} for a batch of {len(images)} images"
        )
    if not bool(output.isfinite().all()):
        raise LayoutError("the network returns features with NaN or infinity")
    return output.float()


def _difference(one: Tensor, other: Tensor) -> float:
    """Return the difference of two outputs, relative to the first one."""
    if one.shape != other.shape:
        return math.inf
    norm = float(one.double().norm())
    return float((one.double() - other.double()).norm()) / norm if norm else 0.0


def _shape(
    square: Tensor, oblong: Tensor, unit: int
) -> tuple[Literal["tokens", "map", "channels last"], int, int]:
    """Return the form, the stride, and the number of special tokens."""
    shapes = f"{tuple(square.shape)} and {tuple(oblong.shape)}"
    sizes = " and ".join(f"{h * unit}x{w * unit}" for h, w in (SQUARE, OBLONG))
    unknown = LayoutError(
        f"the network returns {shapes} for images of {sizes} pixels, which is neither a token for "
        "each patch nor a feature map"
    )
    if square.ndim != oblong.ndim or square.ndim not in (3, 4):
        raise unknown
    if square.ndim == 3:
        cells = math.prod(SQUARE)
        more = oblong.shape[1] - square.shape[1]
        factor = math.isqrt(max(0, more) // (math.prod(OBLONG) - cells))  # features per unit side
        special = square.shape[1] - cells * factor**2
        fits = factor and unit % factor == 0 and square.shape[2] == oblong.shape[2]
        if fits and special >= 0 and more == (math.prod(OBLONG) - cells) * factor**2:
            return "tokens", unit // factor, special
        raise unknown
    forms: tuple[tuple[Literal["map", "channels last"], int], ...]
    forms = (("map", 1), ("channels last", 3))
    for form, channels in forms:
        sides = [
            [one.shape[axis] for axis in (1, 2, 3) if axis != channels] for one in (square, oblong)
        ]
        factor = sides[0][0] // SQUARE[0]
        expected = [[factor * side for side in grid] for grid in (SQUARE, OBLONG)]
        whole = factor and unit % factor == 0 and square.shape[channels] == oblong.shape[channels]
        if whole and sides == expected:
            return form, unit // factor, 0
    raise unknown


def _corners(h: int, w: int) -> list[tuple[int, int]]:
    """Return the row and column of the cell in each corner."""
    return [(y, x) for y in (0, h - 1) for x in (0, w - 1)]


def _changes(before: Float[Tensor, "1 n c"], after: Float[Tensor, "4 n c"]) -> Float[Tensor, "4 n"]:
    """Return how much each token changes with each corner, compared with the other corners.

    Some tokens change with everything: class and register tokens, and patches that a ViT uses as
    registers. The factor, between 0 and 1, makes them small.

    Raises:
        LayoutError: a corner changes nothing.
    """
    change = (after.double() - before.double()).norm(dim=-1)
    if not bool(change.sum(1).all()):
        raise LayoutError("the network returns features that do not depend on the pixels")
    return change * change / change.sum(0).clamp_min(torch.finfo(torch.float64).tiny)


def _leading(changes: Float[Tensor, "4 n"], h: int, w: int, special: int) -> int:
    """Return how many special tokens come before the patch tokens."""
    strongest = changes.argmax(1)
    cells = torch.tensor([y * w + x for y, x in _corners(h, w)])
    for leading in range(special + 1):
        if int((strongest == leading + cells).sum()) >= CORNERS:
            return leading
    raise LayoutError(
        "the network returns tokens that do not follow the patches of the image in rows: a change "
        "in a corner of the image changes others most"
    )


def _check_map(changes: Float[Tensor, "4 n"], h: int, w: int) -> None:
    """Check that the largest change is in the corner, or next to it (convolutions overlap)."""
    strongest = changes.argmax(1)
    rows, columns = strongest // w, strongest % w
    corners = torch.tensor(_corners(h, w))
    near = ((rows - corners[:, 0]).abs() <= 1) & ((columns - corners[:, 1]).abs() <= 1)
    if int(near.sum()) < CORNERS:
        raise LayoutError(
            "the network returns a map that does not follow the image: a change in a corner of the "
            "image changes other features most"
        )
