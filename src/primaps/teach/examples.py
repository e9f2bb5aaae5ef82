"""From annotations and feature maps to the examples that are learned from.

Regions count by the patch tokens that they cover: a token counts by the share of its pixels that is
annotated, and a region as one answer. Points and scribbles count as the tokens under them. A point
also counts as its mask proposal if that is small and its tokens are similar.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from primaps.proposals.principal_masks import propose
from primaps.teach.annotations import (
    UNLABELED,
    Annotation,
    annotation_region,
    expand_label_maps,
    paint_annotations,
    scaled,
)

POINTS = ("point", "scribble")
MIN_COVERAGE = 0.25
"""Minimum share of a patch token that a region covers; less counts only if the region has no other
token."""
BOX_WEIGHT = 0.25
"""Weight of a box, relative to that of a mask: part of a box is background."""
LABEL_MAP_POWER = 0.5
"""A class of a label map that covers n tokens has the total weight n ** LABEL_MAP_POWER. Any other
region has the total weight 1, whatever its size: it is one answer, and its tokens are alike."""
PROPOSAL_WEIGHT = 0.5
"""Weight of all tokens of the proposal of a point together, relative to the token under it."""
PROPOSAL_SHARE = 0.1
"""Maximum share of an image that the proposal of a point may cover."""
PROPOSAL_COSINE = 0.6
"""Minimum mean cosine similarity of the proposal of a point with the token under it."""


@dataclass(frozen=True)
class TokenExamples:
    """Annotated patch tokens.

    Attributes:
        features: feature of each example.
        classes: class of each example: the one that it has, or for ``negative`` examples the one
            that it does not have.
        weights: weight of each example.
        images: number of the image of each example.
        negative: whether the example does not have the class.
    """

    features: Float[Tensor, "n c"]
    classes: Integer[Tensor, " n"]
    weights: Float[Tensor, " n"]
    images: Integer[Tensor, " n"]
    negative: Integer[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, rows: Tensor) -> TokenExamples:
        """Return the examples at ``rows``."""
        return TokenExamples(
            self.features[rows], self.classes[rows], self.weights[rows], self.images[rows],
            self.negative[rows],
        )  # fmt: skip

    @property
    def positives(self) -> TokenExamples:
        """Examples that have their class."""
        return self[self.negative == 0]

    @property
    def negatives(self) -> TokenExamples:
        """Examples that do not have their class."""
        return self[self.negative == 1]

    @staticmethod
    def join(parts: Sequence[TokenExamples]) -> TokenExamples:
        """Return the examples of several images, which are numbered in their order."""
        return TokenExamples(
            torch.cat([part.features for part in parts]),
            torch.cat([part.classes for part in parts]),
            torch.cat([part.weights for part in parts]),
            torch.cat([torch.full_like(part.images, n) for n, part in enumerate(parts)]),
            torch.cat([part.negative for part in parts]),
        )


def token_examples(
    annotations: Iterable[Annotation],
    names: Sequence[str],
    features: Float[Tensor, "c h w"],
    proposals: bool = True,
) -> TokenExamples:
    """Return the annotated tokens of an image.

    Args:
        annotations: annotations of the image without contradictions, see
            :func:`primaps.teach.annotations.resolve_annotations`; answers without a class are
            skipped.
        names: names of the classes 0..K-1.
        features: feature map of the image.
        proposals: whether points also count as their mask proposals.

    Examples:
        >>> features = torch.eye(4).view(4, 2, 2)
        >>> left = Annotation("a", None, "polygon", "sky", [[[0, 0], [8, 0], [8, 16], [0, 16]]],
        ...                   (16, 16))
        >>> found = token_examples([left], ["sky"], features)
        >>> found.features.argmax(1).tolist(), round(float(found.weights.sum()), 3)
        ([0, 2], 1.0)
    """
    grid = (features.shape[1], features.shape[2])
    index = {name: k for k, name in enumerate(names)}
    masks: Tensor | None = None
    tokens: list[Tensor] = []
    classes: list[int] = []
    weights: list[Tensor] = []
    negative: list[int] = []

    def add(places: Tensor, k: int, weight: Tensor, rejected: bool) -> None:
        tokens.append(places)
        weights.append(weight)
        classes.extend([k] * len(places))
        negative.extend([int(rejected)] * len(places))

    listed = [(given, one) for given in annotations for one in expand_label_maps([given])]
    for given, one in listed:
        if one.answer != "class" or (k := index.get(one.name or "")) is None:
            continue
        places, weight = region_tokens(one, grid)
        power = LABEL_MAP_POWER if given.kind == "label_map" else 0.0
        weight = weight * float(weight.sum()) ** (power - 1)
        weight = BOX_WEIGHT * weight if one.kind == "box" else weight
        add(places, k, weight, one.negative)
        if one.kind == "point" and proposals and not one.negative:
            masks = propose(features[None])[0] if masks is None else masks
            grown = _proposal(masks, int(places[0]), features)
            if len(grown):
                add(grown, k, torch.full((len(grown),), PROPOSAL_WEIGHT / len(grown)), False)
    if not tokens:
        empty = torch.zeros(0, dtype=torch.long)
        return TokenExamples(features.new_zeros(0, len(features)), empty, torch.zeros(0), empty,
                             empty)  # fmt: skip
    flat = torch.cat(tokens)
    labels = torch.tensor(classes)
    return TokenExamples(
        features.flatten(1).T[flat], labels, torch.cat(weights), torch.zeros_like(labels),
        torch.tensor(negative),
    )  # fmt: skip


def region_tokens(
    annotation: Annotation, grid: tuple[int, int]
) -> tuple[Integer[Tensor, " n"], Float[Tensor, " n"]]:
    """Return the tokens of an annotation, row by row, and their weights.

    Args:
        annotation: annotation with a region; not a label map.
        grid: height and width of the token grid.

    Examples:
        >>> half = Annotation("a", None, "mask", "sky", {"size": [2, 4], "counts": "044"}, (2, 4))
        >>> region_tokens(half, (1, 4))
        (tensor([0, 1]), tensor([1., 1.]))
    """
    left, top, region = annotation_region(annotation)
    height, width = annotation.size
    rows = overlap(top, region.shape[0], height, grid[0])
    columns = overlap(left, region.shape[1], width, grid[1])
    area = (height / grid[0]) * (width / grid[1])
    covered = torch.from_numpy(rows @ region.astype(np.float64) @ columns.T / area).flatten()
    touched = covered > 1e-9
    if annotation.kind in POINTS:
        if annotation.kind == "point":  # its pixel may lie on the border of two tokens
            touched = covered == covered.max()
        return touched.nonzero()[:, 0], torch.ones(int(touched.sum()))
    if bool((covered >= MIN_COVERAGE).any()):
        touched = covered >= MIN_COVERAGE
    return touched.nonzero()[:, 0], covered[touched].clamp_max(1.0).float()


def overlap(first: int, count: int, length: int, tokens: int) -> Float[np.ndarray, "t n"]:
    """Return the length that each token of a line shares with each of ``count`` pixels.

    Args:
        first: first pixel.
        count: number of pixels.
        length: length of the line in pixels.
        tokens: number of tokens on the line.

    Examples:
        >>> overlap(1, 2, 4, 2).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    ends = np.arange(tokens + 1) * length / tokens
    pixels = first + np.arange(count)
    low = np.maximum(ends[:-1, None], pixels)
    high = np.minimum(ends[1:, None], pixels + 1)
    return np.clip(high - low, 0, None)


