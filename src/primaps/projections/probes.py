"""Probes on codes: cluster centres found without labels, a linear classifier fitted to labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from primaps.em import batches
from primaps.progress import Report, silent
from primaps.projections.projection import Projection
from primaps.projections.sampling import Features, draw, finite
from primaps.prototypes import principal_directions


def fit_clusters(
    features: Features,
    projection: Projection,
    classes: int,
    positions: int = 20_000,
    iterations: int = 50,
    seed: int = 0,
    report: Report = silent,
) -> Projection:
    """The cluster probe: K centres that maximise the mean largest cosine of codes (Eq. 9).

    The papers descend its gradient. Codes are few numbers, so here it is spherical k-means on
    random positions. It starts from the principal directions of the codes, as prototypes of
    features do.

    Returns:
        The same projection with ``clusters`` (K, D) of length 1.

    Raises:
        ValueError: K exceeds twice the rank that the codes can have, or codes with NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    codes = _some_codes(features, projection, positions, generator)
    start = principal_directions(codes.T[None, :, :, None], classes).to(codes.device)
    unit = F.normalize(codes, dim=1)
    centres, loss = spherical_kmeans(unit, F.normalize(start, dim=1), iterations)
    report("clusters", 1, 1, {"loss": loss})
    return Projection(projection.codes, centres, projection.name, projection.about)


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
    """Codes at random positions of all images, or of ``count`` of the images."""
    images = torch.randperm(features.shape[0], generator=generator)[:count]
    found = []
    for index in images.split(32):
        codes = projection(draw(features, index, generator)).flatten(2)
        each = min(codes.shape[2], -(-count // len(images)))
        place = torch.rand(len(index), codes.shape[2], generator=generator).topk(each).indices
        rows = torch.arange(len(index))[:, None]
        found.append(codes.transpose(1, 2)[rows, place].flatten(0, 1))
    return torch.cat(found)[:count]


def fit_linear(
    features: Features,
    projection: Projection,
    labels: Integer[Tensor, "n H W"],
    classes: int,
    steps: int = 200,
    batch_size: int = 8,
    learning_rate: float = 0.005,
    ignore_index: int = 255,
    seed: int = 0,
    report: Report = silent,
) -> nn.Linear:
    """The linear probe: a classifier of codes fitted to labels, to tell what the codes contain.

    Logits are upsampled to the labels' size, as predictions are.
    """
    generator = torch.Generator().manual_seed(seed)
    sample = projection(features[torch.tensor([0]), torch.tensor([0])].float())
    probe = nn.utils.skip_init(nn.Linear, sample.shape[1], classes, device=sample.device)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    optimizer = torch.optim.Adam(probe.parameters(), lr=learning_rate)
    for step, index in enumerate(batches(features.shape[0], batch_size, steps, generator), 1):
        codes = projection(features[index, torch.zeros_like(index)].float())
        logits = probe(codes.movedim(1, -1)).movedim(-1, 1)
        logits = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
        target = labels[index].to(logits.device).long()
        loss = F.cross_entropy(logits, target, ignore_index=ignore_index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report("linear", step, steps, {"loss": finite(loss, step)})
    return probe.requires_grad_(False)
