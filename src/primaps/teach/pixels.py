"""The pixel level of the learner: a small network on colors, edges, texture and token logits.

Patch tokens know what a region is, but their grid is coarse. Pixels know where it ends. Each pixel
is described by its colors at several scales, gradients, local contrast, and the upsampled
log-probabilities of the token level. A small multilayer perceptron classifies it. All of it are
convolutions and matrix products, stored as plain tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from primaps.utils.bilinear import upsample
from primaps.utils.parallel import one_thread
from primaps.utils.seeding import generator

SCALES = (1.0, 2.0, 4.0, 8.0)
"""Standard deviations of the blurred colors in pixels, besides the colors themselves."""
GRADIENT_SCALES = 3
"""Number of scales, from the finest, whose gradients and contrast are computed."""
OPPONENT = ((0.299, 0.587, 0.114), (0.5, -0.5, 0.0), (-0.25, -0.25, 0.5))
"""Luminance, red against green, and blue against yellow."""
CHANNELS = 3 * (1 + len(SCALES)) + 2 * GRADIENT_SCALES
"""Number of features of a pixel besides the log-probabilities of tokens."""
MAX_PIXELS = 20_000
"""Maximum number of annotated pixels that are learned from."""
HIDDEN_UNITS = 32
"""Units of the hidden layer."""
MEMBERS = 3
"""Networks whose log-probabilities are averaged."""
STEPS = 300
"""Training steps of Adam, each on all examples."""
LEARNING_RATE = 0.02
DECAY = 1e-3
"""Weight decay."""
FLOOR = -8.0
"""Minimum log-probability of a token as a feature of pixels."""


@dataclass(frozen=True)
class PixelClassifier:
    """Multilayer perceptrons on standardized features of pixels.

    Attributes:
        mean, scale: mean and inverse standard deviation of each feature.
        hidden, hidden_bias: first layer of each network, (n, units, features) and (n, units).
        output, output_bias: second layer of each network, (n, K, units) and (n, K).
        temperature: divides the logits, so that probabilities are calibrated.
    """

    mean: Float[Tensor, " f"]
    scale: Float[Tensor, " f"]
    hidden: Float[Tensor, "n u f"]
    hidden_bias: Float[Tensor, "n u"]
    output: Float[Tensor, "n k u"]
    output_bias: Float[Tensor, "n k"]
    temperature: float = 1.0

    @torch.no_grad()
    def logits(
        self, token_logits: Float[Tensor, "b k h w"], images: UInt8[Tensor, "b 3 H W"]
    ) -> Float[Tensor, "b k H W"]:
        """Return the logits of every pixel of images.

        Args:
            token_logits: calibrated logits of the token level.
            images: 8-bit images whose sides are those of the token grid times the patch size.
        """
        x = pixel_features(token_logits, images).flatten(2)
        return self.classify(x).unflatten(2, images.shape[-2:]) / self.temperature

    def classify(self, x: Float[Tensor, "b f n"]) -> Float[Tensor, "b k n"]:
        """Return the mean logits of the networks, from features of pixels."""
        device = x.device
        first = (self.hidden * self.scale).to(device)  # standardization is part of the first layer
        shift = (self.hidden_bias - (self.hidden * self.scale) @ self.mean).to(device)
        units = first.shape[1]
        z = torch.relu(first.flatten(0, 1) @ x + shift.flatten()[:, None])
        last = (self.output / len(self.output)).to(device).transpose(0, 1).flatten(1)
        bias = self.output_bias.mean(0).to(device)
        assert z.shape[1] == units * len(self.hidden)
        return last @ z + bias[:, None]

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters as tensors, for safetensors."""
        names = ("mean", "scale", "hidden", "hidden_bias", "output", "output_bias")
        found = {f"pixels.{name}": getattr(self, name).contiguous() for name in names}
        return {**found, "pixels.temperature": torch.tensor([self.temperature])}


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


