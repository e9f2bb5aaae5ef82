"""Images in, cached features and masks out: everything that training needs, in one pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor

from primaps.backbones import Backbone
from primaps.data import ImageError, ImageFile, load_image, square
from primaps.em import Views
from primaps.progress import Report, silent

logger = logging.getLogger("primaps")
T = TypeVar("T")
Problem = Callable[[str], None]
"""Called with one sentence about each image that is left out."""


@dataclass(frozen=True)
class Extracted:
    """What a collection of images becomes before training.

    Attributes:
        keys: names of the images used, in order.
        views: their feature maps.
        masks: proposals at image size, 0 = ignore; None if not asked for.
        samples: the first few images, to show.
    """

    keys: list[str]
    views: Views
    masks: Integer[Tensor, "n H W"] | None
    samples: UInt8[Tensor, "s 3 H W"]


def read(
    files: Sequence[ImageFile],
    transform: Callable[[ImageFile], T],
    problem: Problem,
    ahead: int = 8,
) -> Iterator[tuple[ImageFile, T]]:
    """Apply ``transform`` to files in order, a few ahead in threads; bad files are reported.

    Decoding releases the interpreter lock, so it overlaps with the network.
    """
    with ThreadPoolExecutor(2) as pool:
        queue: list[tuple[ImageFile, Future[T]]] = []
        rest = iter(files)
        while True:
            for file in islice(rest, max(0, ahead - len(queue))):
                queue.append((file, pool.submit(transform, file)))
            if not queue:
                return
            file, future = queue.pop(0)
            try:
                yield file, future.result()
            except ImageError as error:
                problem(str(error))


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of ``size`` items, the last one shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def mirrored_mean(backbone: Backbone, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
    """Features averaged over each image and its mirror image, as at inference in the program."""
    inputs = images.to(backbone.device).float() / 255
    return (backbone(inputs) + backbone(inputs.flip(-1)).flip(-1)) / 2


def photometric(
    images: Float[Tensor, "b 3 H W"], generator: torch.Generator
) -> Float[Tensor, "b 3 H W"]:
    """The student's augmentation: Gaussian blur, then colour jitter or grey, as in the program.

    The blur has 21 pixels and a deviation in [0.1, 2]. Then with equal chance either brightness,
    contrast, saturation and hue are jittered by up to 0.1 (in 3 of 10 images) or the image becomes
    grey (in 1 of 10). Randomness comes from ``generator`` alone.
    """
    from kornia import enhance
    from kornia.color import rgb_to_grayscale
    from kornia.filters import gaussian_blur2d

    def uniform(low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(len(images), generator=generator).to(images.device)

    sigma = uniform(0.1, 2.0)
    images = gaussian_blur2d(images, (21, 21), sigma[:, None].expand(-1, 2))
    choice, chance = uniform(), uniform()
    jittered = enhance.adjust_brightness_accumulative(images, uniform(0.9, 1.1))
    jittered = enhance.adjust_contrast_with_mean_subtraction(jittered, uniform(0.9, 1.1))
    jittered = enhance.adjust_saturation_with_gray_subtraction(jittered, uniform(0.9, 1.1))
    jittered = enhance.adjust_hue(jittered, uniform(-0.1, 0.1) * 2 * torch.pi)
    grey = rgb_to_grayscale(images).expand_as(images)
    jitter = ((choice < 0.5) & (chance < 0.3)).view(-1, 1, 1, 1)
    to_grey = ((choice >= 0.5) & (chance < 0.1)).view(-1, 1, 1, 1)
    return torch.where(jitter, jittered, torch.where(to_grey, grey, images)).clamp(0, 1)


def extract(
    files: Sequence[ImageFile],
    backbone: Backbone,
    size: int,
    *,
    views: int = 0,
    masks: Callable[[Tensor, Tensor], Tensor] | None = None,
    seed: int = 0,
    batch_size: int = 8,
    report: Report = silent,
    problem: Problem = logger.warning,
) -> Extracted:
    """Features (clean, mirrored and augmented) and masks of the centred squares of images.

    Args:
        size: side of the square in pixels.
        views: augmented feature maps per image.
        masks: features (B, C, h, w) and 8-bit images (B, 3, H, W) to masks (B, H, W).
        problem: told about every image that cannot be read; the others go on.

    Raises:
        ImageError: no image could be read.
    """
    generator = torch.Generator().manual_seed(seed)
    keys: list[str] = []
    clean: list[Tensor] = []
    augmented: list[Tensor] = []
    flags: list[Bool[Tensor, "v b"]] = []
    found: list[Tensor] = []
    samples: list[Tensor] = []
    loaded = read(files, lambda file: square(load_image(file.source), size), problem)
    for chunk in chunks(loaded, batch_size):
        images = torch.stack([image for _, image in chunk]).to(backbone.device)
        inputs = images.float() / 255
        features = backbone(inputs)
        clean.append(torch.stack([features, backbone(inputs.flip(-1))]).half())
        mirror = torch.rand(views, len(chunk), generator=generator) < 0.5
        seen = [
            backbone(
                photometric(torch.where(m.view(-1, 1, 1, 1), inputs.flip(-1), inputs), generator)
            )
            for m in mirror.to(inputs.device)
        ]
        augmented.append(torch.stack(seen).half() if seen else features.new_zeros(0).half())
        flags.append(mirror)
        if masks is not None:
            found.append(masks(features, images).to(torch.int16).cpu())
        if sum(map(len, samples)) < 6:
            samples.append(images.cpu())
        keys += [file.key for file, _ in chunk]
        report("features", len(keys), len(files), {})
    if not keys:
        raise ImageError(f"none of the {len(files)} images could be read")
    report("features", len(files), len(files), {})
    both = torch.cat(clean, dim=1)
    return Extracted(
        keys,
        Views(
            both,
            torch.cat(augmented, dim=1) if views else both[:0],
            torch.cat(flags, dim=1).to(both.device),
        ),
        torch.cat(found) if masks is not None else None,
        torch.cat(samples)[:6],
    )
