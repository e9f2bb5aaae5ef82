"""Which regions to ask a person about next.

Candidates are patch tokens that are sampled from the collection. A set of questions is good if
every token of the collection has a similar token that a person was asked about. This is the
facility location problem: a question gains, summed over all tokens, what it adds to the similarity
of the token to the most similar question. The greedy solution picks medoids of ever finer clusters,
and no two questions are alike. Answers that exist count as questions, so that it can be continued
at any time.

Once there is a classifier, tokens are weighted by what an answer about them would change: tokens
with a small margin between the two best classes, tokens of rare classes, and tokens whose class
differs from that of the most similar token that was asked about.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from scipy import ndimage
from torch import Tensor

from primaps.utils.seeding import generator

Reason = Literal["coverage", "margin", "rare", "disagreement"]
Asked = tuple[str, float, float]
"""Image key, and x / width and y / height of the point of a question or annotation, in [0, 1]."""
Classify = Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b k h w"]]
"""Features to class probabilities."""
TOKENS = 8192
"""Maximum number of tokens that questions shall cover: 13 MB with 384 channels."""
CANDIDATES = 4096
"""Maximum number of these tokens that can become questions."""
IMAGES = 2000
"""Maximum number of images whose tokens are sampled."""
ASKED = 4096
"""Maximum number of earlier questions that are compared with; the latest count."""
COVERAGE = 1.5
"""Coverage questions per class before questions follow that depend on the classifier."""
MIN_COVERAGE = 24
"""Minimum number of coverage questions before questions follow that depend on the classifier."""
ORDER: tuple[Reason, ...] = (
    "margin", "rare", "margin", "coverage", "rare", "margin", "disagreement", "margin", "rare",
    "coverage",
)  # fmt: skip
"""Reasons of the questions that follow on coverage, in turn."""
SHARPNESS = 3
"""Power of cosine similarities in the objective. With 1, tokens between two classes, which are
somewhat similar to both, would be the best questions."""
ALIKE = 0.95
"""Cosine similarity above which two tokens count as alike."""
REGION_COSINE = 0.85
"""Minimum cosine similarity of the tokens of a region with its representative token."""
REGION_SHARE = 0.25
"""Maximum share of the image that a region covers."""


class Maps(Protocol):
    """Feature maps of whole images by key: :class:`primaps.features.maps.FeatureMaps`."""

    @property
    def keys(self) -> Sequence[str]:
        """Keys of the images, in their order."""

    def tokens(self, key: str) -> Float[Tensor, "n c"]:
        """Return the features of all tokens of an image, row by row."""

    def grid(self, key: str) -> tuple[int, int]:
        """Return height and width of the token grid of an image."""


@dataclass(frozen=True)
class Question:
    """A region of an image whose class a person is asked for.

    Attributes:
        image: key of the image.
        grid: height and width of the token grid of the image.
        tokens: tokens of the region, row by row, in ascending order.
        token: representative token of the region.
        guesses: up to three classes with their probabilities, the most probable first; empty
            without a classifier.
        reason: why it is asked: ``coverage`` (nothing similar was asked), ``margin`` (the two best
            classes are almost equally probable), ``rare`` (the same, and few tokens belong to the
            class), or ``disagreement`` (the most similar token that was asked about has another
            class).
    """

    image: str
    grid: tuple[int, int]
    tokens: Integer[Tensor, " n"]
    token: int
    guesses: tuple[tuple[int, float], ...]
    reason: Reason

    def point(self, height: int, width: int) -> tuple[float, float]:
        """Return the center (x, y) of the representative token in an image of the given size.

        Examples:
            >>> Question("a", (2, 4), torch.tensor([5, 6]), 5, (), "coverage").point(20, 40)
            (15.0, 15.0)
        """
        row, column = divmod(self.token, self.grid[1])
        return (column + 0.5) * width / self.grid[1], (row + 0.5) * height / self.grid[0]

    def mask(self, height: int, width: int) -> Bool[np.ndarray, "height width"]:
        """Return the region as a mask of an image of the given size.

        A pixel belongs to the token that its center lies in.

        Examples:
            >>> question = Question("a", (1, 2), torch.tensor([1]), 1, (), "coverage")
            >>> question.mask(2, 4).astype(int).tolist()
            [[0, 0, 1, 1], [0, 0, 1, 1]]
        """
        inside = np.zeros(self.grid, bool)
        inside.reshape(-1)[self.tokens.numpy()] = True
        rows = ((np.arange(height) + 0.5) * self.grid[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * self.grid[1] / width).astype(int)
        return inside[rows][:, columns]


@dataclass(frozen=True)
class Sampled:
    """Tokens that are sampled from a collection.

    Attributes:
        features: features of length 1.
        images: number of the image of each token among the keys of the collection.
        tokens: number of each token in its image.
    """

    features: Float[Tensor, "m c"]
    images: Integer[Tensor, " m"]
    tokens: Integer[Tensor, " m"]


@torch.no_grad()
def next_questions(
    n: int,
    maps: Maps,
    *,
    probabilities: Classify | None = None,
    asked: Iterable[Asked] = (),
    seed: int = 0,
) -> list[Question]:
    """Choose the regions that a person should be asked about next.

    Args:
        n: number of questions. Fewer are returned if all other tokens are alike.
        maps: feature maps of the collection. Tokens of at most :data:`IMAGES` images are sampled.
        probabilities: class probabilities of the current classifier; None asks for coverage alone.
        asked: points of everything that was asked or annotated before, also if the answer was that
            it is mixed or unknown. Points in images that are not in ``maps`` have no effect.
        seed: random seed of the sample. Questions are deterministic.

    Examples:
        >>> class OneImage:
        ...     keys = ["a"]
        ...     def tokens(self, key):
        ...         return torch.eye(3)[[0, 0, 1, 1, 2, 2, 2, 2]]
        ...     def grid(self, key):
        ...         return 2, 4
        >>> [question.tokens.tolist() for question in next_questions(3, OneImage())]
        [[4, 5, 6, 7], [0, 1], [2, 3]]
    """
    earlier = list(asked)
    sampled = sample(maps, seed)
    known = _asked_features(maps, earlier[-ASKED:], sampled.features.shape[1])
    classes = None if probabilities is None else classify(sampled.features, probabilities)
    weights: dict[Reason, Tensor] = {"coverage": torch.ones(len(sampled.features))}
    if classes is not None and probabilities is not None:
        weights |= answer_values(sampled.features, classes, known, probabilities)
    first: list[int] = []
    if classes is not None and probabilities is not None and len(classes):
        seen = classify(known, probabilities).argmax(1).tolist()
        first = class_medoids(sampled.features, classes.argmax(1), seen)
    reasons = _reasons(n, len(earlier), None if classes is None else classes.shape[1])
    rows = choose(sampled.features, known, weights, reasons, first)
    keys = list(maps.keys)
    return [
        _question(maps, keys[int(sampled.images[row])], int(sampled.tokens[row]), reason,
                  probabilities)
        for row, reason in rows
    ]  # fmt: skip


def sample(maps: Maps, seed: int) -> Sampled:
    """Sample up to :data:`TOKENS` tokens, the same number of each of up to :data:`IMAGES` images.

    Args:
        seed: random seed.
    """
    keys = list(maps.keys)
    order = torch.randperm(len(keys), generator=generator("questions", seed))
    chosen = order[:IMAGES].sort().values.tolist()
    each = max(1, TOKENS // max(1, len(chosen)))
    features, images, tokens = [], [], []
    for number in chosen:
        found = maps.tokens(keys[number])
        random = generator("questions", seed, number)
        places = torch.randperm(len(found), generator=random)[:each].sort().values
        features.append(F.normalize(found[places].float(), dim=1))
        images.append(torch.full((len(places),), number))
        tokens.append(places)
    if not features:
        return Sampled(torch.zeros(0, 1), torch.zeros(0).long(), torch.zeros(0).long())
    return Sampled(torch.cat(features), torch.cat(images), torch.cat(tokens))


def classify(features: Float[Tensor, "m c"], probabilities: Classify) -> Float[Tensor, "m k"]:
    """Return the class probabilities of tokens, classified as a feature map of one row."""
    if not len(features):
        return features.new_zeros(0, 1)
    return probabilities(features.T[None, :, None])[0, :, 0].T


def answer_values(
    features: Float[Tensor, "m c"],
    classes: Float[Tensor, "m k"],
    known: Float[Tensor, "a c"],
    probabilities: Classify,
) -> dict[Reason, Float[Tensor, " m"]]:
    """Weight tokens by what an answer about them would change, by reason, in [0, 1].

    Args:
        features: features of the tokens.
        classes: class probabilities of the tokens.
        known: features of the tokens that were asked about.
        probabilities: class probabilities of the classifier.

    Examples:
        >>> features = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.9], [0.0, 1.0]]), dim=1)
        >>> def steep(maps):
        ...     return (8 * maps).softmax(1)
        >>> found = answer_values(features, classify(features, steep), features[2:], steep)
        >>> found["margin"].argmax().item()
        1
        >>> found["disagreement"].gt(0).tolist()
        [True, True, False]
    """
    count = classes.shape[1]
    best = classes.topk(min(2, count), 1).values
    uncertain = 1 - (best[:, 0] - best[:, -1]) if count > 1 else torch.zeros(len(classes))
    # Rare classes: uncertain tokens of classes that few tokens are assigned to.
    assigned = classes.argmax(1)
    rarity = assigned.bincount(minlength=count).clamp_min(1).to(features).rsqrt()[assigned]
    rare = uncertain * rarity / rarity.max() if len(rarity) else uncertain
    values: dict[Reason, Tensor] = {"margin": uncertain.square(), "rare": rare}
    if len(known):
        nearest = (features @ known.T).argmax(1)
        other = classify(known, probabilities).argmax(1)[nearest]
        values["disagreement"] = (assigned != other).to(features) * uncertain
    return values


def class_medoids(
    features: Float[Tensor, "m c"], classes: Integer[Tensor, " m"], known: Iterable[int]
) -> list[int]:
    """Return the token nearest to the mean of each class, the most frequent class first.

    Args:
        features: features of length 1.
        classes: class of each token.
        known: classes that are left out, as one of their tokens was asked about.

    Examples:
        >>> features = F.normalize(torch.tensor([[1.0, 0], [1, 0.1], [1, 0.2], [0, 1]]), dim=1)
        >>> class_medoids(features, torch.tensor([4, 4, 4, 2]), []), class_medoids(
        ...     features, torch.tensor([4, 4, 4, 2]), [4])
        ([1, 3], [3])
    """
    counts = classes.bincount()
    counts[[k for k in set(known) if k < len(counts)]] = 0
    found = []
    for k in counts.argsort(descending=True, stable=True)[: int(counts.count_nonzero())].tolist():
        rows = (classes == k).nonzero()[:, 0]
        found.append(int(rows[(features[rows] @ features[rows].sum(0)).argmax()]))
    return found


def choose(
    features: Float[Tensor, "m c"],
    known: Float[Tensor, "a c"],
    weights: dict[Reason, Float[Tensor, " m"]],
    reasons: Sequence[Reason],
    first: Sequence[int] = (),
) -> list[tuple[int, Reason]]:
    """Choose tokens one after the other by the greedy solution of the facility location problem.

    The similarity ``s`` of two tokens is the :data:`SHARPNESS`-th power of their cosine similarity.
    Token i is covered by ``m_i``, its largest similarity to a token that was chosen or asked about
    before. A token c gains ``sum_i w_i max(0, s(i, c) - m_i)`` with the weights ``w`` of its
    reason. Gains only become smaller, so that a gain is computed again only if the last one is the
    largest (lazy evaluation, Minoux 1978).

    Args:
        features: features of length 1.
        known: features of the tokens that were asked about.
        weights: weight of each token by reason; ``coverage`` replaces reasons without a weight.
        reasons: reason of each choice.
        first: rows that are chosen first, to cover the collection.

    Returns:
        Rows of the chosen tokens and their reasons; shorter if all other tokens are alike.

    Examples:
        >>> features = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), dim=1)
        >>> ones = {"coverage": torch.ones(3)}
        >>> choose(features, features[:0], ones, ["coverage"] * 3)
        [(1, 'coverage'), (2, 'coverage')]
        >>> choose(features, features[:1], ones, ["coverage"] * 3)
        [(2, 'coverage')]
    """
    step = max(1, -(-len(features) // CANDIDATES))
    rows = torch.arange(len(features))[::step]
    similar = _similarity(features[rows], features)
    alike = ALIKE**SHARPNESS
    covered = torch.zeros(len(features))
    if len(known):
        covered = _similarity(features, known).amax(1)
    chosen: list[tuple[int, Reason]] = []
    for row in first[: len(reasons)]:
        if covered[row] < alike:
            chosen.append((row, "coverage"))
            covered = torch.maximum(covered, _similarity(features, features[[row]])[:, 0])
    allowed = covered[rows] < alike
    heaps: dict[Reason, list[tuple[float, int, int]]] = {}
    for wanted in reasons[len(chosen) :]:
        reason = wanted if bool(weights.get(wanted, torch.zeros(1)).any()) else "coverage"
        weight = weights[reason]
        if reason not in heaps:
            gains = torch.cat(
                [(part - covered).clamp_min(0) @ weight for part in similar.split(512)]
            )
            heaps[reason] = [(-g, i, len(chosen)) for i, g in enumerate(gains.tolist())]
            heapq.heapify(heaps[reason])
        heap = heaps[reason]
        while heap:
            _, i, known_at = heapq.heappop(heap)
            if not allowed[i]:
                continue
            if known_at == len(chosen):
                break
            gain = float((similar[i] - covered).clamp_min(0) @ weight)
            heapq.heappush(heap, (-gain, i, len(chosen)))
        else:
            break
        chosen.append((int(rows[i]), reason))
        covered = torch.maximum(covered, similar[i])
        allowed &= similar[i][rows] < alike
        allowed[i] = False
    return chosen


def _similarity(
    features: Float[Tensor, "m c"], others: Float[Tensor, "o c"]
) -> Float[Tensor, "m o"]:
    """Return the similarity of every two tokens, see :func:`choose`."""
    return (features @ others.T).clamp_min_(0).pow_(SHARPNESS)


def region(
    features: Float[Tensor, "n c"],
    grid: tuple[int, int],
    token: int,
    same: Bool[Tensor, " n"] | None = None,
) -> Integer[Tensor, " r"]:
    """Return the tokens around a token that are connected to it and similar to it.

    Args:
        features: features of all tokens of the image, row by row.
        grid: height and width of the token grid.
        token: the representative token, which always belongs to the region.
        same: tokens that may belong to the region; None for all.

    Examples:
        >>> features = torch.eye(2)[[0, 0, 1, 0, 1, 1]]
        >>> region(features, (2, 3), 1).tolist(), region(features, (2, 3), 4).tolist()
        ([0, 1, 3], [2, 4, 5])
    """
    features = F.normalize(features, dim=1)
    cosine = features @ features[token]
    most = max(1, int(REGION_SHARE * len(features)))
    limit = max(REGION_COSINE, float(cosine.topk(most).values[-1]))
    inside = cosine >= limit
    if same is not None:
        inside &= same
    inside[token] = True
    parts, _ = ndimage.label(inside.view(grid).numpy())
    flat = torch.from_numpy(parts).flatten()
    return (flat == flat[token]).nonzero()[:, 0]


def _question(
    maps: Maps, key: str, token: int, reason: Reason, probabilities: Classify | None
) -> Question:
    """Build a question from its representative token."""
    features, grid = maps.tokens(key).float(), maps.grid(key)
    guesses: tuple[tuple[int, float], ...] = ()
    same = None
    if probabilities is not None:
        classes = classify(features, probabilities)
        same = classes.argmax(1) == classes[token].argmax()
    tokens = region(features, grid, token, same)
    if probabilities is not None:
        best = classes[token].topk(min(3, classes.shape[1]))
        guesses = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Question(key, grid, tokens, token, guesses, reason)


def _asked_features(maps: Maps, asked: Sequence[Asked], channels: int) -> Float[Tensor, "a c"]:
    """Return the features of the tokens under the points that were asked about."""
    present, by_image = set(maps.keys), dict[str, list[int]]()
    for key, x, y in asked:
        if key in present:
            h, w = maps.grid(key)
            row, column = min(max(int(y * h), 0), h - 1), min(max(int(x * w), 0), w - 1)
            by_image.setdefault(key, []).append(row * w + column)
    if not by_image:
        return torch.zeros(0, channels)
    found = [maps.tokens(key)[places].float() for key, places in by_image.items()]
    return F.normalize(torch.cat(found), dim=1)


def _reasons(n: int, asked: int, classes: int | None) -> list[Reason]:
    """Return the reasons of the next questions.

    Examples:
        >>> _reasons(3, 0, None), _reasons(3, 24, 2)
        (['coverage', 'coverage', 'coverage'], ['margin', 'rare', 'margin'])
    """
    if classes is None:
        return ["coverage"] * n
    first = max(MIN_COVERAGE, round(COVERAGE * classes))
    start = max(0, asked - first)
    later = islice(cycle(ORDER), start, None)
    return ["coverage" if asked + i < first else next(later) for i in range(n)]
