"""Class tree, choice of K, stability and audit on labeled folders.

    python benchmarks/classes.py tree --data ROOT     # a cut of the tree compared with a direct fit
    python benchmarks/classes.py choose --data ROOT   # stability of several K, and their scores
    python benchmarks/classes.py trust --data ROOT    # rank correlations with accuracy per image
    python benchmarks/classes.py audit --data ROOT    # coverage and width of simulated audits
    python benchmarks/classes.py speed --data ROOT    # tree, curve and stability, and 10^6 masks

ROOT contains ``camvid``, ``coco200`` and ``aerial260`` (see benchmarks/results.py). Features,
masks, models and class maps are cached. Labels are only used for scores.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from scipy.stats import rankdata, spearmanr

from primaps.backbones.backbone import mean_of_both
from primaps.classes.class_count import candidates, choice_of, curve
from primaps.classes.stability import class_stability
from primaps.classes.summary import summarize_classes
from primaps.classes.tree import Tree, grow, leaf_map
from primaps.crf import CLASS_CRF
from primaps.data import find_images, load_pair, pair_up, read
from primaps.em.kmeans import mask_classes
from primaps.evaluation.audit import POOL, estimate, strips
from primaps.evaluation.metrics import confusion_matrix, majority, match, scores
from primaps.features.extract import extract
from primaps.features.training_data import MaskTable, mask_table
from primaps.model import PriMaPsEM
from primaps.utils.bilinear import upsample
from primaps.utils.files import cache_dir
from primaps.utils.progress import ProgressDisplay
from primaps.utils.seeding import generator

# Images to fit, images to score, and labels of these; then the number of labeled classes.
SETS = {
    "camvid": ("camvid/images/train", "camvid/images/val", "camvid/labels/val"),
    "coco200": ("coco200/images", "coco200/images", "coco200/labels"),
    "aerial260": ("aerial260/images", "aerial260/images", "aerial260/labels"),
}
OWN = {"camvid": 11, "coco200": 27, "aerial260": 3}
OTHER = (3, 6, 11, 16, 27, 40)


@dataclass
class Scored:
    """Labeled images with the features of image and flipped image, and masks."""

    images: torch.Tensor
    labels: torch.Tensor
    both: torch.Tensor
    masks: torch.Tensor
    classes: int
    ignore: int

    @property
    def features(self) -> torch.Tensor:
        return mean_of_both(self.both.float())


class Bench:
    """Models, masks and maps of a data set, computed once."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name, self.options = name, {"precision": arguments.precision}
        self.recipe = arguments.recipe
        self.root, self.store = arguments.data, arguments.cache
        self.folder = self.store / "classes" / f"{name}-{arguments.recipe}-{arguments.precision}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._masks: MaskTable | None = None
        self._scored: Scored | None = None

    def model(self, classes: int) -> PriMaPsEM:
        """Return a model that is fitted directly to ``classes`` classes."""
        folder = self.folder / f"model-{classes}"
        if not (folder / "config.json").is_file():
            model = PriMaPsEM(classes, recipe=self.recipe, **self.options)
            with ProgressDisplay(Console(stderr=True)) as progress:
                train = self.root / SETS[self.name][0]
                model.fit(train, cache=self.store, checkpoints=folder, progress=progress)
            model.save_pretrained(folder)
        return PriMaPsEM.from_pretrained(folder)

    @property
    def masks(self) -> MaskTable:
        """Masks of the images that models are fitted to."""
        if self._masks is None:
            path = self.folder / "masks.pt"
            if not path.is_file():
                model = PriMaPsEM(2, **self.options)
                files = find_images(self.root / SETS[self.name][0])
                found = extract(
                    files, model.backbone, model.size, masks=model.mask_maker(), cache=self.store
                )
                torch.save(vars(mask_table(found.views, found.masks)), path)
            self._masks = MaskTable(**torch.load(path))
        return self._masks

    @property
    def scored(self) -> Scored:
        """Labeled images."""
        if self._scored is None:
            model = PriMaPsEM(2, **self.options)
            data = pair_up(*(self.root / part for part in SETS[self.name][1:]))
            found = extract(
                data.samples, model.backbone, model.size, masks=model.mask_maker(), cache=self.store
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
        """Return class maps of a direct fit without and with the CRF, and their margins."""
        path = self.folder / f"maps-{classes}.npz"
        if not path.is_file():
            model, found = self.model(classes), {"plain": [], "crf": [], "margin": []}
            features, crf = self.scored.features, CLASS_CRF
            for feature, image in zip(features, self.scored.images, strict=True):
                given = F.normalize(feature, dim=0) if model.config.cosine else feature
                logits = upsample(model.prototypes_(given[None]), image.shape[-2:])
                refined = crf(image[None], logits.softmax(1))
                tops = [p.topk(2, 1).values[0] for p in (logits.softmax(1), refined)]
                found["plain"].append(logits.argmax(1)[0].byte().numpy())
                found["crf"].append(refined.argmax(1)[0].byte().numpy())
                margins = torch.stack([first - second for first, second in tops])
                found["margin"].append(margins.half().numpy())
            np.savez(path, **{name: np.stack(maps) for name, maps in found.items()})
        with np.load(path) as kept:
            return dict(kept)

    def tree(self, classes: int, **options) -> Tree:
        model = self.model(classes)
        own = mask_classes(
            self.masks.features, model.prototypes_.direction, model.prototypes_.scale
        )
        return grow(self.masks.features, own, model.prototypes_.direction, **options)


def leaf_counts(bench: Bench, tree: Tree, maps: np.ndarray) -> torch.Tensor:
    """Count pixels by labeled class and leaf of the tree."""
    scored = bench.scored
    counts = torch.zeros(scored.classes, len(tree), dtype=torch.int64)
    for feature, label, classes in zip(scored.features, scored.labels, maps, strict=True):
        found = leaf_map(tree, torch.from_numpy(classes).long(), feature)
        counts += confusion_matrix(found, label.long(), len(tree), len(counts), scored.ignore)
    return counts


def tree(arguments: argparse.Namespace) -> None:
    """Compare a cut of the tree with a direct fit at the same K."""
    gaps: dict[str, dict[str, list[list[float]]]] = {}
    print("| set | anchor | K | cut | fit | cut, majority | fit, majority |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.sets:
        bench = Bench(name, arguments)
        direct = {k: confusion(bench, k) for k in arguments.classes}
        for anchor in dict.fromkeys((OWN[name], 11)):
            grown = bench.tree(anchor)
            counts = leaf_counts(bench, grown, bench.maps(anchor)["crf"])
            for classes, fitted in direct.items():
                if classes == anchor:
                    continue
                joined = torch.zeros(len(counts), classes, dtype=torch.int64)
                joined.index_add_(1, grown.cut(classes), counts)
                cells, gap = [], []
                for rule in (None, majority):
                    cut, fit = (scores(c, rule and rule(c)) for c in (joined, fitted))
                    for one in (cut, fit):
                        cells.append(f"{100 * one.accuracy:.1f} / {100 * one.mean_iou:.1f}")
                    gap += [cut.accuracy - fit.accuracy, cut.mean_iou - fit.mean_iou]
                side = "below K" if classes < anchor else "above K"
                gaps.setdefault(side, {}).setdefault(name, []).append(gap)
                row = [name, str(anchor), str(classes), *cells]
                print(f"| {' | '.join(row)} |", flush=True)
    print("\nMean over sets of cut - fit: accuracy, mean IoU; the same by majority; the worst cut")
    for side, by_set in gaps.items():
        means = [np.mean(rows, axis=0) for rows in by_set.values()]
        worst = min(row[0] for rows in by_set.values() for row in rows)
        figures = ", ".join(f"{100 * value:+.1f}" for value in np.mean(means, axis=0))
        print(f"{side}: {figures}; {100 * worst:+.1f}")


def confusion(bench: Bench, classes: int) -> torch.Tensor:
    """Return the confusion matrix of a direct fit with the CRF."""
    scored = bench.scored
    maps = torch.from_numpy(bench.maps(classes)["crf"])
    return confusion_matrix(maps, scored.labels, classes, scored.classes, scored.ignore)


def choose(arguments: argparse.Namespace) -> None:
    """Print the stability of several K, and the scores of the cuts that it proposes."""
    for name in arguments.sets:
        bench = Bench(name, arguments)
        began = time.monotonic()
        found = curve(bench.masks.features, bench.masks.images, candidates())
        choice = choice_of(found)
        print(
            f"{name}: {len(bench.masks)} masks, {time.monotonic() - began:.0f} s; labels have "
            f"{OWN[name]} classes; proposed {choice.coarse}, {choice.middle}, {choice.fine}"
        )
        for one in found:
            print(
                f"  {one.classes:>3}: {one.stability:.3f} ± {one.error:.3f}, "
                f"prediction strength {one.strength:.2f}, gap {one.gap:.2f}"
            )


def stability(arguments: argparse.Namespace) -> None:
    """Print rank correlations of image scores with accuracy, and the area under ROC of pixels."""
    for name in arguments.sets:
        bench = Bench(name, arguments)
        scored, classes = bench.scored, OWN[name]
        maps, model = bench.maps(classes), bench.model(classes)
        right, counted = correct(bench, classes)
        accuracy = right.sum((1, 2)) / counted.sum((1, 2))
        features = F.normalize(scored.features, dim=1)
        direction = F.normalize(model.prototypes_.direction, dim=1)
        cosines = torch.einsum("kc,nchw->nkhw", direction, features)
        alone = [F.normalize(scored.both[:, i].float(), dim=1) for i in (0, 1)]
        one, other = (torch.einsum("kc,nchw->nkhw", direction, a).argmax(1) for a in alone)
        parts = torch.einsum("kc,nchw->nkhw", bench.tree(classes).directions.float(), features)
        own = mask_classes(bench.masks.features, direction, model.prototypes_.scale)
        table = bench.masks
        known = class_stability(table.features, table.areas, table.images, own, classes)
        stable = torch.tensor([c.stability for c in known]).nan_to_num(0)
        crf, plain = torch.from_numpy(maps["crf"]).long(), torch.from_numpy(maps["plain"]).long()
        margins = [torch.from_numpy(maps["margin"][:, i]).float() for i in (0, 1)]
        found = {
            "margin before the CRF": margins[0].mean((1, 2)),
            "margin after the CRF": margins[1].mean((1, 2)),
            "pixels that the CRF left": (crf == plain).float().mean((1, 2)),
            "agreement with the flipped image": (one == other.flip(-1)).float().mean((1, 2)),
            "cosine to the nearest prototype": cosines.amax(1).mean((1, 2)),
            "cosine to the nearest part": parts.amax(1).mean((1, 2)),
            "stability of its classes": stable[crf].mean((1, 2)),
        }
        print(f"{name}: accuracy per image {accuracy.mean():.3f} ± {accuracy.std():.3f}")
        for score, values in found.items():
            print(f"  {score}: {spearmanr(values, accuracy).statistic:+.2f}")
        for score, values in zip(("before", "after"), margins, strict=True):
            pixels = torch.randperm(int(counted.sum()), generator=generator("roc"))[:50_000]
            rank = torch.from_numpy(rankdata(values[counted][pixels]))
            good = right[counted][pixels]
            area = (rank[good].mean() - rank[~good].mean()) / len(rank) + 0.5
            print(f"  pixels, margin {score} the CRF: area under ROC {area:.2f}")
        sizes = torch.bincount(crf[counted], minlength=classes)
        precise = torch.bincount(crf[right], minlength=classes) / sizes.clamp_min(1)
        there = sizes > 0
        found_ = spearmanr(stable[there], precise[there]).statistic
        print(f"  classes, stability and precision ({int(there.sum())} classes): {found_:+.2f}")


def correct(bench: Bench, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which pixels are correct after matching, and which are counted."""
    scored = bench.scored
    assignment = match(confusion(bench, classes))
    table = torch.tensor([-1 if c is None else c for c in assignment])
    counted = scored.labels != scored.ignore
    predicted = torch.from_numpy(bench.maps(classes)["crf"]).long()
    return (table[predicted] == scored.labels) & counted, counted


def audit(arguments: argparse.Namespace) -> None:
    """Simulate 1,000 audits of 80 answers: how often the interval contains the true accuracy."""
    for name in arguments.sets:
        bench = Bench(name, arguments)
        maps = bench.maps(OWN[name])
        right, counted = correct(bench, OWN[name])
        right = right[counted]
        classes = torch.from_numpy(maps["crf"])[counted].long()
        sure = torch.from_numpy(maps["margin"][:, 1])[counted].float()
        truth = float(right.double().mean())
        for answers in (50, 80, 100):
            held, half, means = [], [], []
            for seed in range(1000):
                if seed % 50 == 0:  # pools are drawn anew, as the command draws one
                    drawn = generator("pool", seed)
                    pool = torch.randint(len(right), (POOL,), generator=drawn)
                rows = pool[
                    strips(classes[pool], sure[pool], torch.ones(POOL), answers, seed)[:, 0]
                ]
                one = estimate(right[rows].tolist(), classes[rows].tolist())
                held.append(one.low <= truth <= one.high)
                half.append((one.high - one.low) / 2)
                means.append(one.accuracy)
            interval = f"coverage {100 * np.mean(held):.1f} %, half width {100 * np.mean(half):.1f}"
            print(
                f"{name}, {answers} answers: true {100 * truth:.1f}, "
                f"mean {100 * np.mean(means):.1f}, {interval} (largest {100 * np.max(half):.1f})",
                flush=True,
            )


def speed(arguments: argparse.Namespace) -> None:
    """Time tree, curve and stability on the masks of CamVid, and a tree of 10^6 masks."""
    bench = Bench("camvid", arguments)
    masks, model = bench.masks, bench.model(11)
    own = mask_classes(masks.features, model.prototypes_.direction, model.prototypes_.scale)
    whole = time.monotonic()
    for name, run in (
        ("tree", lambda: grow(masks.features, own, model.prototypes_.direction)),
        ("curve of 12 K", lambda: curve(masks.features, masks.images, candidates())),
        ("stability", lambda: class_stability(masks.features, masks.areas, masks.images, own, 11)),
    ):
        began = time.monotonic()
        run()
        print(f"camvid, {len(masks)} masks, {name}: {time.monotonic() - began:.1f} s", flush=True)
    print(f"camvid, all three: {time.monotonic() - whole:.1f} s")
    for count in arguments.counts:
        random = torch.Generator().manual_seed(0)
        centers = F.normalize(torch.randn(200, 384, generator=random), dim=1)
        features = torch.empty(count, 384)
        for rows in features.split(10_000):
            rows.normal_(std=0.05, generator=random)
            rows += centers[torch.randint(200, (len(rows),), generator=random)]
            rows /= rows.norm(dim=1, keepdim=True)
        images = torch.arange(count) // 8
        table = MaskTable(features, torch.ones(count), images, images)
        began = time.monotonic()
        summarize_classes(table, centers[:27], torch.ones(27))
        middle = time.monotonic()
        curve(features, images, candidates())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"{count} masks: tree and stability {middle - began:.0f} s, curve "
            f"{time.monotonic() - middle:.0f} s, peak memory {peak:.1f} GB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["tree", "choose", "stability", "audit", "speed"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument(
        "--classes", nargs="+", type=int, default=OTHER, help="numbers of classes of the cuts"
    )
    parser.add_argument("--counts", nargs="+", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--recipe", default="orthogonal")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--cache", type=Path, default=cache_dir() / "features")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with torch.no_grad():
        globals()[arguments.what](arguments)


if __name__ == "__main__":
    main()
