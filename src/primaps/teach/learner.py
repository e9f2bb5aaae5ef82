"""The learner: from annotations and feature maps to a taught classifier.

Functions take tensors and read no files, so that a program that shows images can learn again after
every annotation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from primaps.classes.legend import HIDDEN
from primaps.features.maps import FeatureMaps
from primaps.teach.annotations import Annotation, class_names, expand_label_maps
from primaps.teach.examples import TokenExamples, token_examples
from primaps.teach.taught import NamedPrototypes, Taught
from primaps.teach.tokens import (
    balanced,
    fit_temperature,
    learn_tokens,
    reject_threshold,
)
from primaps.utils.colors import palette
from primaps.utils.errors import InputError
from primaps.utils.progress import ProgressCallback, silent

PRIOR_TOKENS = 20_000
"""Number of unlabeled tokens that class frequencies are estimated on."""
FOLDS = 5
"""Maximum number of groups of annotated images that are held out in turn."""
MAX_REJECT = 0.99
"""Maximum rejection threshold, if all held-out examples are classified with certainty."""


def learn(
    annotations: Iterable[Annotation],
    maps: FeatureMaps,
    digests: Mapping[str, str],
    unsupervised: NamedPrototypes,
    *,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> Taught:
    """Learn from annotations.

    Args:
        annotations: annotations without contradictions, see
            :func:`primaps.teach.annotations.resolve_annotations`.
        maps: feature maps of the collection.
        digests: image key to SHA-256, of the images of the collection.
        unsupervised: classes that were found without labels and named.
        seed: random seed.
        progress: progress callback.

    Raises:
        InputError: there are fewer than two classes, or more than 255.
    """
    listed = tuple(annotations)
    names = (*unsupervised.names, *sorted({*class_names(listed)} - {*unsupervised.names}))
    check_count(names)
    by_image = group_by_image(listed)
    parts = []
    for number, (key, own) in enumerate(by_image.items(), 1):
        parts.append(token_examples(own, names, maps[key]))
        progress("examples", number, len(by_image), {})
    examples = TokenExamples.join(parts) if parts else _no_examples(unsupervised.directions)
    prior = maps.sample(PRIOR_TOKENS, seed)
    weight, bias = fit_tokens(examples, unsupervised, len(names), prior)
    held_out = held_out_logits(examples, unsupervised, len(names), prior)
    temperature, reject, scores = calibrate(examples.positives, held_out, weight, bias, prior)
    return describe(
        names, unsupervised, listed, {key: digests[key] for key in by_image}, weight, bias,
        temperature, reject, scores, prior, examples.positives,
    )  # fmt: skip


def check_annotations(annotations: Iterable[Annotation], maps: FeatureMaps) -> None:
    """Refuse annotations of images that are not in the collection, or that have changed.

    Raises:
        InputError: see above; the message names the first image.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for one in annotations:
        if one.image not in maps:
            raise InputError(
                f"the annotated image {one.image!r} is not in the collection; add it to the images "
                "or remove its annotations"
            )
        if one.image not in sizes:
            sizes[one.image] = maps.size(one.image)
        height, width = sizes[one.image]
        if one.size != (height, width):
            raise InputError(
                f"the image {one.image!r} has {width}x{height} pixels, but was annotated at "
                f"{one.size[1]}x{one.size[0]}; annotate the image as it is"
            )
        if one.digest not in (None, maps.digests[one.image]):
            raise InputError(
                f"the image {one.image!r} has changed since it was annotated; restore it or "
                "annotate it again"
            )


def renamed(annotation: Annotation, names: Mapping[str, str]) -> list[Annotation]:
    """Return an annotation under other class names; a label map becomes a mask per class.

    Args:
        names: earlier to present names; others stay.

    Examples:
        >>> point = Annotation("a", None, "point", "road", [1, 1], (4, 4))
        >>> [one.name for one in renamed(point, {"road": "street"})]
        ['street']
    """
    shown = class_names([annotation]) or [str(annotation.name)]  # a negative one shows none
    if all(name == names.get(name, name) for name in shown):
        return [annotation]
    return [
        replace(one, name=names.get(str(one.name), one.name))
        for one in expand_label_maps([annotation])
    ]


