"""HP (Seong et al., CVPR 2023): contrastive learning of codes with hidden positives.

Two tokens are a hidden positive pair if, for at least one of them, their cosine exceeds its
maximum cosine to a pool of random reference tokens. Cosines are computed from features
(task-agnostic positives) and, with increasing weight, from codes (task-specific positives).
Positives of an anchor also attract its neighbors (local hidden positives). Implemented from section
3 of the paper.

Two differences from the paper make training on cached features and on a CPU possible:

- the paper weights the neighbors of an anchor by the attention in the last layer of the backbone,
  which is not in the feature cache; here the weight is the cosine of their features;
- the paper contrasts all tokens of a batch; here random tokens of each image are contrasted.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Interval
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from primaps.em.em import momentum_update
from primaps.features.training_data import ImageArrays
from primaps.projections.projection import Head, Projection
from primaps.projections.sampling import Count, Positive, Share, batches, finite_loss
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validate_fields


@dataclass(frozen=True)
class HPSettings:
    """Settings of HP.

    Attributes:
        dim: D, number of channels of the codes.
        temperature: tau, the temperature of the contrastive loss.
        contrast: share of the other tokens that an anchor is contrasted with, besides its
            positives, in (0, 1].
        consistency: weight of the distance between the codes of a token in an image and its flip.
        momentum: decay of the moving average of the head, which finds task-specific positives.
        warmup: share of the training without task-specific positives; then their weight grows
            linearly from 0 to 1.
        pool: number of reference tokens; a larger pool gives fewer and more reliable positives.
        batch_size: number of images per step.
        positions: number of random tokens per image.
        anchors: number of these tokens that are anchors.
        learning_rate: learning rate of the AdamW optimizer.
        weight_decay: weight decay of the AdamW optimizer.
        dropout: probability that a feature channel is set to 0 in each branch of the head.
    """

    dim: Count = 128
    temperature: Positive = 0.6
    contrast: Annotated[float, Interval(gt=0, le=1)] = 0.25
    consistency: float = 0.05
    momentum: Share = 0.99
    warmup: Share = 0.1
    pool: Count = 2048
    batch_size: Count = 64
    positions: Count = 64
    anchors: Count = 8
    learning_rate: Positive = 5e-4
    weight_decay: float = 0.1
    dropout: Share = 0.1

    def __post_init__(self) -> None:
        validate_fields(self)


# The authors' values for DINO: ViT-S/8 for the first two, ViT-B/8 for Potsdam-3. They count the
# warm-up in steps (50 of 1,380; 1,000 of 11,600; 100 of 1,330).
HP_PRESETS = {
    "own": HPSettings(),
    "cityscapes": HPSettings(512, 0.6, 0.02, 0.05, 0.999, 0.036),
    "cocostuff": HPSettings(512, 0.8, 0.02, 0.05, 0.99, 0.086),
    "potsdam": HPSettings(256, 0.4, 1.0, 0.0, 0.999, 0.075, 1024),
}


def hidden_positives(
    vectors: Float[Tensor, "n c"], anchors: Int[Tensor, " a"], pool: Float[Tensor, "m c"]
) -> Bool[Tensor, "a n"]:
    """Find pairs whose cosine exceeds all reference cosines of one of the two tokens.

    Args:
        vectors: features or codes of all tokens of a batch.
        anchors: indices of the anchors.
        pool: features or codes of the reference tokens.

    Returns:
        Whether each anchor and token are a pair; False for an anchor and itself.

    Examples:
        >>> vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> hidden_positives(vectors, torch.tensor([0]), pool=torch.tensor([[1.0, 1.0]]))
        tensor([[False,  True, False]])
    """
    vectors = F.normalize(vectors, dim=1)
    enough = (vectors @ F.normalize(pool, dim=1).T).amax(1)
    cosines = vectors[anchors] @ vectors.T
    positive = (cosines > enough[anchors, None]) | (cosines > enough)
    return positive.scatter(1, anchors[:, None], False)


def contrastive_loss(
    cosines: Float[Tensor, "a n"],
    positives: Float[Tensor, "a n"],
    contrasted: Bool[Tensor, "a n"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Compute the supervised contrastive loss with weighted positives.

    Anchors are weighted by the sum of the weights of their positives.

    Args:
        cosines: cosines between anchors and tokens.
        positives: weight of each token as a positive, 0 for other tokens.
        contrasted: tokens in the denominator of the softmax.
        temperature: tau.
    """
    logits = cosines / temperature
    against = logits.masked_fill(~contrasted, -torch.inf).logsumexp(1, keepdim=True)
    total = positives.sum(1)
    counted = (total > 0) & contrasted.any(1)
    if not counted.any():
        return logits.sum() * 0
    terms = ((against - logits) * positives)[counted].sum(1)
    return terms.sum() / total[counted].sum()


