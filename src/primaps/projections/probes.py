"""The cluster probe: centres of codes, found without labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from primaps.progress import Report, silent
from primaps.projections.projection import Projection
from primaps.projections.sampling import Features, draw


def fit_clusters(
    features: Features,
    projection: Projection,
    classes: int,
    positions: int = 20_000,
    restarts: int = 10,
    iterations: int = 50,
    seed: int = 0,
    report: Report = silent,
) -> Projection:
    """The cluster probe: K centres that maximise the mean largest cosine of codes (Eq. 9).

    The papers descend its gradient. Codes are few numbers, so here it is spherical k-means on
    random positions: from several k-means++ starts the one with the smallest loss is kept.

    Returns:
        The same projection with ``clusters`` (K, D) of length 1.

    Raises:
        ValueError: there are fewer positions than classes, or codes with NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    codes = _some_codes(features, projection, positions, generator)
    if not torch.isfinite(codes).all():
        raise ValueError("codes contain NaN or infinity")
    if len(codes) < classes:
        raise ValueError(f"{len(codes)} positions cannot form {classes} clusters")
    best, least = codes[:0], torch.inf
    for restart in range(1, restarts + 1):
        centres, loss = spherical_kmeans(codes, spread(codes, classes, generator), iterations)
        if loss < least:
            best, least = centres, loss
        report("clusters", restart, restarts, {"loss": least})
    return Projection(projection.codes, best, projection.name, projection.about)


def spread(
    codes: Float[Tensor, "n d"], classes: int, generator: torch.Generator
) -> Float[Tensor, "k d"]:
    """Start of k-means++: codes drawn with chances in proportion to their distance to those drawn.

    The distance is 1 - cosine, half the squared distance of vectors of length 1.
    """
    chosen = [int(torch.randint(len(codes), (1,), generator=generator))]
    distance = torch.full((len(codes),), torch.inf)
    for _ in range(classes - 1):
        distance = torch.minimum(distance, 1 - (codes @ codes[chosen[-1]]).cpu())
        chance = distance.clamp_min(1e-12)  # all may be alike
        chosen.append(int(torch.multinomial(chance, 1, generator=generator)))
    return codes[chosen]


def spherical_kmeans(
    codes: Float[Tensor, "n d"], centres: Float[Tensor, "k d"], iterations: int
) -> tuple[Float[Tensor, "k d"], float]:
    """Lloyd's algorithm with cosines, on codes of length 1.

    Returns:
        Centres of length 1 (those without a code stay) and the loss of Eq. 9, which no iteration
        increases.
    """
    for _ in range(iterations):
        nearest = (codes @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, codes)
        lengths = sums.norm(dim=1, keepdim=True)
        moved = torch.where(lengths > 0, sums / lengths.clamp_min(1e-12), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres, -(codes @ centres.T).amax(1).mean().item()


def _some_codes(
    features: Features, projection: Projection, count: int, generator: torch.Generator
) -> Float[Tensor, "n d"]:
    """Codes of length 1 at random positions of all images, or of ``count`` of the images."""
    images = torch.randperm(len(features), generator=generator)[:count]
    found = []
    for index in images.split(32):
        codes = projection(draw(features, index, generator)).flatten(2)
        each = min(codes.shape[2], -(-count // len(images)))
        place = torch.rand(len(index), codes.shape[2], generator=generator).topk(each).indices
        rows = torch.arange(len(index))[:, None]
        found.append(codes.transpose(1, 2)[rows, place].flatten(0, 1))
    return F.normalize(torch.cat(found)[:count], dim=1)