def group_by_image(annotations: Iterable[Annotation]) -> dict[str, list[Annotation]]:
    """Return the annotations that answer with a class, by image, in the order of the images."""
    found: dict[str, list[Annotation]] = defaultdict(list)
    for one in annotations:
        if one.answer == "class":
            found[one.image].append(one)
    return dict(found)


def check_count(names: Sequence[str]) -> None:
    """Refuse fewer than two classes, or more than a label map can have.

    Raises:
        InputError: see above.
    """
    if len(names) < 2:
        said = f"only {names[0]!r}" if names else "no class"
        raise InputError(
            f"the annotations show {said}; annotate at least two classes, or name a class of the "
            "model"
        )
    if len(names) > HIDDEN:
        raise InputError(
            f"the annotations and the named classes are {len(names)} classes; label maps support "
            f"at most {HIDDEN}"
        )


def fit_tokens(
    examples: TokenExamples,
    unsupervised: NamedPrototypes,
    classes: int,
    prior: Float[Tensor, "m c"] | None,
) -> tuple[Float[Tensor, "k c"], Float[Tensor, " k"]]:
    """Learn the linear classifier of tokens from examples; see :func:`learn_tokens`.

    Args:
        unsupervised: its classes are the first ones.
        classes: number of classes.
        prior: sample of the unlabeled features.
    """
    channels = unsupervised.directions.shape[1]
    anchors = torch.zeros(classes, channels)
    anchors[: len(unsupervised.names)] = unsupervised.directions.float()
    anchored = torch.arange(classes) < len(unsupervised.names)
    own, others = examples.positives, examples.negatives
    return learn_tokens(
        own.features, own.classes, own.weights, anchors, anchored, prior,
        (others.features, others.classes, others.weights),
    )  # fmt: skip


def folds(images: Integer[Tensor, " n"]) -> list[Integer[Tensor, " m"]]:
    """Return groups of images that are held out in turn: each image, or at most five groups.

    Examples:
        >>> folds(torch.tensor([3, 3, 5]))
        [tensor([3]), tensor([5])]
    """
    present = images.unique()
    if len(present) < 2:
        return []
    count = min(FOLDS, len(present))
    return [present[n::count] for n in range(count)]


def held_out_logits(
    examples: TokenExamples,
    unsupervised: NamedPrototypes,
    classes: int,
    prior: Float[Tensor, "m c"] | None,
) -> Float[Tensor, "n k"] | None:
    """Return the logits of the positive examples by classifiers that have not seen their images.

    Returns:
        None if examples are of fewer than two images.
    """
    own = examples.positives
    groups = folds(own.images)
    if not groups:
        return None
    logits = torch.zeros(len(own), classes, dtype=torch.double)
    for group in groups:
        rest = examples[~torch.isin(examples.images, group)]
        weight, bias = fit_tokens(rest, unsupervised, classes, prior)
        rows = torch.isin(own.images, group)
        logits[rows] = F.normalize(own.features[rows].double(), dim=1) @ weight.T + bias
    return logits


