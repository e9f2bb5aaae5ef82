"""The learner: from annotations and feature maps to a taught classifier.

Functions take tensors and read no files, so that a program that shows images can learn again after
every annotation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor

from primaps.classes.legend import HIDDEN
from primaps.features.maps import FeatureMaps
from primaps.teach.annotations import Annotation, class_names, expand_label_maps
from primaps.teach.examples import TokenExamples, pixel_labels, token_examples
from primaps.teach.pixels import (
    MAX_PIXELS,
    PixelExamples,
    learn_pixels,
    pixel_examples,
    pixel_features,
)
from primaps.teach.taught import NamedPrototypes, Taught
from primaps.teach.tokens import (
    balanced,
    class_prior,
    fit_temperature,
    learn_tokens,
    reject_threshold,
)
from primaps.utils.colors import palette
from primaps.utils.errors import InputError
from primaps.utils.progress import ProgressCallback, silent

LevelOption = Literal["auto", "tokens", "pixels"]
PRIOR_POWER = 0.0
"""Power of the estimated class frequencies that multiplies probabilities. With 0 all classes count
as equally frequent. On three data sets, at the token level and without the CRF, the frequencies
lowered the mean IoU at every number of answers (docs/notes/teach.md). An earlier trial with a weak
penalty had found the opposite; at the pixel level this was not measured. Frequencies still weigh
the held-out examples of the rejection threshold."""
PRIOR_TOKENS = 20_000
"""Number of unlabeled tokens that class frequencies are estimated on."""
FOLDS = 5
"""Maximum number of groups of annotated images that are held out in turn."""
PIXEL_FOLDS = 3
"""The same for the pixel level, which takes longer to learn."""
MIN_REGION_IMAGES = 3
"""Minimum number of images with annotated regions for which ``auto`` considers the pixel level."""
MIN_GAIN = 0.01
"""Gain in mean IoU on held-out annotated pixels for which ``auto`` chooses the pixel level."""
MAX_REJECT = 0.99
"""Maximum rejection threshold, if all held-out examples are classified with certainty."""


def learn(
    annotations: Iterable[Annotation],
    maps: FeatureMaps,
    digests: Mapping[str, str],
    unsupervised: NamedPrototypes,
    scaled_image: Callable[[str], UInt8[Tensor, "3 H W"]] | None = None,
    *,
    level: LevelOption = "auto",
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
        scaled_image: returns an annotated image at the size that its feature map was computed at;
            None learns tokens only.
        level: ``tokens``, ``pixels``, or ``auto``: pixels if the mean IoU on held-out annotated
            pixels is at least :data:`MIN_GAIN` higher than with tokens, and annotations cover
            regions in at least :data:`MIN_REGION_IMAGES` images.
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
    for number, (key, answers) in enumerate(by_image.items(), 1):
        parts.append(token_examples(answers, names, maps[key]))
        progress("examples", number, len(by_image), {})
    examples = TokenExamples.join(parts) if parts else _no_examples(unsupervised.directions)
    unlabeled = maps.sample(PRIOR_TOKENS, seed)
    weight, bias = fit_tokens(examples, unsupervised, len(names))
    blind = blind_classifiers(examples, unsupervised, len(names))
    positives = examples.positives
    held_out = held_out_logits(positives, blind)
    temperature, reliable = calibrate(positives, held_out, weight, bias)
    weight, bias = weight / temperature, bias / temperature
    prior = class_prior(token_logits(unlabeled, weight, bias))
    shift = PRIOR_POWER * prior.log()
    reject: float | None = None
    scores: dict[str, float] = {}
    if held_out is not None and reliable.any():
        logits = held_out[reliable] / temperature + shift
        reject, scores = assess(positives[reliable], logits, prior)
    found = describe(
        names, unsupervised, listed, {key: digests[key] for key in by_image}, weight,
        bias + shift, temperature, reject, scores, unlabeled, positives,
    )  # fmt: skip
    if level == "tokens" or scaled_image is None or (level == "auto" and not has_regions(by_image)):
        return found
    pixels = annotated_pixels(
        by_image, names, maps, scaled_image, found, blind, shift, seed, progress
    )
    return add_pixels(found, pixels, prior, shift, level, seed)


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
    examples: TokenExamples, unsupervised: NamedPrototypes, classes: int
) -> tuple[Float[Tensor, "k c"], Float[Tensor, " k"]]:
    """Learn the linear classifier of tokens from examples; see :func:`learn_tokens`.

    Args:
        examples: annotated tokens.
        unsupervised: its classes are the first ones.
        classes: number of classes.
    """
    channels = unsupervised.directions.shape[1]
    anchors = torch.zeros(classes, channels)
    anchors[: len(unsupervised.names)] = unsupervised.directions.float()
    anchored = torch.arange(classes) < len(unsupervised.names)
    own, others = examples.positives, examples.negatives
    return learn_tokens(
        own.features, own.classes, own.weights, anchors, anchored,
        (others.features, others.classes, others.weights),
    )  # fmt: skip


def token_logits(
    features: Float[Tensor, "n c"], weight: Float[Tensor, "k c"], bias: Float[Tensor, " k"]
) -> Float[Tensor, "n k"]:
    """Return the logits of features, which are normalized, in float64."""
    return F.normalize(features.double(), dim=1) @ weight.double().T + bias.double()


def folds(images: Integer[Tensor, " n"], most: int = FOLDS) -> list[Integer[Tensor, " m"]]:
    """Return groups of images that are held out in turn: each image, or at most ``most`` groups.

    Examples:
        >>> folds(torch.tensor([3, 3, 5]))
        [tensor([3]), tensor([5])]
    """
    present = images.unique()
    if len(present) < 2:
        return []
    count = min(most, len(present))
    return [present[n::count] for n in range(count)]


Blind = dict[int, tuple[Tensor, Tensor]]
"""Number of an image to weights and biases of a classifier that has not seen it."""


def blind_classifiers(
    examples: TokenExamples, unsupervised: NamedPrototypes, classes: int
) -> Blind:
    """Return, for each annotated image, a classifier that has not seen it.

    Returns:
        Empty if examples are of fewer than two images.
    """
    found: Blind = {}
    for group in folds(examples.positives.images):
        rest = examples[~torch.isin(examples.images, group)]
        fitted = fit_tokens(rest, unsupervised, classes)
        found |= dict.fromkeys(group.tolist(), fitted)
    return found


def held_out_logits(examples: TokenExamples, blind: Blind) -> Float[Tensor, "n k"] | None:
    """Return the logits of examples by classifiers that have not seen their images, or None."""
    if not blind:
        return None
    parts = torch.zeros(len(examples), len(next(iter(blind.values()))[1]), dtype=torch.double)
    for number in examples.images.unique().tolist():
        rows = examples.images == number
        parts[rows] = token_logits(examples.features[rows], *blind[number])
    return parts


def has_regions(by_image: Mapping[str, Sequence[Annotation]]) -> bool:
    """Return whether annotations cover regions in enough images to compare the levels."""
    kinds = ("mask", "polygon", "label_map", "scribble")
    with_regions = [key for key, own in by_image.items() if any(one.kind in kinds for one in own)]
    return len(with_regions) >= MIN_REGION_IMAGES


def annotated_pixels(
    by_image: Mapping[str, Sequence[Annotation]],
    names: Sequence[str],
    maps: FeatureMaps,
    scaled_image: Callable[[str], UInt8[Tensor, "3 H W"]],
    found: Taught,
    blind: Blind,
    shift: Float[Tensor, " k"],
    seed: int,
    progress: ProgressCallback = silent,
) -> PixelExamples:
    """Return features and classes of a sample of the annotated pixels of all images.

    The log-probabilities of tokens come from classifiers that have not seen the image. Those of the
    final classifier would be too certain on it.

    Args:
        by_image: annotations by image.
        names: class names.
        maps: feature maps of the collection.
        scaled_image: returns an image at the size that its feature map was computed at.
        found: result of the token level.
        blind: result of :func:`blind_classifiers`.
        shift: what class frequencies add to the logits of tokens.
        seed: random seed of the sample.
        progress: progress callback.
    """
    parts = []
    for number, (key, own) in enumerate(by_image.items()):
        image, map_ = scaled_image(key), maps[key]
        weight, bias = blind.get(
            number, (found.weight * found.temperature / 2, found.bias * found.temperature / 2)
        )
        logits = token_logits(map_.flatten(1).T, weight, bias) / found.temperature + shift
        grid = logits.T.float().unflatten(1, map_.shape[1:])
        features = pixel_features(grid[None], image[None])[0]
        labels = pixel_labels(own, names, (features.shape[1], features.shape[2]))
        count = max(1, MAX_PIXELS // len(by_image))
        parts.append(pixel_examples(features, labels, count, seed, key))
        progress("pixels", number + 1, len(by_image), {})
    return PixelExamples.join(parts)


def add_pixels(
    found: Taught,
    examples: PixelExamples,
    prior: Float[Tensor, " k"],
    shift: Float[Tensor, " k"],
    level: LevelOption,
    seed: int,
) -> Taught:
    """Learn the pixel level, compare it with tokens on held-out images, and choose.

    Args:
        found: result of the token level.
        examples: result of :func:`annotated_pixels`.
        prior: frequency of each class, which weighs the held-out pixels.
        shift: what class frequencies add to the logits.
        level: ``pixels`` or ``auto``.
        seed: random seed.

    Raises:
        InputError: ``level`` is ``pixels``, and fewer than two classes have annotated pixels.
    """
    classes = len(found.names)
    if len(examples.classes.unique()) < 2:
        if level == "auto":
            return found
        raise InputError(
            "the pixel level needs annotated pixels of at least two classes; annotate another "
            "class, or choose level 'tokens'"
        )
    scores, temperature, reject = {}, 1.0, None
    logits, rows = held_out_pixels(examples, classes, seed)
    if rows.any():
        chosen, z = examples[rows], logits[rows]
        weights = balanced(chosen.classes, torch.ones(len(chosen)).double(), classes)
        temperature = fit_temperature(z, chosen.classes, weights)
        z = z / temperature + shift
        weights = weights * prior[chosen.classes]
        reject = min(reject_threshold(z, chosen.classes, weights), MAX_REJECT)
        tokens = chosen.features[:, -classes:].argmax(1)
        scores = {
            "tokens": mean_iou(tokens, chosen.classes, weights, classes),
            "pixels": mean_iou(z.argmax(1), chosen.classes, weights, classes),
        }
    better = bool(scores) and scores["pixels"] >= scores["tokens"] + MIN_GAIN
    if level == "auto" and not better:
        return replace(found, scores=scores or found.scores)
    learned = replace(learn_pixels(examples, shift, seed), temperature=temperature, reject=reject)
    return replace(found, pixels=learned, level="pixels", scores=scores or found.scores)


def held_out_pixels(
    examples: PixelExamples, classes: int, seed: int
) -> tuple[Float[Tensor, "n k"], Bool[Tensor, " n"]]:
    """Return the logits of pixels by trees that have not seen their images.

    Returns:
        The logits, and for which pixels they could be computed: their class is shown by images
        that the trees have seen.
    """
    logits = torch.zeros(len(examples), classes, dtype=torch.double)
    known = torch.zeros(len(examples), dtype=torch.bool)
    for group in folds(examples.images, PIXEL_FOLDS):
        held = torch.isin(examples.images, group)
        rest = examples[~held]
        present = rest.classes.unique()
        if len(present) < 2:
            continue
        trees = learn_pixels(rest, torch.zeros(classes), seed)
        logits[held] = trees.classify(examples.features[held]).double()
        known |= held & torch.isin(examples.classes, present)
    return logits, known


def calibrate(
    examples: TokenExamples,
    held_out: Float[Tensor, "n k"] | None,
    weight: Float[Tensor, "k c"],
    bias: Float[Tensor, " k"],
) -> tuple[float, Bool[Tensor, " n"]]:
    """Return the temperature, and which held-out examples have a class that other images show.

    The temperature is fitted to these examples, in which all classes have the same weight. Without
    any, it is fitted to the examples of the classifier itself.

    Args:
        examples: positive examples.
        held_out: their logits by :func:`held_out_logits`.
        weight, bias: classifier of all examples.
    """
    reliable = torch.zeros(len(examples), dtype=torch.bool)
    for k in examples.classes.unique().tolist():
        rows = examples.classes == k
        reliable[rows] = len(examples.images[rows].unique()) > 1
    if not len(examples):
        return 1.0, reliable
    if held_out is None or not reliable.any():
        chosen, logits = examples, token_logits(examples.features, weight, bias)
    else:
        chosen, logits = examples[reliable], held_out[reliable]
    weights = balanced(chosen.classes, chosen.weights.double(), len(weight))
    return fit_temperature(logits, chosen.classes, weights), reliable


def assess(
    examples: TokenExamples, logits: Float[Tensor, "n k"], prior: Float[Tensor, " k"]
) -> tuple[float, dict[str, float]]:
    """Return the rejection threshold and the mean IoU on held-out examples.

    Examples are weighted such that classes are as frequent as in the unlabeled tokens, because
    annotations are not.

    Args:
        examples: held-out examples.
        logits: their calibrated logits.
        prior: frequency of each class.
    """
    count = len(prior)
    weights = balanced(examples.classes, examples.weights.double(), count)
    weights = weights * prior[examples.classes]
    reject = min(reject_threshold(logits, examples.classes, weights), MAX_REJECT)
    return reject, {"tokens": mean_iou(logits.argmax(1), examples.classes, weights, count)}


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
    unlabeled: Float[Tensor, "m c"],
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
    found = token_logits(unlabeled, weight, bias).argmax(1)
    return Taught(
        tuple(names),
        class_colors(names, unsupervised),
        weight.float(),
        bias.float(),
        temperature,
        reject,
        "tokens",
        None,
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
