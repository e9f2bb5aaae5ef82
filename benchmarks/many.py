"""Measure the speed of ``propose``, ``predict`` and ``fit`` on many images.

    python benchmarks/many.py predict|propose --images FOLDER [--model MODEL] [--engine torch] ...
    python benchmarks/many.py predict|propose|fit --images FOLDER [--model MODEL] --before SOURCE
    python benchmarks/many.py processes --images FOLDER --model MODEL [--count N]

Images are scaled to 640x480 first. ``predict`` and ``propose`` alternate with a simple float32
implementation: one image after the other, two passes of the network for ``predict`` (image and
flip), each operation on all cores, the network as transformers runs it. ``propose`` writes the same
files up to rounding. Printed are the medians of wall time and processor time per image, and the
share of the backbone. Processor time is meaningful on a machine with other work.

``--before`` compares the whole command with that of an older version, whose ``src`` is SOURCE
(``git worktree add ../before REVISION``). ``--before-model`` is a model of that version, if it
cannot read MODEL. ``fit`` runs the recipe orthogonal from files to model without a cache.
``processes`` compares one process on all cores with two processes on one core each, under torchrun.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from primaps import DenseCRF, PriMaPsEM, find_images, load_backbone, load_image
from primaps.backbones.backbone import Backbone, both_features, image_features, mean_of_both
from primaps.batch import class_overlay, consecutive, predict_files, propose_files
from primaps.config import InferenceOptions
from primaps.data import fit_to_patches, read, to_tensor
from primaps.pictures.overlays import overlay_masks
from primaps.proposals.image_size import mask_probabilities
from primaps.results import OutputFolder
from primaps.utils.files import sha256


def largest(probabilities: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the class of each pixel, computed one class after the other."""
    best = torch.full(size, -1.0)
    winner = torch.zeros(size, dtype=torch.int16)
    for channel in range(len(probabilities)):
        one = probabilities[None, channel : channel + 1]
        value = F.interpolate(one, size=size, mode="bilinear", align_corners=False)[0, 0]
        winner[value > best] = channel
        best = torch.maximum(best, value)
    return winner


def one_by_one(
    folder: Path, out: Path, label: Callable[[Image.Image], Tensor], draw: Callable
) -> None:
    files = find_images(folder)
    names = [f"{file.key}{end}" for file in files for end in (".png", ".overlay.jpg")]
    output = OutputFolder(out, {"primaps": "benchmark"}, [file.source for file in files], names)
    loaded = read(files, lambda f: (sha256(f.source), load_image(f.source)), print)
    for file, (digest, image) in loaded:
        labels = label(image).numpy().astype(np.uint8)
        drawn = draw(image, labels)
        output.write(digest, {
            f"{file.key}.overlay.jpg": partial(drawn.save, quality=90),
            f"{file.key}.png": Image.fromarray(labels).save,
        })  # fmt: skip


def predict_one(model: PriMaPsEM, image: Image.Image) -> Tensor:
    scaled = to_tensor(fit_to_patches(image, model.size, model.backbone.patch_size))[None]
    features = mean_of_both(both_features(model.backbone, scaled))
    segmenter = model.segmenter
    probabilities = segmenter.probabilities(segmenter.logits(features), scaled, InferenceOptions())
    return largest(probabilities[0], (image.height, image.width))


def propose_one(backbone: Backbone, image: Image.Image) -> Tensor:
    scaled = to_tensor(fit_to_patches(image, backbone.default_size, backbone.patch_size))[None]
    features = image_features(backbone, scaled)
    (probabilities,) = mask_probabilities(features, scaled, crf=DenseCRF())
    return consecutive(largest(probabilities, (image.height, image.width)))


def used() -> float:
    """Return the processor time of this process and of its finished children."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


class Timed(torch.nn.Module):
    """Sum the time of the calls of a backbone."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.inner, self.seconds = backbone.features, 0.0

    def forward(self, images: Tensor) -> Tensor:
        began = time.monotonic()
        try:
            return self.inner(images)
        finally:
            self.seconds += time.monotonic() - began


def compare(alternatives: dict[str, Callable[[Path], object]], count: int, rounds: int) -> None:
    """Run the alternatives in turn, each into its own folder, and print their times."""
    walls: dict[str, list[float]] = {name: [] for name in alternatives}
    works: dict[str, list[float]] = {name: [] for name in alternatives}
    for number in range(rounds):
        for name in list(alternatives)[:: 1 if number % 2 else -1]:
            with tempfile.TemporaryDirectory() as out:
                began, before = time.monotonic(), used()
                alternatives[name](Path(out) / "out")
                walls[name].append((time.monotonic() - began) / count)
                works[name].append((used() - before) / count)
    for name in alternatives:
        wall, work = statistics.median(walls[name]), statistics.median(works[name])
        print(f"{name}: {wall:.3f} s per image, {work:.3f} s of processor time")
    first, second = alternatives
    for what, times in (("wall time", walls), ("processor time", works)):
        ratios = [a / b for a, b in zip(times[first], times[second], strict=True)]
        print(f"{what}: {statistics.median(ratios):.2f} times (median of {len(ratios)})")