@torch.no_grad()
def pixel_features(
    token_logits: Float[Tensor, "b k h w"], images: UInt8[Tensor, "b 3 H W"]
) -> Float[Tensor, "b f H W"]:
    """Return the features of every pixel.

    They are the colors (luminance and two opponent channels) and the colors blurred at each of
    :data:`SCALES`; at the finest of these scales the magnitude of the gradient and the standard
    deviation of the luminance; and the log-probabilities of the token level.

    Args:
        token_logits: calibrated logits of the token level.
        images: 8-bit RGB images.
    """
    mix = torch.tensor(OPPONENT, device=images.device)
    colors = torch.einsum("dc,bchw->bdhw", mix, images.float() / 255)
    found = [colors]
    blurred, before = colors, 0.0
    squares = colors[:, :1].square()
    for number, scale in enumerate(SCALES):
        step = math.sqrt(scale**2 - before**2)  # blurs of blurs add their variances
        if number < GRADIENT_SCALES:
            both = blur(torch.cat([blurred, squares], 1), step)
            blurred, squares = both[:, :3], both[:, 3:]
            found += [edge_strength(blurred[:, :1]),
                      (squares - blurred[:, :1].square()).clamp_min(0).sqrt()]  # fmt: skip
        else:
            blurred = blur(blurred, step)
        found.append(blurred)
        before = scale
    log_p = token_logits.to(images.device).float().log_softmax(1).clamp_min(FLOOR)
    return torch.cat([*found, upsample(log_p, images.shape[-2:])], 1)


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
    labels: Integer[Tensor, "h w"],
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
    flat = labels.flatten()
    present = flat[flat >= 0].unique().tolist()
    rows = []
    for k in present:
        own = (flat == k).nonzero()[:, 0]
        wanted = min(len(own), max(1, number // len(present)))
        order = torch.randperm(len(own), generator=generator("pixel examples", *purpose, k))
        rows.append(own[order[:wanted].sort().values])
    chosen = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.long)
    images = torch.zeros(len(chosen), dtype=torch.long)
    return PixelExamples(features.flatten(1).T[chosen], flat[chosen].long(), images)


@one_thread()
@torch.enable_grad()
def learn_pixels(
    examples: PixelExamples, frequency: Float[Tensor, " k"], seed: int = 0
) -> PixelClassifier:
    """Train the networks by Adam on all examples.

    Classes have the same total weight; the logarithm of their frequency is added afterwards.

    Args:
        examples: annotated pixels.
        frequency: share of each class of the unlabeled data.
        seed: random seed of the initialization.
    """
    x = examples.features
    mean, scale = x.mean(0), 1 / x.std(0, correction=0).clamp_min(1e-3)
    x = (x - mean) * scale
    y, classes, count = examples.classes, len(frequency), x.shape[1]
    totals = y.bincount(minlength=classes).clamp_min(1)
    weight = (len(y) / totals / (y.bincount(minlength=classes) > 0).sum())[y]
    parameters = []
    for member in range(MEMBERS):
        random = generator("pixel level", seed, member)
        first = torch.randn(HIDDEN_UNITS, count, generator=random) * math.sqrt(2 / count)
        last = torch.randn(classes, HIDDEN_UNITS, generator=random) / math.sqrt(HIDDEN_UNITS)
        parameters.append([first, torch.zeros(HIDDEN_UNITS), last, torch.zeros(classes)])
    stacked = [torch.stack(each).requires_grad_() for each in zip(*parameters, strict=True)]
    first, first_bias, last, last_bias = stacked
    optimizer = torch.optim.AdamW(stacked, LEARNING_RATE, weight_decay=DECAY)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        z = torch.relu(torch.einsum("nuf,pf->npu", first, x) + first_bias[:, None])
        logits = torch.einsum("nku,npu->npk", last, z) + last_bias[:, None]
        losses = F.cross_entropy(logits.flatten(0, 1), y.repeat(MEMBERS), reduction="none").view(
            MEMBERS, -1
        )
        optimizer.zero_grad()
        (losses * weight).mean(1).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found = [each.detach() for each in stacked]
    bias = found[3] + frequency.clamp_min(1e-6).log().to(found[3])
    return PixelClassifier(mean, scale, found[0], found[1], found[2], bias)
