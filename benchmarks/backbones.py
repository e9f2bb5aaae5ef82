"""How fast a backbone is on this processor by each engine, against transformers' own way.

    python benchmarks/backbones.py [--backbone dinov2-vits14] [--threads 1] [--rounds 9]

All take two images of 322x434 px in turn, as predict does for an image and its flipped image.
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
from primaps.backbones.engines import openvino_installed


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
        with mock.patch("primaps.backbones.load.use_onednn"):
            ways = {"transformers": load_backbone(given.backbone, "cpu", precision=precision)}
        for engine in ("torch", "openvino") if openvino_installed() else ("torch",):
            ways[engine] = load_backbone(given.backbone, "cpu", precision=precision, engine=engine)
        patch = ways["torch"].patch_size
        images = torch.rand(2, 3, 322 // patch * patch, 434 // patch * patch)
        for backbone in ways.values():
            seconds(backbone, images)
        times = [[seconds(each, images) for each in ways.values()] for _ in range(given.rounds)]
        work = operations(ways["torch"], images)
        for number, name in enumerate(ways):
            second = statistics.median(each[number] for each in times)
            ratio = statistics.median(each[0] / each[number] for each in times)
            print(
                f"{precision}, {name}: {second:.3f} s, {work / second:.0f} GFLOP/s, "
                f"{ratio:.2f} times transformers"
            )


if __name__ == "__main__":
    main()
