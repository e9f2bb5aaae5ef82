"""Measure what a precision and an engine save, and how they change features, masks and label maps.

    python benchmarks/precision.py --images FOLDER [--backbone NAME | --model MODEL] [--count N]
                                   [--precision float32] [--engine openvino]

PyTorch in float32 and the alternative, bfloat16 by default, process the same batches in turn.
Printed are the median ratio of their times; the relative error and the mean cosine of features; the
mean IoU of each mask with its match (one to one, with the CRF); and with --model the share of
pixels with the same class (with the CRF).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Integer
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from primaps import PriMaPsEM, load_backbone
from primaps.backbones.backbone import Backbone, image_features
from primaps.data import find_images, load_image, square
from primaps.data.collection import ImageFile
from primaps.proposals.image_size import image_masks


def timed(backbone: Backbone, images: Tensor) -> tuple[float, Tensor]:
    began = time.monotonic()
    features = backbone(images.to(backbone.device)).cpu()
    return time.monotonic() - began, features


def matched_iou(one: Integer[Tensor, "h w"], other: Integer[Tensor, "h w"]) -> list[float]:
    """Return the IoU of each mask of both maps with its match; 0 for masks without one."""
    a, b = one.numpy().astype(int), other.numpy().astype(int)
    counts = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(counts, (a, b), 1)
    union = counts.sum(1)[:, None] + counts.sum(0)[None] - counts
    iou = (counts / union.clip(1))[1:, 1:]
    found = [float(iou[pair]) for pair in zip(*linear_sum_assignment(-iou), strict=True)]
    return found + [0.0] * (max(iou.shape) - len(found))


def speed(networks: Sequence[Backbone], images: Tensor) -> None:
    for backbone in networks:
        timed(backbone, images[:8])
    ratios, found = [], []
    for batch in images.split(8):
        (slow, expected), (fast, features) = (timed(backbone, batch) for backbone in networks)
        ratios.append(slow / fast)
        found.append((expected, features))
    expected, features = (torch.cat(part) for part in zip(*found, strict=True))
    error = (features - expected).norm() / expected.norm()
    cosine = F.cosine_similarity(features, expected, dim=1).mean()
    ratio = f"{statistics.median(ratios):.2f} times as fast (median of {len(ratios)} batches)"
    print(f"{networks[0].name} at {images.shape[-1]} px: {networks[1].arithmetic} is {ratio}")
    print(f"features: relative error {error:.1%}, mean cosine {cosine:.4f}")


def masks(networks: Sequence[Backbone], images: Sequence[Tensor]) -> None:
    found: list[float] = []
    for image in images:
        both = [image_masks(image_features(n, image[None]), image[None])[0] for n in networks]
        found += matched_iou(*both)
    print(f"masks: mean IoU of matches {np.mean(found):.3f}, {np.mean(np.array(found) > 0.9):.0%} "
          f"above 0.9 ({len(found)} masks of {len(images)} images)")  # fmt: skip


def classes(folder: str, networks: Sequence[Backbone], files: Sequence[ImageFile]) -> None:
    models = [PriMaPsEM.from_pretrained(folder, network) for network in networks]
    same, pixels = 0, 0
    for file in files:
        one, other = (
            model.predict(load_image(file.source), precision=network.precision)
            for model, network in zip(models, networks, strict=True)
        )
        same, pixels = same + int((one == other).sum()), pixels + one.numel()
    print(f"classes: {same / pixels:.2%} of the pixels of {len(files)} images agree")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True)
    parser.add_argument("--backbone", default="dinov2-vits14")
    parser.add_argument("--model", help="folder of a model without projection")
    parser.add_argument("--count", type=int, default=40, help="images")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--engine", default="torch")
    arguments = parser.parse_args()
    files = find_images(arguments.images)
    files = files[:: max(1, len(files) // arguments.count)][: arguments.count]
    name = arguments.backbone
    if arguments.model:
        name = PriMaPsEM.from_pretrained(arguments.model).config.backbone
    other = load_backbone(name, precision=arguments.precision, engine=arguments.engine)
    networks = [load_backbone(name), other]
    images = [square(load_image(file.source), networks[0].default_size) for file in files]
    speed(networks, torch.stack(images).float() / 255)
    masks(networks, images)
    if arguments.model:
        classes(arguments.model, networks, files)


if __name__ == "__main__":
    main()
