"""HP (Seong et al., CVPR 2023): contrastive learning of codes with hidden positives.

Two positions are a hidden positive pair if they are more alike than one of them is to anything in
a pool of random reference positions. Alike is first judged by the features (task-agnostic), and
more and more also by the codes themselves (task-specific). Positives of an anchor also draw its
neighbors along (local hidden positives). Written from section 3 of the paper.

Two things differ from the paper, because this works on cached features and on a CPU:

- the paper weighs the neighbors of an anchor by the attention of the backbone's last layer, which
  a cache of features does not hold; here the weight is the cosine of their features;
- the paper contrasts every position of a batch with every other; here random positions of each
  image are contrasted.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from primaps.em.em import momentum_update
from primaps.features.training_data import ImageArrays
from primaps.projections.projection import Head, Projection
from primaps.projections.sampling import batches, check, finite
from primaps.utils.errors import InputError
from primaps.utils.progress import ProgressCallback, silent


@dataclass(frozen=True)
class HPSettings:
    """How HP trains a head.

    Attributes:
        dim: D, channels of the codes.
        temperature: tau of the contrastive loss.
        contrast: share of the other positions that an anchor is contrasted with, besides its
            positives, in (0, 1].
        consistency: weight of the distance between a position's vectors in image and flipped image.
        momentum: decay of the moving average of the head, which judges task-specific positives.
        warmup: share of the training without task-specific positives; their weight then grows
            linearly from 0 to 1.
        pool: reference positions: more make positives fewer and surer.
        batch_size: images per step.
        positions: random positions per image, of which ``anchors`` are anchors.
        anchors: anchors per image.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        dropout: share of the feature channels that are hidden from each branch of the head.
    """

    dim: int = 128
    temperature: float = 0.6
    contrast: float = 0.25
    consistency: float = 0.05
    momentum: float = 0.99
    warmup: float = 0.1
    pool: int = 2048
    batch_size: int = 64
    positions: int = 64
    anchors: int = 8
    learning_rate: float = 5e-4
    weight_decay: float = 0.1
    dropout: float = 0.1

    def __post_init__(self) -> None:
        counts = ("dim", "pool", "batch_size", "positions", "anchors")
        check(self, counts, ("temperature", "learning_rate"), ("momentum", "warmup", "dropout"))
        if not 0 < self.contrast <= 1:
            raise InputError(f"contrast is {self.contrast}; it must be in (0, 1]")


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
    """Pairs whose cosine is larger than that of either of the two to anything in the pool.

    Args:
        vectors: of all positions of a batch.
        anchors: which of them are anchors.
        pool: of the reference positions.

    Returns:
        False for an anchor and itself.

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
    """Supervised contrastive loss with weighted positives, over anchors that have any.

    Each anchor counts in proportion to the weight of its positives: with many it is surer.

    Args:
        positives: weight of each other position as a positive, 0 for none.
        contrasted: positions in the denominator of the softmax.
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
    """Features of the 3x3 positions around each anchor and their weights as local positives.

    The weight is the cosine to the anchor, or 0 where that is below the anchor's mean cosine to
    its image and outside the image; weights are scaled to sum to 1. The middle is the anchor.
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
    typical = torch.einsum("bac,bc->ba", anchor, image)
    affinity = affinity * ((affinity >= typical[..., None]) & inside)
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
        features: of N images and their flipped images.
        steps: of AdamW.
        progress: told the mean number of task-agnostic positives of an anchor.

    Returns:
        A projection without clusters; its ``about`` holds the settings.

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
        drawn = _draw(features, index, settings, generator)
        with torch.no_grad():
            tokens = drawn.tokens.flatten(0, 1)
            agnostic = hidden_positives(tokens, drawn.anchors, references)
            pool = slow.tokens(references)
            specific = hidden_positives(slow.tokens(tokens), drawn.anchors, pool)
            growth = max(0.0, (step / steps - settings.warmup) / (1 - settings.warmup))
            chosen = torch.rand(agnostic.shape, generator=generator) < settings.contrast
            contrasted = agnostic | chosen.to(agnostic.device).scatter(
                1, drawn.anchors[:, None], False
            )

        codes, around, opposite = (
            head.tokens(f, settings.dropout, generator)
            for f in (drawn.tokens, drawn.near, drawn.opposite)
        )
        local = torch.einsum("bak,bakd->bad", drawn.weights, around)
        keys, local, opposite = (
            F.normalize(project(c.flatten(0, 1)), dim=1) for c in (codes, local, opposite)
        )
        contrast = [
            contrastive_loss(
                query @ keys.T, agnostic + growth * specific, contrasted, settings.temperature
            )
            for query in (keys[drawn.anchors], local)
        ]
        distance = F.pairwise_distance(keys[drawn.anchors], opposite).mean()
        loss = torch.stack(contrast).mean() + settings.consistency * distance
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 10.0)
        optimizer.step()
        momentum_update(slow, head, settings.momentum)
        found = agnostic.sum(1).float().mean().item()
        progress("HP", step, steps, {"loss": finite(loss, step), "positives": found})
    about = {"method": "hp", "steps": steps, "seed": seed, "images": count}
    return Projection(head, None, "hp", {**about, "settings": asdict(settings)})


class _Drawn(NamedTuple):
    """What a step sees of each image: random positions, of which the first ones are anchors."""

    tokens: Float[Tensor, "b n c"]
    anchors: Int[Tensor, " a"]  # among all b * n
    near: Float[Tensor, "b a 9 c"]
    weights: Float[Tensor, "b a 9"]
    opposite: Float[Tensor, "b a c"]  # the anchors in the flipped image


def _draw(
    features: ImageArrays,
    index: Int[Tensor, " b"],
    settings: HPSettings,
    generator: torch.Generator,
) -> _Drawn:
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
    return _Drawn(tokens, first, near, weights, opposite)


def _references(
    features: ImageArrays, count: int, generator: torch.Generator
) -> Float[Tensor, "m c"]:
    """Features of random positions of random images: the pool. The same ones serve to the end."""
    found = []
    for index in torch.randint(len(features), (count,), generator=generator).split(64):
        tokens = features.take(index, torch.zeros_like(index)).flatten(2)
        position = torch.randint(tokens.shape[2], (len(index),), generator=generator)
        found.append(tokens[torch.arange(len(index)), :, position].float())
    return torch.cat(found)
