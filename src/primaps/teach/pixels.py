"""The pixel level of the learner: boosted trees on colors, edges, texture and token logits.

Patch tokens know what a region is, but their grid is coarse. Pixels know where it ends. At half the
size of the scaled image, each pixel is described by its colors at several scales, gradients, local
contrast, and the upsampled log-probabilities of the token level. Gradient boosting classifies it;
the dense CRF follows at full size. The trees are stored as arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer, Shaped, UInt8
from torch import Tensor

from primaps.utils.bilinear import upsample
from primaps.utils.errors import InputError
from primaps.utils.inputs import need_tensor
from primaps.utils.seeding import generator

FINE_SCALES = (1.0, 2.0)
"""Standard deviations of blurs at full size, in pixels of the scaled image."""
COARSE_SCALES = (4.0, 8.0)
"""Standard deviations of blurs that are computed at half the size."""
OPPONENT = ((0.299, 0.587, 0.114), (0.5, -0.5, 0.0), (-0.25, -0.25, 0.5))
"""Luminance, red against green, and blue against yellow."""
FLOOR = -8.0
"""Minimum log-probability of a token as a feature of pixels."""
MAX_PIXELS = 20_000
"""Maximum number of annotated pixels that are learned from."""
TREES = 360
"""Approximate maximum number of trees, which decides the time of a prediction."""
ITERATIONS = (10, 40)
"""Minimum and maximum number of boosting iterations, each with a tree per class."""
STEP = 8.0
"""Learning rate times iterations; the learning rate is limited to 0.5."""
LEAVES = 16
"""Maximum number of leaves of a tree."""


@dataclass(frozen=True)
class PixelClassifier:
    """Boosted trees on the features of pixels.

    Attributes:
        feature, threshold, children, value, baseline: trees, see
            :func:`primaps.teach.trees.boosted`.
        bias: (K,), added to the logits after the division by the temperature.
        absent: classes without an annotated pixel, which keep their probability of the token level.
        temperature: divides the logits, so that probabilities are calibrated.
        reject: calibrated probability below which a pixel has no class with the option ``reject``;
            None without held-out images.
    """

    feature: Integer[Tensor, "t m"]
    threshold: Float[Tensor, "t m"]
    children: Integer[Tensor, "t m 2"]
    value: Float[Tensor, "t m"]
    baseline: Float[Tensor, " k"]
    bias: Float[Tensor, " k"]
    absent: Bool[Tensor, " k"]
    temperature: float = 1.0
    reject: float | None = None

    def logits(
        self, token_logits: Float[Tensor, "b k h w"], images: UInt8[Tensor, "b 3 H W"]
    ) -> Float[Tensor, "b k h2 w2"]:
        """Return the logits of pixels at half the size of images.

        Args:
            token_logits: calibrated logits of the token level.
            images: 8-bit images at the size of which the tokens were computed.
        """
        x = pixel_features(token_logits, images)
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        found = self.classify(rows).view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
        return found.contiguous().to(token_logits.device)

    def classify(self, rows: Float[Tensor, "n f"]) -> Float[Tensor, "n k"]:
        """Return the calibrated logits of features of pixels, on the CPU."""
        from primaps.teach.trees import boosted

        trees = (self.feature, self.threshold, self.children, self.value, self.baseline)
        sums = boosted(rows.cpu().numpy(), *(each.numpy() for each in trees))
        logits = torch.from_numpy(sums) / self.temperature + self.bias
        if not self.absent.any():
            return logits
        by_tokens = rows[:, -len(self.absent) :].cpu()
        rest = 1 - by_tokens[:, self.absent].exp().sum(1, keepdim=True)
        known = logits.masked_fill(self.absent, -torch.inf).log_softmax(1)
        return torch.where(self.absent, by_tokens, known + rest.clamp_min(1e-6).log())

    def tensors(self) -> dict[str, Tensor]:
        """Return the trees as tensors, for safetensors."""
        names = ("feature", "threshold", "children", "value", "baseline", "bias")
        found = {f"pixels.{name}": getattr(self, name).contiguous() for name in names}
        calibration = torch.tensor([self.temperature, self.reject or 0.0])
        return {**found, "pixels.calibration": calibration, "pixels.absent": self.absent.int(),
                "pixels.rejects": torch.tensor([int(self.reject is not None)])}  # fmt: skip

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], classes: int, where: str
    ) -> PixelClassifier | None:
        """Build the classifier from :meth:`tensors`; None if there are none.

        Raises:
            InputError: a tensor has another shape, or a node refers to one that does not exist.
        """
        if "pixels.feature" not in tensors:
            return None
        feature = need_tensor(tensors, "pixels.feature", (None, None), where, integers=True)
        shape = tuple(feature.shape)
        threshold = need_tensor(tensors, "pixels.threshold", shape, where)
        children = need_tensor(tensors, "pixels.children", (*shape, 2), where, integers=True)
        value = need_tensor(tensors, "pixels.value", shape, where)
        baseline = need_tensor(tensors, "pixels.baseline", (classes,), where)
        bias = need_tensor(tensors, "pixels.bias", (classes,), where)
        temperature, reject = need_tensor(tensors, "pixels.calibration", (2,), where).tolist()
        absent = need_tensor(tensors, "pixels.absent", (classes,), where, integers=True) > 0
        rejects = int(need_tensor(tensors, "pixels.rejects", (1,), where, integers=True))
        inner = feature >= 0
        own = torch.arange(shape[1])[:, None].expand(*shape, 2)
        forward = (children > own) & (children < shape[1])  # no circle, and inside the arrays
        if bool((feature >= feature_count(classes)).any()) or not bool(forward[inner].all()):
            raise InputError(f"{where}: the trees of the pixel level are malformed; teach again")
        if temperature <= 0 or shape[0] % classes:
            raise InputError(f"{where}: the pixel level is malformed; teach again")
        return cls(feature, threshold, children, value, baseline, bias, absent,
                   temperature, reject if rejects else None)  # fmt: skip


@dataclass(frozen=True)
class PixelExamples:
    """Annotated pixels of images.

    Attributes:
        features: features of each pixel.
        classes: class of each pixel.
        images: number of the image of each pixel.
    """

    features: Float[Tensor, "n f"]
    classes: Integer[Tensor, " n"]
    images: Integer[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, rows: Tensor) -> PixelExamples:
        """Return the examples at ``rows``."""
        return PixelExamples(self.features[rows], self.classes[rows], self.images[rows])

    @staticmethod
    def join(parts: Sequence[PixelExamples]) -> PixelExamples:
        """Return the examples of several images, which are numbered in their order."""
        return PixelExamples(
            torch.cat([part.features for part in parts]),
            torch.cat([part.classes for part in parts]),
            torch.cat([torch.full_like(part.images, n) for n, part in enumerate(parts)]),
        )


def feature_count(classes: int) -> int:
    """Return the number of features of a pixel."""
    return 3 + 5 * len(FINE_SCALES) + 5 * len(COARSE_SCALES) + classes


def half_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size of the pixel level for the size of a scaled image."""
    return math.ceil(size[0] / 2), math.ceil(size[1] / 2)


