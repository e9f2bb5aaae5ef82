"""Measure the speed of a backbone by each engine, compared with plain transformers.

    python benchmarks/backbones.py [--backbone dinov2-vits14] [--threads 1] [--rounds 9]

All engines process two images of 322x434 px in turn. Printed are median times, GFLOP per second and
the median ratio to transformers, in float32 and bfloat16.
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
    """Return the multiplications and additions of linear layers and attention, in 10^9."""
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
            engines = {"transformers": load_backbone(given.backbone, "cpu", precision=precision)}
        for engine in ("torch", "openvino") if openvino_installed() else ("torch",):
            engines[engine] = load_backbone(
                given.backbone, "cpu", precision=precision, engine=engine
            )
        patch = engines["torch"].patch_size
        images = torch.rand(2, 3, 322 // patch * patch, 434 // patch * patch)
        for backbone in engines.values():
            seconds(backbone, images)
        times = [[seconds(each, images) for each in engines.values()] for _ in range(given.rounds)]
        work = operations(engines["torch"], images)
        for number, name in enumerate(engines):
            second = statistics.median(each[number] for each in times)
            ratio = statistics.median(each[0] / each[number] for each in times)
            print(
                f"{precision}, {name}: {second:.3f} s, {work / second:.0f} GFLOP/s, "
                f"{ratio:.2f} times transformers"
            )


if __name__ == "__main__":
    main()
