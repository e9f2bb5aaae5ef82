"""The tree of classes, the choice of K, trust and audit on labelled folders.

    python benchmarks/classes.py tree --data ROOT     # what a cut costs against a direct fit
    python benchmarks/classes.py choose --data ROOT   # evidence for several K, and what it is worth
    python benchmarks/classes.py trust --data ROOT    # rank correlations with the accuracy per image
    python benchmarks/classes.py audit --data ROOT    # coverage and width of simulated audits
    python benchmarks/classes.py speed --data ROOT    # tree, curve and stability, and 10^6 masks

ROOT holds ``camvid``, ``coco200`` and ``aerial260`` (see benchmarks/results.py). Features, masks,
models and class maps are kept in the store. Labels are used for scores alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console

from primaps.classes.grow import grow
from primaps.classes.linkage import LINKAGES
from primaps.classes.masks import MaskTable, mask_classes, mask_table
from primaps.classes.tree import Tree, part_map
from primaps.crf import DenseCRF
from primaps.data import find_images, load_pair, pair_up, read
from primaps.evaluation import confusion_matrix, majority, scores
from primaps.extraction import extract
from primaps.files import cache_dir
from primaps.imagesize import upsample
from primaps.progress import Progress
from primaps.segmenter import PriMaPsEM

# Images to fit, images to score, labels of those; the number of classes of the labels.
SETS = {
    "camvid": ("camvid/images/train", "camvid/images/val", "camvid/labels/val"),
    "coco200": ("coco200/images", "coco200/images", "coco200/labels"),
    "aerial260": ("aerial260/images", "aerial260/images", "aerial260/labels"),
}
OWN = {"camvid": 11, "coco200": 27, "aerial260": 3}
OTHER = (3, 6, 11, 16, 27, 40)


@dataclass
class Scored:
    """Images with labels: features averaged with the mirror image, those of both, labels."""

    images: torch.Tensor
    labels: torch.Tensor
    both: torch.Tensor
    masks: torch.Tensor
    classes: int
    ignore: int

    @property
    def features(self) -> torch.Tensor:
        return (self.both[:, 0].float() + self.both[:, 1].float().flip(-1)) / 2


class Bench:
    """Models, masks and maps of a data set, computed once."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name, self.options = name, {"precision": arguments.precision}
        self.recipe = arguments.recipe
        self.root, self.store = arguments.data, arguments.store
        self.folder = self.store / "classes" / f"{name}-{arguments.recipe}-{arguments.precision}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._masks: MaskTable | None = None
        self._scored: Scored | None = None

    def model(self, classes: int) -> PriMaPsEM:
        """A direct fit."""
        folder = self.folder / f"model-{classes}"
        if not (folder / "config.json").is_file():
            model = PriMaPsEM(classes, recipe=self.recipe, **self.options)
            with Progress(Console(stderr=True)) as report:
                train = self.root / SETS[self.name][0]
                model.fit(train, store=self.store, checkpoints=folder, report=report)
            model.save_pretrained(folder)
        return PriMaPsEM.from_pretrained(folder)

    @property
    def masks(self) -> MaskTable:
        """Of the images that models are fitted to."""
        if self._masks is None:
            path = self.folder / "masks.pt"
            if not path.is_file():
                model = PriMaPsEM(2, **self.options)
                files = find_images(self.root / SETS[self.name][0])
                found = extract(
                    files, model.backbone, model.size, masks=model.mask_maker(), store=self.store
                )
                torch.save(vars(mask_table(found.views, found.masks)), path)
            self._masks = MaskTable(**torch.load(path))
        return self._masks

    @property
    def scored(self) -> Scored:
        """Images with labels."""
        if self._scored is None:
            model = PriMaPsEM(2, **self.options)
            data = pair_up(*(self.root / part for part in SETS[self.name][1:]))
            found = extract(
                data.samples, model.backbone, model.size, masks=model.mask_maker(), store=self.store
            )
            pairs = [
                pair
                for _, pair in read(
                    data.samples, lambda sample: load_pair(data, sample, model.size), print
                )
            ]
            rows = torch.arange(len(pairs))
            self._scored = Scored(
                images=torch.stack([image for image, _ in pairs]),
                labels=torch.stack([label for _, label in pairs]).to(torch.uint8),
                both=found.views.clean.take(rows),
                masks=found.masks.take(rows),
                classes=len(data.classes),
                ignore=data.ignore_index,
            )
        return self._scored

    def maps(self, classes: int) -> dict[str, np.ndarray]:
        """Class maps of a direct fit, ``plain`` and ``crf``, and ``margin`` after the CRF."""
        path = self.folder / f"maps-{classes}.npz"
        if not path.is_file():
            model, found = self.model(classes), {"plain": [], "crf": [], "margin": []}
            features, crf = self.scored.features, DenseCRF()
            for feature, image in zip(features, self.scored.images, strict=True):
                given = F.normalize(feature, dim=0) if model.config.cosine else feature
                logits = upsample(model.prototypes_(given[None]), image.shape[-2:])
                refined = crf(image[None], logits.softmax(1))
                top = refined.topk(2, 1).values[0]
                found["plain"].append(logits.argmax(1)[0].byte().numpy())
                found["crf"].append(refined.argmax(1)[0].byte().numpy())
                found["margin"].append((top[0] - top[1]).half().numpy())
            np.savez(path, **{name: np.stack(maps) for name, maps in found.items()})
        with np.load(path) as kept:
            return dict(kept)

    def tree(self, classes: int, **options) -> Tree:
        model = self.model(classes)
        own = mask_classes(
            self.masks.features, model.prototypes_.direction, model.prototypes_.scale
        )
        return grow(self.masks.features, own, model.prototypes_.direction, **options)


