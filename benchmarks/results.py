"""The tables of results: labelled folders, several seeds, with and without the CRF.

    python benchmarks/results.py --data ROOT [--table readme|4b|projections|views] [--sets ...]

ROOT holds ``camvid``, ``coco200`` and ``aerial260``, each with images, labels and classes.json.
Features, views, masks, fitted models and counts are kept in the store, so that rows, seeds and
tables share them and a run that was stopped goes on. Labels are used for scores alone. Prints
Markdown; ``--json`` keeps every figure.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

import primaps
from primaps.config import Config
from primaps.data import Dataset, find_images, load_pair, pair_up, read
from primaps.evaluation.metrics import confusion_matrix, scores
from primaps.features.extract import extract
from primaps.model import PriMaPsEM
from primaps.projections import Projection, train_projection
from primaps.support.files import cache_dir, write_json
from primaps.support.progress import ProgressDisplay

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
        "+ pseudo label": ({"views": 0, "mask_crf": False, **NO_EMA}, PLAIN),
        "+ EMA": ({"views": 0, "mask_crf": False}, PLAIN),
        "+ augment": ({"views": 2, "mask_crf": False}, PLAIN),
        "+ CRF": ({"views": 2}, REFINED),
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
            for views in (2, 8)
        },
    },
}


def run(
    root: Path, name: str, table: str, seeds: list[int], options: dict, store: Path
) -> Iterator[tuple[str, dict]]:
    """Rows of a table on a data set, each as soon as it is there, and their figures."""
    train, images, labels = (root / part for part in SETS[name])
    data = pair_up(images, labels)
    for row, (own, refined) in TABLES[table].items():
        for crf in refined:
            found = [
                counted(train, data, {**options, **own, "seed": seed}, crf, store) for seed in seeds
            ]
            result = [scores(torch.tensor(counts)) for counts in found]
            yield (
                row + (" + CRF" if crf and refined == BOTH else ""),
                {
                    "accuracy": [100 * s.accuracy for s in result],
                    "mean_iou": [100 * s.mean_iou for s in result],
                    "iou": [dict(zip(data.classes, s.iou, strict=True)) for s in result],
                },
            )


def counted(train: Path, data: Dataset, options: dict, crf: bool, store: Path) -> list[list[int]]:
    """Confusion counts of a model fitted with options, from an earlier run if there was one."""
    about = {**asdict(Config(len(data.classes))), **options, "train": str(train)}
    text = json.dumps([primaps.__version__, about], sort_keys=True)
    folder = store / "results" / hashlib.sha256(text.encode()).hexdigest()[:16]
    path = folder / f"{'crf' if crf else 'plain'}.json"
    if path.is_file():
        return json.loads(path.read_text())
    with ProgressDisplay(Console(stderr=True)) as progress:
        if (folder / "config.json").is_file():
            model = PriMaPsEM.from_pretrained(folder)
        else:
            codes = None
            if "projection" in options:
                method, seed = options["projection"], options["seed"]
                codes = projection(train, len(data.classes), method, seed, options, store, progress)
            given = {k: v for k, v in options.items() if k != "projection"}
            model = PriMaPsEM(len(data.classes), projection=codes, **given)
            model.fit(train, store=store, checkpoints=folder, progress=progress)
            model.save_pretrained(folder)
        size, ignore = model.size, data.ignore_index
        kept = extract(data.samples, model.backbone, size, store=store, progress=progress)
        counts = torch.zeros(len(data.classes), len(data.classes), dtype=torch.int64)
        loaded = read(data.samples, lambda sample: load_pair(data, sample, size), print)
        for row, (_, (image, label)) in enumerate(loaded):
            features = kept.views.mirrored_mean(row)[None]
            predicted = model.probabilities(features, image[None], crf).argmax(1).cpu()
            counts += confusion_matrix(predicted, label[None], *counts.shape, ignore)
            progress("scores", row + 1, len(data.samples), {})
    write_json(path, counts.tolist())
    return counts.tolist()


def projection(train, classes: int, method: str, seed: int, options: dict, store, progress):
    """STEGO or HP, trained on the features of the images; kept for the next row."""
    name = f"{train.parts[-2]}-{method}-{seed}-{options['backbone'].replace('/', '-')}"
    folder = store / "projections" / name
    if not (folder / "projection.json").is_file():
        model = PriMaPsEM(classes, backbone=options["backbone"], precision=options["precision"])
        found = extract(
            find_images(train), model.backbone, model.size, store=store, progress=progress
        )
        trained = train_projection(
            found.views.clean, method, classes=classes, seed=seed, progress=progress
        )
        trained.save(folder)
    return Projection.load(folder)


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
        results[name] = {}
        rows = run(arguments.data, name, arguments.table, arguments.seeds, options, arguments.store)
        for row, found in rows:
            results[name][row] = found
            accuracy, iou = cell(found["accuracy"]), cell(found["mean_iou"])
            print(f"| {name} | {row} | {accuracy} | {iou} |", flush=True)
            if arguments.json:
                write_json(arguments.json, results)


if __name__ == "__main__":
    main()
