"""How fast ``propose``, ``predict`` and ``fit`` are on many photos, against other ways.

    python benchmarks/many.py predict|propose --images FOLDER [--model MODEL] [--engine torch] ...
    python benchmarks/many.py predict|propose|fit --images FOLDER [--model MODEL] --before SOURCE
    python benchmarks/many.py processes --images FOLDER --model MODEL [--count N]

Photos are scaled to 640x480 first. ``predict`` and ``propose`` alternate between the way of
this package and the one that it had before, in float32: one image after the other, its two passes
one after the other, each operation on all cores, pictures drawn and written in between, the network
as transformers runs it by itself. ``propose`` writes the same files but for the rounding;
``predict`` now looks at the image alone, where the way before looks at its flipped image as well.
Prints the median of wall time and of processor time per image, which tells on a machine that has
other work, and the share of the backbone of it. With ``--before`` the whole command is compared
with that of an older version, whose ``src`` SOURCE is (``git worktree add ../before REVISION``),
with a model of its own (``--before-model``) if it cannot read MODEL; ``fit`` is of the recipe
orthogonal, from files to model, and keeps nothing. ``processes`` compares one process on all cores
with two on one core each, under torchrun.
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
from primaps.data import fit_to_patches, read, to_tensor
from primaps.pictures.overlays import overlay_masks
from primaps.proposals.image_size import mask_probabilities
from primaps.results import OutputFolder
from primaps.utils.files import sha256


def largest(probabilities: Tensor, size: tuple[int, int]) -> Tensor:
    """The class of each pixel, one class after the other."""
    best = torch.full(size, -1.0)
    winner = torch.zeros(size, dtype=torch.int16)
    for channel in range(len(probabilities)):
        one = probabilities[None, channel : channel + 1]
        value = F.interpolate(one, size=size, mode="bilinear", align_corners=False)[0, 0]
        winner[value > best] = channel
        best = torch.maximum(best, value)
    return winner


def one_by_one(
    folder: Path, out: Path, label: Callable[[Image.Image], Tensor], picture: Callable
) -> None:
    files = find_images(folder)
    names = [f"{file.key}{end}" for file in files for end in (".png", ".overlay.jpg")]
    output = OutputFolder(out, {"primaps": "benchmark"}, [file.source for file in files], names)
    loaded = read(files, lambda f: (sha256(f.source), load_image(f.source)), print)
    for file, (digest, image) in loaded:
        labels = label(image).numpy().astype(np.uint8)
        drawn = picture(image, labels)
        output.write(digest, {
            f"{file.key}.overlay.jpg": partial(drawn.save, quality=90),
            f"{file.key}.png": Image.fromarray(labels).save,
        })  # fmt: skip


def predict_one(model: PriMaPsEM, image: Image.Image) -> Tensor:
    scaled = to_tensor(fit_to_patches(image, model.size, model.backbone.patch_size))[None]
    features = mean_of_both(both_features(model.backbone, scaled))
    segmenter = model.segmenter
    probabilities = segmenter.probabilities(segmenter.logits(features), scaled, crf=True)
    return largest(probabilities[0], (image.height, image.width))


def propose_one(backbone: Backbone, image: Image.Image) -> Tensor:
    scaled = to_tensor(fit_to_patches(image, backbone.default_size, backbone.patch_size))[None]
    features = image_features(backbone, scaled)
    (probabilities,) = mask_probabilities(features, scaled, crf=DenseCRF())
    return consecutive(largest(probabilities, (image.height, image.width)))


def used() -> float:
    """Processor time of this process, all threads, and of its children that have ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


