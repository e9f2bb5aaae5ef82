"""What ``--precision bfloat16`` saves, and what it does to features.

    python benchmarks/precision.py --images FOLDER [--backbone NAME]

Both precisions take the same batches in turn; prints the median ratio of their times, and how far
features are from those of float32: relative error over all, and mean cosine of positions.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from primaps import load_backbone
from primaps.data import find_images, load_image, square

PRECISIONS = ("float32", "bfloat16")


def timed(backbone, images: torch.Tensor) -> tuple[float, torch.Tensor]:
    began = time.monotonic()
    features = backbone(images.to(backbone.device)).cpu()
    return time.monotonic() - began, features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True)
    parser.add_argument("--backbone", default="dinov2-vits14")
    parser.add_argument("--batches", type=int, default=5, help="of 8 images")
    arguments = parser.parse_args()
    files = find_images(arguments.images)
    files = files[:: max(1, len(files) // (8 * arguments.batches))][: 8 * arguments.batches]
    exact, short = (load_backbone(arguments.backbone, precision=one) for one in PRECISIONS)
    squares = [square(load_image(file.source), exact.default_size) for file in files]
    images = torch.stack(squares).float() / 255
    for backbone in (exact, short):
        timed(backbone, images[:8])
    ratios, found = [], []
    for batch in images.split(8):
        (slow, expected), (fast, features) = timed(exact, batch), timed(short, batch)
        ratios.append(slow / fast)
        found.append((expected, features))
    expected, features = (torch.cat(part) for part in zip(*found, strict=True))
    error = (features - expected).norm() / expected.norm()
    cosine = F.cosine_similarity(features, expected, dim=1).mean()
    ratio = f"{statistics.median(ratios):.2f} times as fast (median of {len(ratios)} batches)"
    print(f"{arguments.backbone} at {exact.default_size} px: bfloat16 is {ratio}")
    print(f"features: relative error {error:.1%}, mean cosine {cosine:.4f}")


if __name__ == "__main__":
    main()
