"""How fast a backbone is on this processor, against transformers' own way in the same run.

    python benchmarks/backbones.py [--backbone dinov2-vits14] [--threads 1] [--rounds 9]

Both take two images of 322x434 px in turn, as predict does for an image and its mirror image.
Prints the median of the ratios of their times, and GFLOP per second, in both precisions.
"""

from __future__ import annotations

import argparse
import statistics
import time
from unittest import mock

import torch

from primaps import load_backbone
from primaps.backbones.backbone import Backbone


def seconds(backbone: Backbone, images: torch.Tensor) -> float:
    began = time.perf_counter()
    backbone(images)
    return time.perf_counter() - began


def operations(backbone: Backbone, images: torch.Tensor) -> float:
    """Multiplications and additions of the linear layers and of attention, in 10^9."""
    config = backbone.features.model.config
    tokens = images.shape[-1] * images.shape[-2] // backbone.patch_size**2 + 1
    width = config.hidden_size
    linear, scores = 24 * tokens * width**2, 4 * tokens**2 * width
    return len(images) * config.num_hidden_layers * (linear + scores) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="dinov2-vits14")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for precision in ("float32", "bfloat16"):
        now = load_backbone(given.backbone, "cpu", precision=precision)
        with mock.patch("primaps.backbones.vit.quicken"):
            usual = load_backbone(given.backbone, "cpu", precision=precision)
        patch = now.patch_size
        images = torch.rand(2, 3, 322 // patch * patch, 434 // patch * patch)
        seconds(usual, images), seconds(now, images)
        times = [(seconds(usual, images), seconds(now, images)) for _ in range(given.rounds)]
        slow, fast = (statistics.median(each) for each in zip(*times, strict=True))
        ratio = statistics.median(a / b for a, b in times)
        work = operations(now, images)
        print(
            f"{precision}: transformers {slow:.3f} s ({work / slow:.0f} GFLOP/s), "
            f"now {fast:.3f} s ({work / fast:.0f} GFLOP/s), {ratio:.2f} times"
        )


if __name__ == "__main__":
    main()
