"""Prototypes and spherical k-means (Eq. 9): the baseline, and the initialization of all recipes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from primaps.config import Config
from primaps.data import chunks
from primaps.em.training import Recorder, optimize
from primaps.features.training_data import SampledTokens, Views, batch_indices
from primaps.utils.distributed import total
from primaps.utils.errors import InputError
from primaps.utils.parallel import lane_count, lanes, one_thread, overlapped
from primaps.utils.seeding import generator

TOKENS_PER_STEP = 64
"""Patch tokens of each image that a step of a k-means restart reads. All tokens of an image give no
better classes."""


class Prototypes(nn.Module):
    """K class directions in feature space with one scale each: a 1x1 convolution without bias.

    The logit of class k at a patch token with feature f is
    ``scale_k * <direction_k / |direction_k|, f>``. With scale 1 the argmax is the class with the
    largest cosine similarity.

    Attributes:
        direction: (K, C), normalized in ``forward``.
        scale: (K,).
    """

    def __init__(self, direction: Float[Tensor, "k c"]) -> None:
        super().__init__()
        self.direction = nn.Parameter(direction.detach().clone())
        self.scale = nn.Parameter(torch.ones(len(direction), device=direction.device))

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        weight = self.scale[:, None] * F.normalize(self.direction, dim=1)
        return (weight @ features.flatten(2)).unflatten(2, features.shape[-2:])


def mask_classes(
    features: Float[Tensor, "m c"], direction: Float[Tensor, "k c"], scale: Float[Tensor, " k"]
) -> Integer[Tensor, " m"]:
    """Return the class of each mask: the prototype with the largest scaled cosine similarity.

    Examples:
        >>> mask_classes(torch.tensor([[0.6, 0.8]]), torch.eye(2), torch.tensor([2.0, 1.0]))
        tensor([0])
    """
    weight = scale[:, None] * F.normalize(direction, dim=1)
    return (features @ weight.to(features).T).argmax(1)


def moments(
    chunks: Iterable[Float[Tensor, "_ c h w"]],
) -> tuple[int, Float[Tensor, " c"], Float[Tensor, "c c"]]:
    """Return the number of features, their sum, and the sum of their outer products, in float64.

    Moments of several collections can be added.

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
    """Return the first ``k`` principal components of the centered features.

    The entry of largest magnitude of each component is positive. If ``k`` exceeds the number of
    components, the components follow again with opposite sign.

    Args:
        count, total, second: :func:`moments` of the features.

    Raises:
        InputError: ``k`` exceeds twice the maximum rank of the features, or they contain NaN.
    """
    rank = min(count - 1, len(total))
    if k > 2 * rank:
        raise InputError(
            f"{k} classes cannot be initialized from {count} features of {len(total)} channels: "
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


def pca_init(views: Views, classes: int) -> Prototypes:
    """Return the first principal components of the clean features of all images as prototypes."""
    count, summed, second = moments(views.project(chunk[:, 0]) for chunk in views.chunks())
    number = total(torch.tensor([count], device=views.device))
    directions = principal_directions(int(number), total(summed), total(second), classes)
    return Prototypes(directions).to(views.device)


def kmeans_loss(cosines: Float[Tensor, "b k h w"]) -> Float[Tensor, ""]:
    """Eq. 9: minus the mean over patch tokens of the largest cosine to a prototype."""
    return -cosines.amax(1).mean()


def kmeans_step(
    data: Views | SampledTokens, prototypes: Prototypes, number: int, batch_size: int, seed: int
) -> Float[Tensor, ""]:
    """Compute Eq. 9 and its gradient for those images of a batch that this process has.

    Args:
        data: feature maps, or sampled tokens, of which a step reads :data:`TOKENS_PER_STEP` per
            image.
        number: number of the step, from 1; with ``seed`` it determines all random numbers.
    """
    index = batch_indices(number, len(data), batch_size, "k-means", seed)
    random = generator("k-means mirror", seed, number)  # the text is part of the seed
    rows, local = data.local_rows(index)
    if not len(rows):
        return torch.zeros((), device=data.device)
    if isinstance(data, SampledTokens):
        tokens = torch.randperm(data.directions.shape[1], generator=random)[:TOKENS_PER_STEP]
        features = data.features(rows, tokens)
    else:
        flip = torch.rand(len(index), generator=random) < 0.5
        features = data.features(rows, flip[local])
    cosines = prototypes(features) / features.norm(dim=1, keepdim=True)
    loss = kmeans_loss(cosines) * (len(rows) / len(index))
    loss.backward()
    return loss.detach()


def fit_kmeans(
    views: Views,
    init: Prototypes,
    steps: int,
    config: Config,
    recorder: Recorder | None = None,
) -> Prototypes:
    """Run spherical k-means by stochastic gradient descent on Eq. 9.

    Args:
        init: initial prototypes; they are not changed.
        steps: number of steps of Adam.
        config: only batch size, learning rate and seed are used.

    Returns:
        Prototypes with scale 1: the baseline of the paper, and the initialization of EM.
    """
    prototypes = copy.deepcopy(init)
    prototypes.scale.requires_grad_(False)

    def step(number: int) -> dict[str, Tensor]:
        return {"loss": kmeans_step(views, prototypes, number, config.batch_size, config.seed)}

    modules = nn.ModuleDict({"trained": prototypes})
    optimize("k-means", modules, step, steps, config.learning_rate, recorder or Recorder())
    prototypes.scale.requires_grad_()
    return prototypes


def fit_restarts(
    tokens: SampledTokens,
    init: Prototypes,
    seeds: Sequence[int],
    steps: int,
    config: Config,
    recorder: Recorder | None = None,
) -> list[Prototypes]:
    """Run k-means several times from one initialization, with different batches.

    The products of one run are too small for several threads; on a CPU the runs are shared among
    the cores instead.

    Args:
        seeds: one seed per run.
        steps: number of steps of Adam per run.
        config: only batch size and learning rate are used.
    """
    runs = [copy.deepcopy(init) for _ in seeds]
    for run in runs:
        run.scale.requires_grad_(False)
    modules = nn.ModuleDict({"trained": nn.ModuleList(runs)})
    share = -(-len(seeds) // lane_count(tokens.device))
    with lanes(tokens.device) as threads, one_thread():

        def step(number: int) -> dict[str, Tensor]:
            def work(pairs: list[tuple[Prototypes, int]]) -> list[Tensor]:
                size = config.batch_size
                return [kmeans_step(tokens, run, number, size, seed) for run, seed in pairs]

            shares = chunks(list(zip(runs, seeds, strict=True)), share)
            losses = [loss for each in overlapped(shares, work, threads) for loss in each]
            return {"loss": torch.stack(losses).mean()}

        optimize("k-means", modules, step, steps, config.learning_rate, recorder or Recorder())
    return runs