def part_counts(bench: Bench, tree: Tree, maps: np.ndarray) -> torch.Tensor:
    """Pixels by class of the labels and part."""
    scored = bench.scored
    counts = torch.zeros(scored.classes, len(tree), dtype=torch.int64)
    for feature, label, classes in zip(scored.features, scored.labels, maps, strict=True):
        found = part_map(tree, torch.from_numpy(classes).long(), feature)
        counts += confusion_matrix(found, label.long(), len(tree), len(counts), scored.ignore)
    return counts


def tree(arguments: argparse.Namespace) -> None:
    """What a cut of the tree costs against a direct fit at the same K."""
    gaps: dict[str, list[dict[str, float]]] = {name: [] for name in LINKAGES}
    for name in arguments.sets:
        bench = Bench(name, arguments)
        direct = {}
        for classes in OTHER:
            maps = torch.from_numpy(bench.maps(classes)["crf"]).long()
            direct[classes] = confusion_matrix(
                maps, bench.scored.labels.long(), classes, bench.scored.classes, bench.scored.ignore
            )
        for anchor in dict.fromkeys((OWN[name], 11)):
            maps = bench.maps(anchor)["crf"]
            counts = part_counts(bench, bench.tree(anchor), maps)  # parts are those of any linkage
            for linkage in LINKAGES:
                grown = bench.tree(anchor, linkage=linkage)
                for classes in OTHER:
                    if classes == anchor or (classes > anchor and linkage != "average"):
                        continue
                    table = grown.cut(classes)
                    joined = torch.zeros(len(counts), classes, dtype=torch.int64)
                    joined.index_add_(1, table, counts)
                    row = {"set": name, "anchor": anchor, "classes": classes}
                    for kind, matched in (("hungarian", None), ("majority", majority)):
                        for who, confusion in (("cut", joined), ("fit", direct[classes])):
                            found = scores(confusion, matched and matched(confusion))
                            row[f"{kind} {who} accuracy"] = 100 * found.accuracy
                            row[f"{kind} {who} iou"] = 100 * found.mean_iou
                    gaps[linkage].append(row)
                    print(json.dumps({"linkage": linkage, **row}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["tree", "choose", "trust", "audit", "speed"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--recipe", default="orthogonal")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--store", type=Path, default=cache_dir() / "features")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with torch.no_grad():
        globals()[arguments.what](arguments)


if __name__ == "__main__":
    main()
