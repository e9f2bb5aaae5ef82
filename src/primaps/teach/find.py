"""This, everywhere: from one region to a score map for every image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from primaps.features.maps import FeatureMaps
from primaps.teach.annotations import Annotation, mask_geometry, now
from primaps.teach.examples import TokenExamples, token_examples
from primaps.teach.tokens import MAX_EXAMPLES, learn_tokens
from primaps.utils.bilinear import upsample
from primaps.utils.errors import InputError
from primaps.utils.progress import ProgressCallback, silent

THRESHOLD = 0.5
"""Default threshold of scores."""
PENALTY = 0.05
"""Weight of the penalty of :func:`find_region`, relative to an example of weight 1.

With the 0.5 of the learner, no score for one of 16 points exceeded 0.66, and the threshold 0.7
found nothing; the order of tokens was about the same (docs/notes/teach.md).
"""


@dataclass(frozen=True)
class Found:
    """Scores of all images for the class of one region.

    Attributes:
        name: class name.
        maps: score of every patch token by image key, in [0, 1].
        sizes: height and width of each image in pixels.
        digests: SHA-256 of each image.
    """

    name: str
    maps: dict[str, Float[np.ndarray, "h w"]]
    sizes: dict[str, tuple[int, int]]
    digests: dict[str, str]

    def scores(self, key: str) -> Float[np.ndarray, "H W"]:
        """Return the scores of an image at its own size."""
        tokens = torch.from_numpy(self.maps[key])[None, None]
        return upsample(tokens, self.sizes[key])[0, 0].numpy()

    def mask(self, key: str, threshold: float = THRESHOLD) -> Bool[np.ndarray, "H W"]:
        """Return the pixels of an image whose scores are at least ``threshold``."""
        return self.scores(key) >= threshold

    def ranked(self, threshold: float = THRESHOLD) -> list[str]:
        """Return the images with a score of at least ``threshold``, the best scores first."""
        best = {key: float(scores.max()) for key, scores in self.maps.items()}
        return sorted((key for key in best if best[key] >= threshold), key=lambda key: -best[key])

    def annotations(
        self, threshold: float = THRESHOLD, keys: Iterable[str] | None = None
    ) -> list[Annotation]:
        """Return the masks above ``threshold`` as annotations, for a person who accepts them.

        Args:
            threshold: minimum score, in [0, 1].
            keys: images to accept; None accepts all.
        """
        found, time = [], now()
        for key in self.maps if keys is None else keys:
            mask = self.mask(key, threshold)
            if mask.any():
                geometry, size = mask_geometry(mask), self.sizes[key]
                one = Annotation(key, self.digests[key], "mask", self.name, geometry, size)
                found.append(replace(one, time=time, source="find"))
        return found


def find_region(
    regions: Sequence[Annotation],
    maps: FeatureMaps,
    *,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> Found:
    """Score every patch token of a collection by its similarity to annotated regions.

    A logistic classifier separates the tokens of the regions from a sample of all tokens, in
    which both have the same total weight.

    Args:
        regions: annotations of one class. Those with ``negative`` show what it is not.
        maps: feature maps of the collection.
        seed: random seed of the sample.
        progress: progress callback.

    Raises:
        InputError: the regions have several names, or none shows the class.
    """
    names = {one.name for one in regions if one.answer == "class" and one.name}
    if len(names) != 1 or all(one.negative for one in regions):
        listed = ", ".join(sorted(map(str, names))) or "none"
        raise InputError(
            f"find needs regions of one class, got {listed}; give at least one region of one class"
        )
    name = names.pop()
    parts = [token_examples([one], [name], maps[one.image], proposals=False) for one in regions]
    examples = TokenExamples.join(parts)
    weight, bias = separate(examples, maps.sample(MAX_EXAMPLES, seed))
    scores = {}
    for number, key in enumerate(maps.keys, 1):
        logits = F.normalize(maps.tokens(key).double(), dim=1) @ weight + bias
        scores[key] = logits.sigmoid().float().view(maps.grid(key)).numpy()
        progress("find", number, len(maps), {})
    sizes = {key: maps.size(key) for key in maps.keys}
    return Found(str(name), scores, sizes, dict(maps.digests))


def separate(
    examples: TokenExamples, unlabeled: Float[Tensor, "m c"]
) -> tuple[Float[Tensor, " c"], Float[Tensor, ""]]:
    """Return weight and bias of the logistic classifier of :func:`find_region`."""
    own, others = examples.positives, examples.negatives
    features = torch.cat([own.features, others.features, unlabeled.to(own.features)])
    classes = (torch.arange(len(features)) >= len(own)).long()
    weights = torch.cat([own.weights, others.weights, torch.ones(len(unlabeled))])
    none = torch.zeros(2, dtype=torch.bool)
    # As strong as with the examples alone, though all unlabeled tokens weigh as much.
    penalty = PENALTY * max(1.0, float(weights.sum()) / (2 * float(own.weights.sum()) + 1e-9))
    blank = features.new_zeros(2, features.shape[1])
    weight, bias = learn_tokens(features, classes, weights, blank, none, penalty=penalty)
    return weight[0] - weight[1], bias[0] - bias[1]