class Watched(torch.nn.Module):
    """Adds up the time of a backbone's calls, each on a core of its own."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.inner, self.seconds = backbone.features, 0.0

    def forward(self, images: Tensor) -> Tensor:
        began = time.monotonic()
        try:
            return self.inner(images)
        finally:
            self.seconds += time.monotonic() - began


def compare(ways: dict[str, Callable[[Path], object]], count: int, rounds: int) -> None:
    """Run the ways in turn, each round into folders of its own."""
    walls: dict[str, list[float]] = {name: [] for name in ways}
    works: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            with tempfile.TemporaryDirectory() as out:
                began, before = time.monotonic(), used()
                ways[name](Path(out) / "out")
                walls[name].append((time.monotonic() - began) / count)
                works[name].append((used() - before) / count)
    for name in ways:
        wall, work = statistics.median(walls[name]), statistics.median(works[name])
        print(f"{name}: {wall:.3f} s per image, {work:.3f} s of processor time")
    first, second = ways
    for what, times in (("wall time", walls), ("processor time", works)):
        ratios = [a / b for a, b in zip(times[first], times[second], strict=True)]
        print(f"{what}: {statistics.median(ratios):.2f} times (median of {len(ratios)})")


def command(words: list[str], out: Path, start: Sequence[str] = (), **environment: str) -> None:
    """Run a command of primaps in a process of its own."""
    # torchrun starts modules, and an older version may not be one that can be started.
    main = ["-m", "primaps"] if start else ["-c", "from primaps.cli import main; main()"]
    subprocess.run(
        [sys.executable, *start, *main, *words, "--device", "cpu", "--out", str(out)],
        check=True, capture_output=True, env={**os.environ, **environment},
    )  # fmt: skip


def photos(folder: str, count: int, into: Path) -> None:
    files = find_images(folder)
    for number in range(count):
        image = load_image(files[number * len(files) // count].source)
        image.resize((640, 480), Image.Resampling.LANCZOS).save(into / f"{number}.jpg", quality=92)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["predict", "propose", "fit", "processes"])
    parser.add_argument("--images", required=True)
    parser.add_argument("--model")
    parser.add_argument("--before", metavar="SOURCE", help="src of an older version")
    parser.add_argument("--before-model", metavar="MODEL", help="what that one fitted")
    parser.add_argument("--backbone", default="dinov2-vits14")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="auto", help="of predict, as it is now")
    parser.add_argument("--engine", default="torch", help="of what is now")
    arguments = parser.parse_args()
    count, rounds = arguments.count, arguments.rounds
    if arguments.what == "fit" and not arguments.before:
        parser.error("fit is compared with an older version: give --before")
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder)
        photos(arguments.images, count, images)
        if arguments.what == "processes":
            cores = str(torch.get_num_threads())
            run = partial(command, ["predict", arguments.model, str(images)])
            two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            ways = {
                "one process": partial(run, OMP_NUM_THREADS=cores),
                "two processes": partial(run, start=two, OMP_NUM_THREADS="1"),
            }
            compare(ways, count, rounds)
            return
        if arguments.before:
            words = {"before": [str(images)], "now": [str(images)]}
            if arguments.what == "fit":
                options = ["--classes", "27", "--recipe", "orthogonal", "--store", "none"]
                words = {name: [*before, *options] for name, before in words.items()}
            if arguments.what == "predict":
                words["before"].insert(0, arguments.before_model or arguments.model)
                words["now"] = [arguments.model, *words["now"], "--precision", arguments.precision]
            words["now"] += ["--engine", arguments.engine]
            ways = {
                "before": partial(
                    command, [arguments.what, *words["before"]], PYTHONPATH=arguments.before
                ),
                "now": partial(command, [arguments.what, *words["now"]]),
            }
            compare(ways, count, rounds)
            return
        if arguments.what == "predict":
            with mock.patch("primaps.backbones.load.use_onednn"):
                model = PriMaPsEM.from_pretrained(arguments.model, device="cpu")
            label = partial(predict_one, model)
            picture = class_overlay(model, [f"class {k}" for k in range(model.classes)])
            now = PriMaPsEM.from_pretrained(arguments.model, device="cpu", engine=arguments.engine)
            backbone = now.backbone
            new = partial(predict_files, now, images, precision=arguments.precision)
        else:
            with mock.patch("primaps.backbones.load.use_onednn"):
                usual = load_backbone(arguments.backbone, "cpu")
            backbone = load_backbone(arguments.backbone, "cpu", engine=arguments.engine)
            label, picture = partial(propose_one, usual), overlay_masks
            new = partial(propose_files, images, backbone=backbone)
        with tempfile.TemporaryDirectory() as out:  # compiles
            new(out=Path(out) / "out")
        watched = Watched(backbone)
        backbone.features = watched
        old = partial(one_by_one, images, label=label, picture=picture)
        compare({"one by one": lambda out: old(out=out), "now": lambda out: new(out=out)},
                count, rounds)  # fmt: skip
        watched.seconds, before = 0.0, used()
        with tempfile.TemporaryDirectory() as out:
            new(out=Path(out) / "out")
        print(f"the backbone is {watched.seconds / (used() - before):.0%} of the processor time")


if __name__ == "__main__":
    main()