def calibrate(
    examples: TokenExamples,
    held_out: Float[Tensor, "n k"] | None,
    weight: Float[Tensor, "k c"],
    bias: Float[Tensor, " k"],
    prior: Float[Tensor, "m c"],
) -> tuple[float, float | None, dict[str, float]]:
    """Return temperature, rejection threshold and scores from held-out examples.

    Examples are weighted such that classes are as frequent as in the unlabeled tokens, because
    annotations are not. Examples of a class that no other image shows are left out.

    Args:
        examples: positive examples.
        held_out: their logits by :func:`held_out_logits`.
        weight, bias: the final classifier.
        prior: sample of the unlabeled features.
    """
    if held_out is None:
        return 1.0, None, {}
    count = len(weight)
    elsewhere = torch.zeros(len(examples), dtype=torch.bool)
    for k in examples.classes.unique().tolist():
        rows = examples.classes == k
        elsewhere[rows] = len(examples.images[rows].unique()) > 1
    if not elsewhere.any():
        return 1.0, None, {}
    chosen, logits = examples[elsewhere], held_out[elsewhere]
    frequency = torch.full((count,), 1 / count, dtype=torch.double)
    if len(prior):
        unlabeled = F.normalize(prior.double(), dim=1) @ weight.T + bias
        frequency = unlabeled.softmax(1).mean(0)
    weights = balanced(chosen.classes, chosen.weights.double(), count) * frequency[chosen.classes]
    temperature = fit_temperature(logits, chosen.classes, weights)
    reject = reject_threshold(logits / temperature, chosen.classes, weights)
    reject = min(reject, MAX_REJECT)
    guesses = logits.argmax(1)
    scores = {"tokens": mean_iou(guesses, chosen.classes, chosen.weights, count)}
    return temperature, reject, scores


def mean_iou(
    found: Integer[Tensor, " n"],
    classes: Integer[Tensor, " n"],
    weights: Float[Tensor, " n"],
    count: int,
) -> float:
    """Return the mean IoU over the classes that occur, of weighted examples.

    Examples:
        >>> mean_iou(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), torch.ones(3), 2)
        0.5
    """
    counts = torch.zeros(count * count, dtype=torch.double)
    counts.index_add_(0, classes * count + found, weights.double())
    matrix = counts.view(count, count)
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    occurs = matrix.sum(1) > 0
    return float((matrix.diagonal() / union.clamp_min(1e-12))[occurs].mean())


def describe(
    names: Sequence[str],
    unsupervised: NamedPrototypes,
    annotations: tuple[Annotation, ...],
    images: Mapping[str, str],
    weight: Float[Tensor, "k c"],
    bias: Float[Tensor, " k"],
    temperature: float,
    reject: float | None,
    scores: Mapping[str, float],
    prior: Float[Tensor, "m c"],
    examples: TokenExamples,
) -> Taught:
    """Return what a model was taught on the level of tokens."""
    shown: Counter[str] = Counter()
    for one in expand_label_maps(annotations):
        if one.answer == "class" and not one.negative:
            shown[str(one.name)] += 1
    count = len(names)
    means = torch.zeros(count, weight.shape[1])
    means[: len(unsupervised.names)] = unsupervised.directions.float()
    own = F.normalize(examples.features.float(), dim=1) * examples.weights[:, None]
    sums = torch.zeros_like(means).index_add_(0, examples.classes, own)
    means = torch.where(sums.norm(dim=1, keepdim=True) > 0, sums, means)
    found = (F.normalize(prior.double(), dim=1) @ weight.T + bias).argmax(1)
    return Taught(
        tuple(names),
        class_colors(names, unsupervised),
        weight.float(),
        bias.float(),
        temperature,
        reject,
        "tokens",
        F.normalize(means, dim=1),
        found.bincount(minlength=count),
        {name: shown[name] for name in names},
        dict(images),
        annotations,
        unsupervised,
        dict(scores),
    )


def class_colors(
    names: Sequence[str], unsupervised: NamedPrototypes
) -> tuple[tuple[int, int, int], ...]:
    """Return the colors of named classes, and other colors of the palette for the rest.

    Examples:
        >>> named = NamedPrototypes(("sky",), ((1, 2, 3),), torch.eye(2)[:1])
        >>> len(set(class_colors(["sky", "car", "road"], named)))
        3
    """
    known = dict(zip(unsupervised.names, unsupervised.colors, strict=True))
    taken = set(known.values())
    free = (
        color
        for color in map(tuple, palette(len(names) + len(taken)).tolist())
        if color not in taken
    )
    return tuple(known[name] if name in known else next(free) for name in names)


def _no_examples(directions: Float[Tensor, "a c"]) -> TokenExamples:
    empty = torch.zeros(0, dtype=torch.long)
    features = torch.zeros(0, directions.shape[1])
    return TokenExamples(features, empty, torch.zeros(0), empty, empty)
