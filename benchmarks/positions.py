"""Change of features if position embeddings of a ViT are scaled as in the original programs.

    python benchmarks/positions.py --data ROOT [--sets camvid coco200] [--backbone dinov2-vits14]

ROOT contains folders with images, labels and classes.json. The script prints the relative change
and the mean cosine of the features of the first images of the split val, and oracle scores with and
without the CRF.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

import torch.nn.functional as F

from primaps.backbones.backbone import image_features
from primaps.backbones.load import load_backbone
from primaps.data import load_dataset, load_pair
from primaps.evaluation.oracle import evaluate_oracle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["camvid", "coco200"])
    parser.add_argument("--backbone", default="dinov2-vits14")
    parser.add_argument("--images", type=int, default=16, help="images whose features are compared")
    arguments = parser.parse_args()
    backbones = {
        positions: load_backbone(arguments.backbone, positions=positions)
        for positions in ("exact", "scaled")
    }
    for name in arguments.sets:
        data = load_dataset("folder", arguments.data / name, "val")
        relative, cosine = [], []
        for sample in data.samples[: arguments.images]:
            image, _ = load_pair(data, sample, backbones["exact"].default_size)
            one, other = (image_features(each, image[None]) for each in backbones.values())
            relative.append(float((one - other).norm() / one.norm()))
            cosine.append(float(F.cosine_similarity(one, other).mean()))
        print(f"{name}: features change by {100 * mean(relative):.1f} %, cosine {mean(cosine):.4f}")
        for crf in (None, "dense"):
            for positions, backbone in backbones.items():
                found = evaluate_oracle(data, backbone=backbone, crf=crf)
                parts = (found.assigned, found.all_pixels)
                figures = ", ".join(
                    f"{100 * p.accuracy:.1f} / {100 * p.mean_iou:.1f}" for p in parts
                )
                print(f"  CRF {crf}, {positions}: {figures}, {found.masks_per_image:.1f} masks")


if __name__ == "__main__":
    main()
