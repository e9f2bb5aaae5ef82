"""STEGO and HP trained here on labelled folders: cluster probe, linear probe, several seeds.

    python benchmarks/projections.py --data ROOT [--sets camvid coco200 aerial260] [--seeds 0 1 2]

ROOT is that of benchmarks/results.py. Features of a data set are computed once (--cache FOLDER
keeps them). Labels are used for scores, and for the linear probe alone where --linear asks for it.
No CRF. Prints Markdown; ``--json`` keeps every figure.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console

from primaps.backbones import Backbone, load_backbone
from primaps.data import find_images, load_image, load_pair, read_classes, square
from primaps.evaluation import confusion_matrix, scores
from primaps.files import atomic_path, write_json
from primaps.progress import Progress
from primaps.projections import (
    Projection,
    fit_clusters,
    fit_linear,
    projection_settings,
    train_projection,
)

# Images to fit, images to score, labels of those.
SETS = {
    "camvid": ("camvid/images/train", "camvid/images/val", "camvid/labels/val"),
    "coco200": ("coco200/images", "coco200/images", "coco200/labels"),
    "aerial260": ("aerial260/images", "aerial260/images", "aerial260/labels"),
}
ROWS = ("features", "stego", "hp")


def cached(root: Path, name: str, backbone: Backbone, cache: Path | None) -> dict:
    """Features (N, 2, C, h, w) to fit on and to score, and labels of the latter."""
    path = cache / f"{name}-{backbone.name}.pt" if cache else None
    if path and path.exists():
        return torch.load(path, mmap=True, weights_only=True)
    train, images, labels = (root / part for part in SETS[name])
    names, ignore = read_classes(labels)
    size = backbone.default_size

    def both(image):
        inputs = image[None].float() / 255
        return torch.cat([backbone(inputs), backbone(inputs.flip(-1))]).half()

    fit = torch.stack([both(square(load_image(f.source), size)) for f in find_images(train)])
    pairs = [load_pair(f, labels, size, len(names), ignore) for f in find_images(images)]
    score = fit if train == images else torch.stack([both(image) for image, _ in pairs])
    found = {
        "fit": fit,
        "score": score,
        "labels": torch.stack([label for _, label in pairs]),
        "classes": len(names),
        "ignore": ignore,
    }
    if path:
        with atomic_path(path) as temporary:
            torch.save(found, temporary)
    return found


def evaluate(data: dict, logits) -> dict[str, float]:
    """Scores of a function from features to logits, after Hungarian matching."""
    labels, classes = data["labels"], data["classes"]
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    for index in torch.arange(len(labels)).split(8):
        image, mirror = data["score"][index].float().unbind(1)
        values = logits((image + mirror.flip(-1)) / 2)
        values = torch.nn.functional.interpolate(values, labels.shape[-2:], mode="bilinear")
        counts += confusion_matrix(
            values.argmax(1), labels[index], classes, classes, data["ignore"]
        )
    found = scores(counts)
    return {"accuracy": 100 * found.accuracy, "mean_iou": 100 * found.mean_iou}


def run(data: dict, row: str, seed: int, arguments: argparse.Namespace, report) -> dict:
    began = time.monotonic()
    if row == "features":
        projection = Projection(torch.nn.Identity(), name="features")
        projection = fit_clusters(data["fit"], projection, data["classes"], seed=seed)
    else:
        projection = train_projection(
            data["fit"],
            row,
            classes=data["classes"],
            settings=projection_settings(row, arguments.preset),
            steps=arguments.steps,
            seed=seed,
            report=report,
        )
    seconds = time.monotonic() - began
    clusters = torch.nn.functional.normalize(projection.clusters, dim=1)
    found = {
        "cluster": evaluate(data, lambda f: torch.einsum("kd,bdhw->bkhw", clusters, projection(f)))
    }
    if arguments.linear and len(data["fit"]) == len(data["labels"]):
        probe = fit_linear(
            data["score"], projection, data["labels"], data["classes"],
            ignore_index=data["ignore"], seed=seed, report=report,
        )  # fmt: skip
        found["linear, fitted to the labels scored"] = evaluate(
            data, lambda f: probe(projection(f).movedim(1, -1)).movedim(-1, 1)
        )
    return {"seconds": seconds, "probes": found}


def cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--preset", default="own")
    parser.add_argument("--backbone", default="dinov2-vits14")
    parser.add_argument("--linear", action="store_true")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    backbone = load_backbone(arguments.backbone)
    results: dict = {}
    print("| data set | codes | probe | accuracy | mean IoU | seconds |\n|---|---|---|---|---|---|")
    for name in arguments.sets:
        data = cached(arguments.data, name, backbone, arguments.cache)
        for row in arguments.rows:
            with Progress(Console(stderr=True)) as report:
                found = [run(data, row, seed, arguments, report) for seed in arguments.seeds]
            results.setdefault(name, {})[row] = found
            seconds = cell([f["seconds"] for f in found])
            for probe in found[0]["probes"]:
                figures = [f["probes"][probe] for f in found]
                both = " | ".join(cell([f[k] for f in figures]) for k in ("accuracy", "mean_iou"))
                print(f"| {name} | {row} | {probe} | {both} | {seconds} |", flush=True)
    if arguments.json:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
