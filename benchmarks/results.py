"""The table of results in the README: k-means and PriMaPs-EM on labelled folders, several seeds.

    python benchmarks/results.py --data ROOT [--sets camvid coco200 aerial260] [--seeds 0 1 2]

ROOT holds ``camvid``, ``coco200`` and ``aerial260``, each with images, labels and classes.json.
Features and masks of a data set are computed once and shared by all rows. Labels are used for
scores alone. Prints Markdown; ``--json`` keeps every figure.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console

from primaps.data import find_images, load_pair, pair_up
from primaps.evaluation import confusion_matrix, scores
from primaps.extraction import chunks, extract, mirrored_mean, read
from primaps.files import write_json
from primaps.progress import Progress
from primaps.segmenter import PriMaPsEM

# Images to fit, images to score, labels of those.
SETS = {
    "camvid": ("camvid/images/train", "camvid/images/val", "camvid/labels/val"),
    "coco200": ("coco200/images", "coco200/images", "coco200/labels"),
    "aerial260": ("aerial260/images", "aerial260/images", "aerial260/labels"),
}
ROWS = ("kmeans", "em")


def labelled(model, data):
    """Images, labels and mirror-averaged features of the images to score, in small batches."""
    load = lambda sample: load_pair(data, sample, model.size)  # noqa: E731
    for chunk in chunks(read(data.samples, load, print), 8):
        pictures = torch.stack([image for _, (image, _) in chunk])
        target = torch.stack([label for _, (_, label) in chunk])
        yield pictures, target, mirrored_mean(model.backbone, pictures)


def run(root: Path, name: str, seeds: list[int], options: dict) -> dict:
    train, images, labels = (root / part for part in SETS[name])
    data = pair_up(images, labels)
    names, ignore = data.classes, data.ignore_index
    began = time.monotonic()
    first = PriMaPsEM(len(names), **options)
    with Progress(Console(stderr=True)) as report:
        extracted = extract(
            find_images(train), first.backbone, first.size,
            views=first.config.views, masks=first.masks, report=report,
        )  # fmt: skip
    seconds = {"features and masks": time.monotonic() - began}
    models = {}
    for row in ROWS:
        for seed in seeds:
            began = time.monotonic()
            own = {**options, "backbone": first.backbone, "method": row, "seed": seed}
            models[row, seed] = PriMaPsEM(len(names), **own).fit_extracted(extracted)
            seconds[f"{row} {seed}"] = time.monotonic() - began
    shape = (len(names), len(names))
    counts = {
        (*key, crf): torch.zeros(shape, dtype=torch.int64)
        for key in models
        for crf in (False, True)
    }
    for pictures, target, features in labelled(first, data):
        for (row, seed, crf), count in counts.items():
            predicted = models[row, seed].probabilities(features, pictures, crf).argmax(1)
            count += confusion_matrix(predicted.cpu(), target, *shape, ignore)
    figures = {}
    for row in ROWS:
        for crf in (False, True):
            found = [scores(counts[row, seed, crf]) for seed in seeds]
            figures[row + (" + CRF" if crf else "")] = {
                "accuracy": [100 * s.accuracy for s in found],
                "mean_iou": [100 * s.mean_iou for s in found],
                "iou": [dict(zip(names, s.iou, strict=True)) for s in found],
            }
    masks = extracted.masks.flatten(1)
    diagnostics = {
        "images": len(masks),
        "masks per image": masks.amax(1).double().mean().item(),
        "ignored": (masks == 0).double().mean().item(),
    }
    return {"rows": figures, "seconds": seconds, "masks": diagnostics}


def cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--views", type=int, default=0)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--backbone", default="dinov2-vits14")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    options = {"views": arguments.views, "backbone": arguments.backbone}
    if arguments.epochs:
        options["epochs"] = arguments.epochs
    results = {}
    print("| data set | method | accuracy | mean IoU |\n|---|---|---|---|", flush=True)
    for name in arguments.sets:
        results[name] = run(arguments.data, name, arguments.seeds, options)
        for row, found in results[name]["rows"].items():
            accuracy, iou = cell(found["accuracy"]), cell(found["mean_iou"])
            print(f"| {name} | {row} | {accuracy} | {iou} |", flush=True)
    if arguments.json:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