@torch.no_grad()
def pixel_features(
    token_logits: Float[Tensor, "b k h w"], images: UInt8[Tensor, "b 3 H W"]
) -> Float[Tensor, "b f h2 w2"]:
    """Return the features of pixels at half the size of images.

    They are the colors (luminance and two opponent channels); for each scale the blurred colors,
    the magnitude of the gradient and the standard deviation of the luminance; and the
    log-probabilities of the token level.

    Args:
        token_logits: calibrated logits of the token level.
        images: 8-bit RGB images.
    """
    mix = torch.tensor(OPPONENT, device=images.device)
    colors = torch.einsum("dc,bchw->bdhw", mix, images.float() / 255)
    size = half_size((images.shape[2], images.shape[3]))
    found = [F.adaptive_avg_pool2d(colors, size)]
    both, before = torch.cat([colors, colors[:, :1].square()], 1), 0.0
    for scale in (*FINE_SCALES, *COARSE_SCALES):
        step = math.sqrt(scale**2 - before**2)  # blurs of blurs add their variances
        coarse = scale in COARSE_SCALES
        if scale == COARSE_SCALES[0]:
            both = F.adaptive_avg_pool2d(both, size)
        both = blur(both, step / 2 if coarse else step)
        light = both[:, :1]
        contrast = (both[:, 3:] - light.square()).clamp_min(0).sqrt()
        each = torch.cat([both[:, :3], edge_strength(light), contrast], 1)
        found.append(each if coarse else F.adaptive_avg_pool2d(each, size))
        before = scale
    log_p = token_logits.to(images.device).float().log_softmax(1).clamp_min(FLOOR)
    return torch.cat([*found, upsample(log_p, size)], 1)