def command(words: list[str], out: Path, start: Sequence[str] = (), **environment: str) -> None:
    """Run a command of primaps in its own process."""
    # torchrun starts modules; older versions cannot be started as a module.
    main = ["-m", "primaps"] if start else ["-c", "from primaps.cli import main; main()"]
    subprocess.run(
        [sys.executable, *start, *main, *words, "--device", "cpu", "--out", str(out)],
        check=True, capture_output=True, env={**os.environ, **environment},
    )  # fmt: skip


def write_images(folder: str, count: int, into: Path) -> None:
    files = find_images(folder)
    for number in range(count):
        image = load_image(files[number * len(files) // count].source)
        image.resize((640, 480), Image.Resampling.LANCZOS).save(into / f"{number}.jpg", quality=92)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["predict", "propose", "fit", "processes"])
    parser.add_argument("--images", required=True)
    parser.add_argument("--model")
    parser.add_argument("--before", metavar="SOURCE", help="src folder of an older version")
    parser.add_argument("--before-model", metavar="MODEL", help="model fitted by that version")
    parser.add_argument("--backbone", default="dinov2-vits14")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="auto", help="precision of predict")
    parser.add_argument("--engine", default="torch", help="engine of the backbone")
    arguments = parser.parse_args()
    count, rounds = arguments.count, arguments.rounds
    if arguments.what == "fit" and not arguments.before:
        parser.error("fit is compared with an older version: give --before")
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder)
        write_images(arguments.images, count, images)
        if arguments.what == "processes":
            cores = str(torch.get_num_threads())
            run = partial(command, ["predict", arguments.model, str(images)])
            two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            alternatives = {
                "one process": partial(run, OMP_NUM_THREADS=cores),
                "two processes": partial(run, start=two, OMP_NUM_THREADS="1"),
            }
            compare(alternatives, count, rounds)
            return
        if arguments.before:
            words = {"before": [str(images)], "now": [str(images)]}
            if arguments.what == "fit":
                options = ["--classes", "27", "--recipe", "orthogonal"]
                words["before"] += [*options, "--store", "none"]
                words["now"] += [*options, "--cache", "none"]
            if arguments.what == "predict":
                words["before"].insert(0, arguments.before_model or arguments.model)
                words["now"] = [arguments.model, *words["now"], "--precision", arguments.precision]
            words["now"] += ["--engine", arguments.engine]
            alternatives = {
                "before": partial(
                    command, [arguments.what, *words["before"]], PYTHONPATH=arguments.before
                ),
                "now": partial(command, [arguments.what, *words["now"]]),
            }
            compare(alternatives, count, rounds)
            return
        if arguments.what == "predict":
            with mock.patch("primaps.backbones.load.use_onednn"):
                model = PriMaPsEM.from_pretrained(arguments.model, device="cpu")
            label = partial(predict_one, model)
            draw = class_overlay(model, [f"class {k}" for k in range(model.classes)])
            now = PriMaPsEM.from_pretrained(arguments.model, device="cpu", engine=arguments.engine)
            backbone = now.backbone
            new = partial(predict_files, now, images, precision=arguments.precision)
        else:
            with mock.patch("primaps.backbones.load.use_onednn"):
                usual = load_backbone(arguments.backbone, "cpu")
            backbone = load_backbone(arguments.backbone, "cpu", engine=arguments.engine)
            label, draw = partial(propose_one, usual), overlay_masks
            new = partial(propose_files, images, backbone=backbone)
        with tempfile.TemporaryDirectory() as out:  # compiles
            new(out=Path(out) / "out")
        timed = Timed(backbone)
        backbone.features = timed
        old = partial(one_by_one, images, label=label, draw=draw)
        compare({"one by one": lambda out: old(out=out), "now": lambda out: new(out=out)},
                count, rounds)  # fmt: skip
        timed.seconds, before = 0.0, used()
        with tempfile.TemporaryDirectory() as out:
            new(out=Path(out) / "out")
        print(f"the backbone is {timed.seconds / (used() - before):.0%} of the processor time")


if __name__ == "__main__":
    main()