def neighborhood(
    maps: Float[Tensor, "b c h w"], position: Int[Tensor, "b a"]
) -> tuple[Float[Tensor, "b a 9 c"], Float[Tensor, "b a 9"]]:
    """Return the features of the 3x3 tokens around each anchor, and their weights.

    The weight is the cosine to the anchor. It is 0 outside the image and for cosines below the mean
    cosine of the anchor to the image. Weights have the sum 1.

    Args:
        maps: features.
        position: indices of the anchors in the flattened maps.
    """
    b, _, h, w = maps.shape
    step = torch.tensor([-1, 0, 1], device=maps.device)
    y = position[..., None] // w + step.repeat_interleave(3)
    x = position[..., None] % w + step.repeat(3)
    inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
    tokens = maps.flatten(2).transpose(1, 2)
    near = tokens[
        torch.arange(b, device=maps.device)[:, None, None],
        y.clamp(0, h - 1) * w + x.clamp(0, w - 1),
    ]
    directions = F.normalize(near, dim=3)
    anchor, image = directions[:, :, 4], F.normalize(tokens, dim=2).mean(1)
    affinity = torch.einsum("bac,bakc->bak", anchor, directions)
    mean = torch.einsum("bac,bc->ba", anchor, image)
    affinity = affinity * ((affinity >= mean[..., None]) & inside)
    return near, affinity / affinity.sum(2, keepdim=True)


def train_hp(
    features: ImageArrays,
    steps: int,
    settings: HPSettings = HPSettings(),
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> Projection:
    """Train a head on cached features of N images.

    Args:
        features: features of N images and their flips.
        steps: number of optimizer steps.
        settings: settings of HP.
        seed: random seed.
        progress: progress callback; it gets the mean number of task-agnostic positives of an
            anchor.

    Returns:
        A projection without clusters; its ``about`` has the settings.

    Raises:
        InputError: features with NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    count, channels = len(features), features.shape[1]
    references = _references(features, settings.pool, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head, project = Head(channels, settings.dim), nn.Linear(settings.dim, settings.dim)
    head, project = head.to(references.device), project.to(references.device)
    slow = copy.deepcopy(head).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [
            {"params": head.parameters(), "weight_decay": settings.weight_decay},
            {"params": project.parameters(), "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )
    for step, index in enumerate(batches(count, settings.batch_size, steps, "HP", seed), 1):
        batch = _sample_batch(features, index, settings, generator)
        with torch.no_grad():
            tokens = batch.tokens.flatten(0, 1)
            agnostic = hidden_positives(tokens, batch.anchors, references)
            pool = slow.tokens(references)
            specific = hidden_positives(slow.tokens(tokens), batch.anchors, pool)
            growth = max(0.0, (step / steps - settings.warmup) / (1 - settings.warmup))
            chosen = torch.rand(agnostic.shape, generator=generator) < settings.contrast
            contrasted = agnostic | chosen.to(agnostic.device).scatter(
                1, batch.anchors[:, None], False
            )

        codes, around, opposite = (
            head.tokens(f, settings.dropout, generator)
            for f in (batch.tokens, batch.near, batch.opposite)
        )
        local = torch.einsum("bak,bakd->bad", batch.weights, around)
        keys, local, opposite = (
            F.normalize(project(c.flatten(0, 1)), dim=1) for c in (codes, local, opposite)
        )
        contrast = [
            contrastive_loss(
                query @ keys.T, agnostic + growth * specific, contrasted, settings.temperature
            )
            for query in (keys[batch.anchors], local)
        ]
        distance = F.pairwise_distance(keys[batch.anchors], opposite).mean()
        loss = torch.stack(contrast).mean() + settings.consistency * distance
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 10.0)
        optimizer.step()
        momentum_update(slow, head, settings.momentum)
        found = agnostic.sum(1).float().mean().item()
        progress("HP", step, steps, {"loss": finite_loss(loss, step), "positives": found})
    about = {"method": "hp", "steps": steps, "seed": seed, "images": count}
    return Projection(head, None, "hp", {**about, "settings": asdict(settings)})


class _Batch(NamedTuple):
    """Random tokens of each image of a step; the first ones are anchors."""

    tokens: Float[Tensor, "b n c"]
    anchors: Int[Tensor, " a"]  # indices into the b * n tokens
    near: Float[Tensor, "b a 9 c"]
    weights: Float[Tensor, "b a 9"]
    opposite: Float[Tensor, "b a c"]  # features of the anchors in the flipped image


def _sample_batch(
    features: ImageArrays,
    index: Int[Tensor, " b"],
    settings: HPSettings,
    generator: torch.Generator,
) -> _Batch:
    which = torch.randint(2, (len(index),), generator=generator)
    maps, flipped = (features.take(index, i).float() for i in (which, 1 - which))
    size, total = len(maps), maps.shape[2] * maps.shape[3]
    each = min(settings.positions, total)
    position = torch.rand(size, total, generator=generator).topk(each).indices.to(maps.device)
    anchor = position[:, : settings.anchors]
    rows = torch.arange(size, device=maps.device)[:, None]
    first = (rows * each + torch.arange(anchor.shape[1], device=maps.device)).flatten()
    near, weights = neighborhood(maps, anchor)
    opposite = flipped.flip(-1).flatten(2).transpose(1, 2)[rows, anchor]
    tokens = maps.flatten(2).transpose(1, 2)[rows, position]
    return _Batch(tokens, first, near, weights, opposite)


def _references(
    features: ImageArrays, count: int, generator: torch.Generator
) -> Float[Tensor, "m c"]:
    """Return features of random tokens of random images: the pool for the whole training."""
    found = []
    for index in torch.randint(len(features), (count,), generator=generator).split(64):
        tokens = features.take(index, torch.zeros_like(index)).flatten(2)
        position = torch.randint(tokens.shape[2], (len(index),), generator=generator)
        found.append(tokens[torch.arange(len(index)), :, position].float())
    return torch.cat(found)
