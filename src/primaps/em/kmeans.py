"""The baseline, and where EM starts: spherical k-means (Eq. 9) from principal components."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from primaps.config import Config
from primaps.data import chunks
from primaps.em.loop import optimize
from primaps.em.prototypes import Prototypes
from primaps.em.recorder import Recorder
from primaps.features.positions import Positions
from primaps.features.views import Views, batch_indices
from primaps.utils.distributed import total
from primaps.utils.errors import InputError
from primaps.utils.parallel import lane_count, lanes, one_thread, overlapped
from primaps.utils.seeding import generator

POSITIONS = 64
"""Of each image, that a step of a start of the recipe "orthogonal" looks at: all of them give no
better classes."""


def moments(
    chunks: Iterable[Float[Tensor, "_ c h w"]],
) -> tuple[int, Float[Tensor, " c"], Float[Tensor, "c c"]]:
    """Number of features, their sum, and the sum of their outer products, in double precision.

    Sums of several collections add up to those of all.

    Examples:
        >>> count, total, second = moments([torch.ones(1, 2, 3, 3)])
        >>> count, total.tolist(), second.tolist()
        (9, [9.0, 9.0], [[9.0, 9.0], [9.0, 9.0]])
    """
    count, total, second = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for chunk in chunks:
        rows = chunk.permute(0, 2, 3, 1).reshape(-1, chunk.shape[1]).double()
        count += len(rows)
        total, second = total.to(rows) + rows.sum(0), second.to(rows) + rows.T @ rows
    return count, total, second


def principal_directions(
    count: int, total: Float[Tensor, " c"], second: Float[Tensor, "c c"], k: int
) -> Float[Tensor, "k c"]:
    """The first ``k`` principal components of the centered features: where the prototypes start.

    Signs are fixed: the entry of largest magnitude is positive. Beyond the number of components
    the components follow again with the opposite sign.

    Args:
        count, total, second: :func:`moments` of the features.

    Raises:
        InputError: ``k`` exceeds twice the rank that the features can have, or NaN.
    """
    rank = min(count - 1, len(total))
    if k > 2 * rank:
        raise InputError(
            f"{k} classes cannot be started from {count} features of {len(total)} channels: "
            "use fewer classes, more images or a larger size"
        )
    if not torch.isfinite(second).all():
        raise InputError("features contain NaN or infinity")
    mean = total / count
    _, vectors = torch.linalg.eigh(second / count - mean[:, None] * mean)
    directions = vectors.flip(1).T[: min(k, rank)]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * largest.sign()
    return torch.cat([directions, -directions])[:k].float()


def kmeans_loss(cosines: Float[Tensor, "b k h w"]) -> Float[Tensor, ""]:
    """Eq. 9: minus the mean over positions of the largest cosine to a prototype."""
    return -cosines.amax(1).mean()


def pca_start(views: Views, classes: int) -> Prototypes:
    """The first principal components of the clean features of all images, as prototypes."""
    count, summed, second = moments(views.project(chunk[:, 0]) for chunk in views.chunks())
    number = total(torch.tensor([count], device=views.device))
    directions = principal_directions(int(number), total(summed), total(second), classes)
    return Prototypes(directions).to(views.device)


def kmeans_step(
    views: Views | Positions, prototypes: Prototypes, number: int, batch_size: int, seed: int
) -> Float[Tensor, ""]:
    """Eq. 9 over those images of the batch of a step that this process has, and its gradient.

    Args:
        views: the step looks at all of each image of its batch, or at :data:`POSITIONS` of these
            positions.
        number: of the step, from 1; with the seed it decides everything random.
    """
    index = batch_indices(number, len(views), batch_size, "k-means", seed)
    random = generator("k-means mirror", seed, number)
    rows, here = views.here(index)
    if not len(rows):
        return torch.zeros((), device=views.device)
    if isinstance(views, Positions):
        cells = torch.randperm(views.directions.shape[1], generator=random)[:POSITIONS]
        features = views.features(rows, cells)
    else:
        flip = torch.rand(len(index), generator=random) < 0.5
        features = views.features(rows, flip[here])
    cosines = prototypes(features) / features.norm(dim=1, keepdim=True)
    loss = kmeans_loss(cosines) * (len(rows) / len(index))
    loss.backward()
    return loss.detach()


def fit_kmeans(
    views: Views,
    start: Prototypes,
    steps: int,
    config: Config,
    recorder: Recorder | None = None,
) -> Prototypes:
    """Spherical k-means by stochastic gradient descent on Eq. 9.

    Args:
        steps: of Adam.
        config: batch size, learning rate and seed are used.

    Returns:
        Prototypes with scale 1: the baseline of the paper, and where EM starts.
    """
    prototypes = copy.deepcopy(start)
    prototypes.scale.requires_grad_(False)

    def step(number: int) -> dict[str, Tensor]:
        return {"loss": kmeans_step(views, prototypes, number, config.batch_size, config.seed)}

    modules = nn.ModuleDict({"trained": prototypes})
    optimize("k-means", modules, step, steps, config.learning_rate, recorder or Recorder())
    prototypes.scale.requires_grad_()
    return prototypes


def fit_starts(
    positions: Positions,
    start: Prototypes,
    seeds: Sequence[int],
    steps: int,
    config: Config,
    recorder: Recorder | None = None,
) -> list[Prototypes]:
    """Several runs of k-means from the same start, side by side, that see other batches.

    Each is small, so on a CPU every core takes a share of the runs.

    Args:
        seeds: one for each run.
        steps: of Adam, in each of them.
        config: batch size and learning rate are used.
    """
    runs = [copy.deepcopy(start) for _ in seeds]
    for run in runs:
        run.scale.requires_grad_(False)
    modules = nn.ModuleDict({"trained": nn.ModuleList(runs)})
    share = -(-len(seeds) // lane_count(positions.device))
    with lanes(positions.device) as threads, one_thread():

        def step(number: int) -> dict[str, Tensor]:
            def work(some: list[tuple[Prototypes, int]]) -> list[Tensor]:
                size = config.batch_size
                return [kmeans_step(positions, run, number, size, seed) for run, seed in some]

            shares = chunks(list(zip(runs, seeds, strict=True)), share)
            losses = [each for some in overlapped(shares, work, threads) for each in some]
            return {"loss": torch.stack(losses).mean()}

        optimize("k-means", modules, step, steps, config.learning_rate, recorder or Recorder())
    return runs