def pixel_labels(
    annotations: Sequence[Annotation], names: Sequence[str], size: tuple[int, int]
) -> Integer[np.ndarray, "h w"]:
    """Return the class of every annotated pixel at the size of a scaled image, -1 elsewhere.

    Boxes are left out, because part of them is background.

    Args:
        annotations: annotations of an image; later ones lie on top.
        names: names of the classes 0..K-1.
        size: height and width of the scaled image.
    """
    exact = [one for one in annotations if one.kind != "box" and one.answer == "class"]
    if not exact:
        return np.full(size, UNLABELED, np.int32)
    return paint_annotations([scaled(one, *size) for one in exact], names, *size)


def _proposal(masks: Integer[Tensor, "h w"], token: int, features: Tensor) -> Tensor:
    """Return the other tokens of the proposal of a token, or none if it is large or uncertain."""
    flat = masks.flatten()
    inside = (flat == flat[token]).nonzero()[:, 0]
    none = inside[:0]
    if int(flat[token]) == 0 or not 1 < len(inside) <= PROPOSAL_SHARE * len(flat):
        return none
    x = F.normalize(features.flatten(1).T[inside], dim=1)
    own = F.normalize(features.flatten(1)[:, token], dim=0)
    if float((x @ own).mean()) < PROPOSAL_COSINE:
        return none
    return inside[inside != token]
