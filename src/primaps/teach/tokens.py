"""The token level of the learner: a linear classifier of patch tokens, from a few examples.

For a token with feature f, the logit of class k is ``<w_k, x> + b_k`` with ``x = f / |f|``. Weights
minimize the weighted cross-entropy of the examples plus ``penalty / 2 * |w_k - a_k|^2``, where a_k
is the scaled prototype of a class that was found without labels and named, and 0 for other
classes. Such a prototype is also an example of its class. All classes have the same total weight,
so the classifier assumes that all classes are equally frequent. Logits are divided by a temperature
that is fitted to held-out examples. The true frequencies of the classes are estimated on the
unlabeled tokens by EM (Saerens et al. 2002). Everything is computed in float64 and is
deterministic.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from primaps.utils.parallel import one_thread

PENALTY = 0.5
"""Weight of the penalty, relative to an example of weight 1."""
ANCHOR_SCALE = 6.0
"""Length of the weights that named prototypes pull to: the scale of the logits of a fit."""
ANCHOR_WEIGHT = 1.0
"""Weight of a named prototype as an example of its class."""
MAX_EXAMPLES = 8_000
"""Maximum number of examples that weights are learned from; more are sampled."""
ITERATIONS = 200
"""Maximum number of iterations of L-BFGS."""
EM_ITERATIONS = 200
"""Maximum number of iterations of the EM of class frequencies."""
EM_SMOOTHING = 0.3
"""Share of the unlabeled tokens that is spread evenly over all classes, so that none vanishes."""
TEMPERATURES = (0.01, 20.0)
"""Smallest and largest temperature of :func:`fit_temperature`."""


class TokenClassifier(nn.Module):
    """A linear classifier of L2-normalized features.

    Attributes:
        direction: (K, C).
        bias: (K,).
    """

    def __init__(self, weight: Float[Tensor, "k c"], bias: Float[Tensor, " k"]) -> None:
        super().__init__()
        self.direction = nn.Parameter(weight.detach().float().clone(), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().float().clone(), requires_grad=False)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        logits = self.direction @ features.flatten(2) + self.bias[:, None]
        return logits.unflatten(2, features.shape[-2:])


@one_thread()
def learn_tokens(
    features: Float[Tensor, "n c"],
    classes: Integer[Tensor, " n"],
    weights: Float[Tensor, " n"],
    anchors: Float[Tensor, "k c"],
    anchored: Bool[Tensor, " k"],
    negatives: tuple[Float[Tensor, "r c"], Integer[Tensor, " r"], Float[Tensor, " r"]]
    | None = None,
    penalty: float = PENALTY,
) -> tuple[Float[Tensor, "k c"], Float[Tensor, " k"]]:
    """Learn a linear classifier of L2-normalized features.

    Args:
        features: features of the examples; only their direction counts.
        classes: class of each example, 0..K-1.
        weights: weight of each example, such as the share of the token that is annotated.
        anchors: prototype of each class; only the directions of ``anchored`` classes count.
        anchored: classes with a prototype that was found without labels and named.
        negatives: features, classes that they do not have, and weights.
        penalty: weight of the penalty.

    Returns:
        Weights and biases in float64.

    Examples:
        >>> features = torch.tensor([[1.0, 0.1], [0.1, 1.0], [0.9, 0.0]])
        >>> weight, bias = learn_tokens(features, torch.tensor([0, 1, 0]), torch.ones(3),
        ...                             torch.zeros(2, 2), torch.tensor([False, False]))
        >>> (F.normalize(features, dim=1).double() @ weight.T + bias).argmax(1).tolist()
        [0, 1, 0]
    """
    count = len(anchors)
    chosen = _subset(classes, MAX_EXAMPLES)
    own = torch.arange(count, device=classes.device)[anchored]
    x = F.normalize(torch.cat([features[chosen], anchors[anchored].to(features)]).double(), dim=1)
    y = torch.cat([classes[chosen], own])
    w = torch.cat([weights[chosen].double(), torch.full((len(own),), ANCHOR_WEIGHT).double()])
    w = balanced(y, w, count)
    target = torch.where(anchored[:, None], ANCHOR_SCALE * F.normalize(anchors.double(), dim=1), 0)
    rejected = None
    if negatives is not None and len(negatives[0]):
        rejected = (F.normalize(negatives[0].double(), dim=1), negatives[1], negatives[2].double())
    return _minimize(x, y, w, target, rejected, penalty)


def balanced(
    classes: Integer[Tensor, " n"], weights: Float[Tensor, " n"], count: int
) -> Float[Tensor, " n"]:
    """Scale weights so that every class that occurs has the same total; the sum stays.

    Examples:
        >>> balanced(torch.tensor([0, 0, 1]), torch.ones(3).double(), 2).tolist()
        [0.75, 0.75, 1.5]
    """
    total = torch.zeros(count, dtype=weights.dtype).index_add_(0, classes, weights)
    present = int((total > 0).sum())
    return weights * (weights.sum() / max(1, present)) / total.clamp_min(1e-12)[classes]


def objective(
    weight: Float[Tensor, "k c"],
    bias: Float[Tensor, " k"],
    x: Float[Tensor, "n c"],
    classes: Integer[Tensor, " n"],
    weights: Float[Tensor, " n"],
    target: Float[Tensor, "k c"],
    negatives: tuple[Tensor, Tensor, Tensor] | None = None,
    penalty: float = PENALTY,
) -> tuple[float, Float[Tensor, "k c"], Float[Tensor, " k"]]:
    """Return the loss of :func:`learn_tokens` and its gradient.

    An example of class c adds ``-w log p_c``, and one that is not of class c adds
    ``-w log(1 - p_c)``.

    Args:
        x: normalized features of the examples.
        target: weights that the penalty pulls to.
        negatives: normalized features, classes and weights of the negative examples.
    """
    log_p = (x @ weight.T + bias).log_softmax(1)
    rows = torch.arange(len(x))
    loss = -(weights * log_p[rows, classes]).sum()
    gradient = log_p.exp()
    gradient[rows, classes] -= 1
    gradient *= weights[:, None]
    by_weight, by_bias = gradient.T @ x, gradient.sum(0)
    if negatives is not None:
        other, wrong, w = negatives
        p = (other @ weight.T + bias).softmax(1)
        rows = torch.arange(len(other))
        own = p[rows, wrong].clamp_max(1 - 1e-9)
        loss = loss - (w * torch.log1p(-own)).sum()
        # d -log(1 - p_c) / d z_j = p_c (delta_jc - p_j) / (1 - p_c)
        slope = -p
        slope[rows, wrong] += 1
        slope = slope * (w * own / (1 - own))[:, None]
        by_weight, by_bias = by_weight + slope.T @ other, by_bias + slope.sum(0)
    difference = weight - target
    # The penalty of the biases is tiny: it only makes the minimum unique.
    loss = loss + penalty / 2 * difference.square().sum() + 1e-3 / 2 * bias.square().sum()
    return float(loss), by_weight + penalty * difference, by_bias + 1e-3 * bias


def _minimize(
    x: Tensor,
    classes: Tensor,
    weights: Tensor,
    target: Tensor,
    negatives: tuple[Tensor, Tensor, Tensor] | None,
    penalty: float,
) -> tuple[Tensor, Tensor]:
    """Minimize :func:`objective` by L-BFGS, from the target."""
    from scipy.optimize import minimize

    shape = target.shape

    def function(flat: np.ndarray) -> tuple[float, np.ndarray]:
        both = torch.from_numpy(flat)
        weight, bias = both[: target.numel()].view(shape), both[target.numel() :]
        loss, *gradient = objective(weight, bias, x, classes, weights, target, negatives, penalty)
        return loss, torch.cat([part.flatten() for part in gradient]).numpy()

    start = torch.cat([target.flatten(), torch.zeros(len(target), dtype=torch.double)]).numpy()
    options = {"maxiter": ITERATIONS, "maxcor": 20, "ftol": 1e-9, "gtol": 1e-5 * max(1, len(x))}
    found = torch.from_numpy(minimize(function, start, jac=True, method="L-BFGS-B",
                                      options=options).x)  # fmt: skip
    return found[: target.numel()].view(shape).clone(), found[target.numel() :].clone()


def class_prior(logits: Float[Tensor, "m k"]) -> Float[Tensor, " k"]:
    """Estimate how frequent classes are in unlabeled data (Saerens et al. 2002).

    EM over the posteriors p of a classifier that was trained on equally frequent classes. The
    E-step weights p_k by the frequency of class k and normalizes; the M-step averages over the
    data. The average is mixed with :data:`EM_SMOOTHING` of the uniform distribution.

    Args:
        logits: logits of the classifier on the unlabeled data.

    Returns:
        Frequency of each class, with sum 1.

    Examples:
        >>> logits = torch.tensor([[9.0, 0.0]] * 3 + [[0.0, 9.0]]).double()
        >>> [round(share, 3) for share in class_prior(logits).tolist()]
        [0.675, 0.325]
    """
    p = logits.double().softmax(1)
    prior = torch.full((p.shape[1],), 1 / p.shape[1], dtype=torch.double)
    for _ in range(EM_ITERATIONS):
        posterior = p * prior
        posterior /= posterior.sum(1, keepdim=True).clamp_min(1e-300)
        updated = (1 - EM_SMOOTHING) * posterior.mean(0) + EM_SMOOTHING / len(prior)
        change = float((updated - prior).abs().sum())
        prior = updated
        if change < 1e-7:
            break
    return prior


def fit_temperature(
    logits: Float[Tensor, "n k"], classes: Integer[Tensor, " n"], weights: Float[Tensor, " n"]
) -> float:
    """Return the temperature that minimizes the cross-entropy of held-out examples.

    A few examples that are all correct say little about how sure a classifier may be. Labels are
    therefore smoothed: a share of 1 / (1 + sum of the weights) belongs to all classes. The
    golden-section search is over the logarithm of the temperature.

    Args:
        logits: logits of a classifier that has not seen the examples.

    Examples:
        >>> logits = torch.tensor([[8.0, 0.0], [8.0, 0.0], [8.0, 0.0], [8.0, 0.0]])
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1]), torch.ones(4)), 2)
        9.44
    """
    logits, weights = logits.double(), weights.double()
    rows = torch.arange(len(logits))
    share = 1 / (1 + float(weights.sum()))

    def loss(log_t: float) -> float:
        log_p = (logits / np.exp(log_t)).log_softmax(1)
        smoothed = (1 - share) * log_p[rows, classes] + share * log_p.mean(1)
        return float(-(weights * smoothed).sum())

    low, high = (float(np.log(t)) for t in TEMPERATURES)
    ratio = (5**0.5 - 1) / 2
    for _ in range(40):
        one, other = high - ratio * (high - low), low + ratio * (high - low)
        if loss(one) <= loss(other):
            high = other
        else:
            low = one
    return float(np.exp((low + high) / 2))


def reject_threshold(
    logits: Float[Tensor, "n k"],
    classes: Integer[Tensor, " n"],
    weights: Float[Tensor, " n"],
    kept: float = 0.95,
) -> float:
    """Return the largest probability threshold that keeps a share of the correct examples.

    Args:
        logits: calibrated logits of a classifier that has not seen the examples.
        kept: weighted share of the correctly classified examples whose largest probability is at
            least the threshold.

    Examples:
        >>> logits = torch.tensor([[4.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> round(reject_threshold(logits, torch.tensor([0, 0, 0]), torch.ones(3), 0.5), 3)
        0.982
    """
    best, winner = logits.double().softmax(1).max(1)
    right = winner == classes
    if not right.any():
        return 0.0
    values, order = best[right].sort(descending=True)
    share = weights[right][order].double().cumsum(0)
    place = int(torch.searchsorted(share, kept * share[-1] - 1e-9))
    return float(values[min(place, len(values) - 1)])


def _subset(classes: Integer[Tensor, " n"], number: int) -> Integer[Tensor, " m"]:
    """Return at most ``number`` evenly spaced examples, the same number of each class if possible.

    Classes with fewer examples keep all of them.
    """
    if len(classes) <= number:
        return torch.arange(len(classes))
    counts = classes.bincount()
    low, high = 1, number
    while low < high:  # the largest limit per class that gives at most ``number`` examples
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if counts.clamp_max(middle).sum() <= number else (low, middle - 1)
        )
    parts = []
    for k in counts.nonzero()[:, 0].tolist():
        rows = (classes == k).nonzero()[:, 0]
        taken = min(low, len(rows))
        parts.append(rows[torch.arange(taken) * len(rows) // taken])
    return torch.cat(parts).sort().values
