"""Speed and memory of PriMaPs-EM.

    python benchmarks/em.py epoch --images FOLDER     # an epoch, and a straightforward one
    python benchmarks/em.py stages --images FOLDER    # time of each stage of a fit
    python benchmarks/em.py scale [--cache-content masks]      # 50,000 images in bounded memory

``epoch`` trains on the same cached features in separate processes, whose peak memory is compared.
The straightforward epoch follows the equations in their order: features are upsampled to image
size, then multiplied with the prototypes; a loop over masks counts their votes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console

from primaps.config import Config
from primaps.data import find_images
from primaps.em.em import fit_em, focal_weights, momentum_update
from primaps.em.kmeans import Prototypes, pca_init
from primaps.features.extract import extract
from primaps.features.training_data import batch_indices
from primaps.model import PriMaPsEM
from primaps.utils.files import cache_dir
from primaps.utils.progress import ProgressDisplay


def straightforward(views, masks, start: Prototypes, steps: int, config: Config) -> None:
    """Run EM in the order of the equations, on the same batches."""
    student, momentum = Prototypes(start.direction), Prototypes(start.direction)
    optimizer = torch.optim.Adam(student.parameters(), lr=config.learning_rate)
    for step in range(1, steps + 1):
        index = batch_indices(step, len(views), config.batch_size, "EM", config.seed)
        batch = views.batch(index, step, config.seed)
        mask = masks.take(batch.rows)
        mask = torch.where(batch.flip.view(-1, 1, 1), mask.flip(-1), mask)
        size = mask.shape[-2:]
        with torch.no_grad():
            large = F.interpolate(batch.clean, size=size, mode="bilinear")
            prediction = momentum(large).argmax(1)
        pseudo = torch.full_like(prediction, -1)
        for one, inside, label in zip(prediction, mask, pseudo, strict=True):
            for z in inside.unique().tolist():
                if z:
                    label[inside == z] = one[inside == z].bincount().argmax()
        logits = student(F.interpolate(batch.augmented, size=size, mode="bilinear"))
        confidence = logits.detach().softmax(1).mean((0, 2, 3))
        losses = F.cross_entropy(
            logits, pseudo, focal_weights(confidence), ignore_index=-1, reduction="none"
        )
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        if step % config.momentum_every == 0:
            momentum_update(momentum, student, 0.5)


def prepared(arguments: argparse.Namespace):
    model = PriMaPsEM(arguments.classes, recipe="paper")
    return model, extract(
        find_images(arguments.images),
        model.backbone,
        model.size,
        masks=model.mask_maker(),
        cache=arguments.cache,
    )


def child(arguments: argparse.Namespace) -> None:
    """Run one epoch in this process; print seconds and the increase of memory."""
    _, found = prepared(arguments)
    config = Config(arguments.classes, recipe="paper")
    start = pca_init(found.views, arguments.classes)
    steps = len(found.keys) // config.batch_size
    if arguments.kind == "ours":
        fit_em(found.views, found.masks, start, 1, config)  # loads the compiled functions
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    if arguments.kind == "ours":
        fit_em(found.views, found.masks, start, steps, config)
        part = 1.0
    else:
        steps = min(steps, arguments.steps)
        straightforward(found.views, found.masks, start, steps, config)
        part = steps / (len(found.keys) // config.batch_size)
    seconds = (time.monotonic() - began) / part
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak": peak / 1e6, "rise": (peak - before) / 1e6}))


def epoch(arguments: argparse.Namespace) -> None:
    prepared(arguments)  # so that the store is filled
    found: dict[str, list[dict]] = {"ours": [], "straightforward": []}
    for _ in range(arguments.repeats):
        for kind, results in found.items():
            command = [sys.executable, __file__, "child", "--kind", kind]
            for name in ("images", "classes", "steps", "store"):
                command += [f"--{name}", str(getattr(arguments, name))]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    ratios = [s["seconds"] / o["seconds"] for o, s in zip(*found.values(), strict=True)]
    for kind, results in found.items():
        seconds = statistics.median(r["seconds"] for r in results)
        peak = statistics.median(r["peak"] for r in results)
        print(f"{kind}: {seconds:.2f} s per epoch, peak memory {peak:.2f} GB")
    print(f"time: {statistics.median(ratios):.0f} times faster (median of {len(ratios)})")
    peaks = [s["peak"] / o["peak"] for o, s in zip(*found.values(), strict=True)]
    print(f"peak memory of the process: {statistics.median(peaks):.1f} times smaller")


def stages(arguments: argparse.Namespace) -> None:
    """Run a whole fit from images to model, without cached features."""
    options = {"views": arguments.views, "precision": arguments.precision}
    model = PriMaPsEM(arguments.classes, recipe="paper", **options)
    seconds = {"backbone": 0.0, "masks": 0.0}

    def timed(name, function):
        def call(*given):
            began = time.monotonic()
            result = function(*given)
            seconds[name] += time.monotonic() - began
            return result

        return call

    model.backbone.features.forward = timed("backbone", model.backbone.features.forward)
    model.masks = timed("masks", model.masks)
    began = time.monotonic()
    with ProgressDisplay(Console(stderr=True)) as progress, tempfile.TemporaryDirectory() as store:
        started: dict[str, float] = {}

        def note(stage, done, total, figures):
            started.setdefault(stage, time.monotonic())
            progress(stage, done, total, figures)

        model.fit(arguments.images, cache=store, progress=note)
    end = time.monotonic()
    seconds["k-means"] = started["EM"] - started["k-means"]
    seconds["EM"] = end - started["EM"]
    whole = end - began
    seconds["rest"] = whole - sum(seconds.values())
    print(f"whole fit: {whole:.0f} s")
    for name, value in seconds.items():
        print(f"  {name}: {value:.0f} s, {value / whole:.0%}")


class RandomPatches(torch.nn.Module):
    """A synthetic backbone: a random projection of 8x8 patches."""

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        self.mix = torch.nn.Conv2d(3, channels, 8, 8)
        generator = torch.Generator().manual_seed(0)
        self.mix.weight.data = torch.randn(self.mix.weight.shape, generator=generator) / 14

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.mix(images)


def scale(arguments: argparse.Namespace) -> None:
    """Fit to many small images, and measure the memory."""
    peak = [0]

    def watch() -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            peak[0] = max(peak[0], int(status.split("RssAnon:")[1].split()[0]))
            time.sleep(0.05)

    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        images, generator = Path(folder) / "images", np.random.default_rng(0)
        for number in range(arguments.count):
            path = images / f"{number // 1000:03}" / f"{number:06}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            blocks = generator.integers(0, 256, (4, 4, 3), np.uint8)
            Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)).save(path)
        options = {"backbone": RandomPatches(), "patch_size": 8, "size": 64, "mask_crf": False}
        if arguments.cache_content == "features":
            options |= {"recipe": "paper", "epochs": 1, "init_epochs": 1}
        model = PriMaPsEM(8, **options)
        files = find_images(images)
        model.fit(
            files[:64], cache=None, cache_content=arguments.cache_content
        )  # what the program itself takes
        threading.Thread(target=watch, daemon=True).start()
        time.sleep(0.2)
        before, began = peak[0], time.monotonic()
        with ProgressDisplay(Console(stderr=True)) as progress:
            store = Path(folder) / "store"
            model.fit(files, cache=store, cache_content=arguments.cache_content, progress=progress)
        stored = sum(p.stat().st_size for p in store.rglob("rows.bin"))
        seconds = time.monotonic() - began
    rise = (peak[0] - before) / 1e6
    print(f"{len(files)} images, {stored / 1e9:.2f} GB cached, {seconds:.0f} s")
    print(f"anonymous memory increased by {rise:.2f} GB, to {peak[0] / 1e6:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["epoch", "stages", "scale", "child"])
    parser.add_argument("--images")
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="steps of the straightforward epoch")
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--cache-content", default="features", choices=["features", "masks"])
    parser.add_argument("--folder", help="folder for the images and the cache of scale")
    parser.add_argument("--cache", default=str(cache_dir() / "features"))
    parser.add_argument("--kind", default="ours", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    globals()[arguments.what](arguments)


if __name__ == "__main__":
    main()