def blur(values: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
    """Convolve with a Gaussian of standard deviation ``sigma``; pixels at the border repeat."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=values.device, dtype=values.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = kernel / kernel.sum()
    flat = values.flatten(0, 1)[:, None]
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), "replicate"), kernel.view(1, 1, 1, -1))
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), "replicate"), kernel.view(1, 1, -1, 1))
    return flat.view_as(values)


def edge_strength(values: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Return the magnitude of the central differences; pixels at the border repeat."""
    padded = F.pad(values, (1, 1, 1, 1), "replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return (across.square() + down.square()).sqrt() / 2


def pixel_examples(
    features: Float[Tensor, "f h w"],
    labels: Integer[np.ndarray, "h w"],
    number: int,
    *purpose: int | str,
) -> PixelExamples:
    """Sample annotated pixels of an image, the same number of each class if possible.

    Args:
        features: :func:`pixel_features` of the image.
        labels: class of every annotated pixel, -1 elsewhere.
        number: maximum number of pixels.
        *purpose: seed of the sample.
    """
    flat = torch.from_numpy(labels).long().flatten()
    present = flat[flat >= 0].unique().tolist()
    rows = [torch.zeros(0, dtype=torch.long)]
    for k in present:
        own = (flat == k).nonzero()[:, 0]
        wanted = min(len(own), max(1, number // len(present)))
        order = torch.randperm(len(own), generator=generator("pixel examples", *purpose, k))
        rows.append(own[order[:wanted].sort().values])
    chosen = torch.cat(rows)
    images = torch.zeros(len(chosen), dtype=torch.long)
    return PixelExamples(features.flatten(1).T[chosen].cpu(), flat[chosen], images)


def learn_pixels(
    examples: PixelExamples, shift: Float[Tensor, " k"], seed: int = 0
) -> PixelClassifier:
    """Learn boosted trees from annotated pixels; all classes have the same total weight.

    Args:
        examples: annotated pixels of at least two classes.
        shift: what is added to the logit of each class.
        seed: random seed of scikit-learn.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    present = examples.classes.unique()
    count = 1 if len(present) == 2 else len(present)
    low, high = ITERATIONS
    iterations = min(high, max(low, TREES // count))
    boosting = HistGradientBoostingClassifier(
        max_iter=iterations, learning_rate=min(0.5, STEP / iterations), max_leaf_nodes=LEAVES,
        class_weight="balanced", early_stopping=False, random_state=abs(seed) % 2**32,
    )  # fmt: skip
    boosting.fit(examples.features.numpy(), examples.classes.numpy())
    return _as_arrays(boosting, present, shift)


def _as_arrays(
    boosting: object, present: Integer[Tensor, " p"], shift: Float[Tensor, " k"]
) -> PixelClassifier:
    """Return the trees of scikit-learn as arrays with a tree per class and iteration.

    With two classes, scikit-learn has one tree per iteration, whose value is the logit of the
    second class. A class without an example has empty trees.
    """
    predictors = boosting._predictors  # type: ignore[attr-defined]
    start = np.ravel(boosting._baseline_prediction)  # type: ignore[attr-defined]
    classes, binary = len(shift), len(present) == 2
    width = max(len(tree.nodes) for trees in predictors for tree in trees)
    shape = (len(predictors), classes, width)
    feature, children = np.full(shape, -1, np.int16), np.zeros((*shape, 2), np.int16)
    threshold, value = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    baseline, absent = np.zeros(classes, np.float32), torch.ones(classes, dtype=torch.bool)
    owners = present.tolist()[1:] if binary else present.tolist()
    baseline[owners], absent[present] = start, False
    for iteration, trees in enumerate(predictors):
        for tree, k in zip(trees, owners, strict=True):
            nodes = tree.nodes
            own, inner = iteration, ~nodes["is_leaf"].astype(bool)
            used = np.arange(len(nodes))
            feature[own, k, used] = np.where(inner, nodes["feature_idx"], -1)
            threshold[own, k, used] = _float_below(nodes["num_threshold"])
            children[own, k, used, 0], children[own, k, used, 1] = nodes["left"], nodes["right"]
            value[own, k, used] = np.where(inner, 0, nodes["value"])
    return PixelClassifier(
        _tree_axis(feature), _tree_axis(threshold), _tree_axis(children), _tree_axis(value),
        torch.from_numpy(baseline), shift.float(), absent,
    )  # fmt: skip


def _tree_axis(values: Shaped[np.ndarray, "i k *m"]) -> Shaped[Tensor, t * m]:
    """Join the axes of iterations and classes; tree t is of class t mod K."""
    return torch.from_numpy(values.reshape(-1, *values.shape[2:]))


def _float_below(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return the largest float32 numbers that do not exceed float64 numbers.

    A float32 feature is at most the number exactly if it is at most the result.
    """
    rounded = values.astype(np.float32)
    above = rounded.astype(np.float64) > values
    return np.where(above, np.nextafter(rounded, np.float32(-np.inf)), rounded)
