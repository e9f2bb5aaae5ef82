"""The tables of results: labelled folders, several seeds, with and without the CRF.

    python benchmarks/results.py --data ROOT [--table readme|4b|views|projections] [--sets camvid ...]

ROOT holds ``camvid``, ``coco200`` and ``aerial260``, each with images, labels and classes.json.
Features, views and masks are computed once and kept in the store, so that rows, seeds and later
runs share them. Labels are used for scores alone. Prints Markdown; ``--json`` keeps every figure.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console

from primaps.data import chunks, find_images, load_pair, pair_up, read
from primaps.evaluation import confusion_matrix, scores
from primaps.extraction import extract, mirrored_mean
from primaps.files import cache_dir, write_json
from primaps.progress import Progress
from primaps.projections import train_projection
from primaps.segmenter import PriMaPsEM

# Images to fit, images to score, labels of those.
SETS = {
    "camvid": ("camvid/images/train", "camvid/images/val", "camvid/labels/val"),
    "coco200": ("coco200/images", "coco200/images", "coco200/labels"),
    "aerial260": ("aerial260/images", "aerial260/images", "aerial260/labels"),
}
BOTH, PLAIN, REFINED = (False, True), (False,), (True,)
NO_EMA = {"momentum": 0.0, "momentum_every": 1}
# Row: options of the model, and whether predictions are refined by the CRF.
TABLES = {
    "readme": {
        "k-means": ({"method": "kmeans"}, BOTH),
        "PriMaPs-EM": ({}, BOTH),
        "recipe orthogonal": ({"recipe": "orthogonal"}, BOTH),
    },
    "4b": {  # of the paper
        "baseline": ({"method": "kmeans"}, PLAIN),
        "+ pseudo label": ({"views": 0, "crf": False, **NO_EMA}, PLAIN),
        "+ EMA": ({"views": 0, "crf": False}, PLAIN),
        "+ augment": ({"crf": False}, PLAIN),
        "+ CRF": ({}, REFINED),
    },
    "projections": {
        "k-means": ({"method": "kmeans"}, BOTH),
        "PriMaPs-EM": ({}, BOTH),
        "STEGO": ({"method": "kmeans", "projection": "stego"}, BOTH),
        "STEGO + PriMaPs-EM": ({"projection": "stego"}, BOTH),
        "HP": ({"method": "kmeans", "projection": "hp"}, BOTH),
        "HP + PriMaPs-EM": ({"projection": "hp"}, BOTH),
    },
    "views": {
        **{f"{views} views": ({"views": views}, PLAIN) for views in (0, 2)},
        "2 views, loss at feature size": ({"views": 2, "loss_size": "feature"}, PLAIN),
        **{
            f"{views} views, bfloat16": ({"views": views, "precision": "bfloat16"}, PLAIN)
            for views in (0, 2, 4, 8)
        },
    },
}


def run(root: Path, name: str, table: str, seeds: list[int], options: dict, store) -> dict:
    """Figures of every row of a table on a data set."""
    train, images, labels = (root / part for part in SETS[name])
    data = pair_up(images, labels)
    names, ignore = data.classes, data.ignore_index
    models, seconds, trained = {}, {}, {}
    for row, (own, _) in TABLES[table].items():
        for seed in seeds:
            began = time.monotonic()
            given = {**options, **own, "seed": seed}
            with Progress(Console(stderr=True)) as report:
                if "projection" in own:
                    key = (own["projection"], seed)
                    if key not in trained:
                        trained[key] = projection(train, len(names), *key, options, store, report)
                    given["projection"] = trained[key]
                model = PriMaPsEM(len(names), **given)
                models[row, seed] = model.fit(train, store=store, report=report)
            seconds[f"{row} {seed}"] = time.monotonic() - began
    shape = (len(names), len(names))
    counts = {
        (*key, crf): torch.zeros(shape, dtype=torch.int64)
        for key in models
        for crf in TABLES[table][key[0]][1]
    }
    load = lambda sample: load_pair(data, sample, model.size)  # noqa: E731
    for chunk in chunks(read(data.samples, load, print), 8):
        pictures = torch.stack([image for _, (image, _) in chunk])
        target = torch.stack([label for _, (_, label) in chunk])
        features = mirrored_mean(model.backbone, pictures)
        for (row, seed, crf), count in counts.items():
            predicted = models[row, seed].probabilities(features, pictures, crf).argmax(1)
            count += confusion_matrix(predicted.cpu(), target, *shape, ignore)
    figures = {}
    for row, (_, refined) in TABLES[table].items():
        for crf in refined:
            found = [scores(counts[row, seed, crf]) for seed in seeds]
            figures[row + (" + CRF" if crf and refined == BOTH else "")] = {
                "accuracy": [100 * s.accuracy for s in found],
                "mean_iou": [100 * s.mean_iou for s in found],
                "iou": [dict(zip(names, s.iou, strict=True)) for s in found],
            }
    return {"rows": figures, "seconds": seconds}


def projection(train: Path, classes: int, method: str, seed: int, options: dict, store, report):
    """STEGO or HP, trained on the features of the images."""
    model = PriMaPsEM(classes, backbone=options["backbone"], precision=options["precision"])
    found = extract(find_images(train), model.backbone, model.size, store=store, report=report)
    return train_projection(found.views.clean, method, classes=classes, seed=seed, report=report)


def cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--table", default="readme", choices=list(TABLES))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--backbone", default="dinov2-vits14")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--store", type=Path, default=cache_dir() / "features")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    options = {name: getattr(arguments, name) for name in ("epochs", "backbone", "precision")}
    results = {}
    print("| data set | method | accuracy | mean IoU |\n|---|---|---|---|", flush=True)
    for name in arguments.sets:
        results[name] = run(
            arguments.data, name, arguments.table, arguments.seeds, options, arguments.store
        )
        for row, found in results[name]["rows"].items():
            accuracy, iou = cell(found["accuracy"]), cell(found["mean_iou"])
            print(f"| {name} | {row} | {accuracy} | {iou} |", flush=True)
        if arguments.json:
            write_json(arguments.json, results)


if __name__ == "__main__":
    main()
