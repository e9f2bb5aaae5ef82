"""Shifts of STEGO for backbones and images for which nobody has tuned them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from primaps.config import Config
from primaps.em.kmeans import fit_kmeans, pca_init
from primaps.em.training import Recorder
from primaps.features.training_data import ImageArrays, Views
from primaps.projections.sampling import batches, descriptors, nearest_images
from primaps.projections.stego import Pairs, StegoSettings, centered, correlation, draw_points
from primaps.utils.progress import ProgressCallback, silent

STEPS = 184
"""Of the k-means: those of the baseline on Cityscapes."""
BATCHES = 16
FACTOR, LARGEST_SHARE = 2.0, 0.7


def automatic_shifts(
    features: ImageArrays,
    settings: StegoSettings,
    classes: int,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> Pairs:
    """Shifts b from K and from the classes that the k-means baseline (Eq. 9) finds.

    The paper tunes b by hand for each backbone and data set. What b decides is which share of the
    point pairs attract: those whose centered correlation is above it. With too many, everything
    attracts everything in the end; with too few, classes fall into pieces. So we fix the shares,
    and b is the quantile of the centered correlations in 16 batches.

    - Random pairs of images: 1 / K, the chance that two points are of the same class if classes
      are equally large.
    - Inside an image, and between nearest neighbors: twice the chance that the baseline has both
      points in the same class, at most 0.7. In street scenes few pairs of points are alike, in
      aerial ones most. The paper wants these pairs to attract, hence twice; both constants were
      found by trying out.

    Args:
        features: of N images and their flipped images; N at least 2.
        classes: K.
        progress: told about the k-means.

    Raises:
        InputError: more than twice as many classes as channels, or features with NaN.
    """
    images = descriptors(features)
    views = Views(features, device=images.device)
    recorder = Recorder(progress=progress)
    start = pca_init(views, classes)
    prototypes = fit_kmeans(views, start, STEPS, Config(classes, seed=seed), recorder)
    directions = F.normalize(prototypes.direction.detach(), dim=1)
    generator = torch.Generator().manual_seed(seed)
    neighbors = nearest_images(images, settings.neighbors).cpu()
    values: list[list[Tensor]] = [[], [], []]
    alike: list[list[Tensor]] = [[], []]
    for index in batches(len(features), settings.batch_size, BATCHES, "shifts", seed):
        one, near, others = draw_points(features, index, neighbors, settings, generator)
        found, found_near = ((directions @ points).argmax(1) for points in (one, near))
        for kind, other in enumerate((one, near, one[others[0]])):
            values[kind].append(centered(correlation(one, other)).flatten())
        for kind, labels in enumerate((found, found_near)):
            alike[kind].append((found[:, :, None] == labels[:, None]).float().mean())
    chances = (torch.stack(each).mean().item() for each in alike)
    shares = (*(min(LARGEST_SHARE, FACTOR * chance) for chance in chances), 1 / classes)
    return Pairs(*(_quantile(v, 1 - share) for v, share in zip(values, shares, strict=True)))


def _quantile(values: list[Tensor], share: float) -> float:
    every = torch.cat(values)
    return every.kthvalue(max(1, round(share * len(every)))).values.item()
