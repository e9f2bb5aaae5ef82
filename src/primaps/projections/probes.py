"""Probes on codes: cluster centres found without labels, a linear classifier fitted to labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Integer
from torch import Tensor, nn

from primaps.em import batches
from primaps.progress import Report, silent
from primaps.projections.projection import Projection
from primaps.projections.sampling import Features, draw, finite
from primaps.prototypes import kmeans_loss, principal_directions

# Codes of so many images give the principal directions that the clusters start from.
_START_IMAGES = 2975


def fit_clusters(
    features: Features,
    projection: Projection,
    classes: int,
    steps: int = 500,
    batch_size: int = 32,
    learning_rate: float = 0.005,
    seed: int = 0,
    report: Report = silent,
) -> Projection:
    """The cluster probe: K centres of codes by cosine, with the k-means loss of Eq. 9.

    They start from the principal directions of the codes, as prototypes of features do.

    Returns:
        The same projection with ``clusters`` (K, D) of length 1.
    """
    generator = torch.Generator().manual_seed(seed)
    count = features.shape[0]
    some = torch.randperm(count, generator=generator)[:_START_IMAGES]
    start = [projection(features[i, torch.zeros_like(i)].float()).half() for i in some.split(64)]
    centres = nn.Parameter(principal_directions(torch.cat(start), classes))
    optimizer = torch.optim.Adam([centres], lr=learning_rate)
    for step, index in enumerate(batches(count, batch_size, steps, generator), 1):
        codes = F.normalize(projection(draw(features, index, generator)), dim=1)
        cosines = torch.einsum("kd,bdhw->bkhw", F.normalize(centres, dim=1), codes)
        loss = kmeans_loss(cosines)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report("clusters", step, steps, {"loss": finite(loss, step)})
    clusters = F.normalize(centres.detach(), dim=1)
    return Projection(projection.codes, clusters, projection.name, projection.about)


def fit_linear(
    features: Features,
    projection: Projection,
    labels: Integer[Tensor, "n H W"],
    classes: int,
    steps: int = 500,
    batch_size: int = 32,
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
