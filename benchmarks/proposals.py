"""Speed and quality of the mask proposals.

    python benchmarks/proposals.py speed              # compared with a straightforward version
    python benchmarks/proposals.py variants [--crf]   # the variants of Table 4a, oracle quality
    python benchmarks/proposals.py sweep [--crf]      # thresholds 0.2 to 0.6, as in Fig. 7
    python benchmarks/proposals.py sign               # sign rules of the component

Labeled images are in the folder PRIMAPS_DATA (camvid/, coco200/, aerial260/; default ../shared/data
next to the repository); ``speed`` does not need them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from primaps.proposals.image_size import image_masks
from primaps.proposals.principal_masks import propose

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("PRIMAPS_DATA", ROOT.parent / "shared" / "data"))
SETS = {"camvid": ("val", 11, 11), "coco200": ("val", 27, 255), "aerial260": ("", 3, 255)}
VARIANTS: dict[str, dict[str, object]] = {
    "similarity masks": {"anchor": False, "crf": None},
    "+ nearest neighbor": {"crf": None},
    "+ CRF": {},
    "non-iterative": {"iterative": False},
}


def straightforward(features: Tensor, threshold: float = 0.4, coverage: float = 0.95) -> Tensor:
    """Compute the same masks with one low-rank PCA per mask."""
    masks = []
    for f in features.flatten(2).transpose(1, 2):
        unit, mask = F.normalize(f, dim=1), torch.zeros(len(f), dtype=torch.int64)
        while (mask > 0).float().mean() < coverage:
            free = mask == 0
            q = min(3, int(free.sum()))
            _, _, v = torch.pca_lowrank(f[free], q=q, center=True, niter=100)
            cosine = (unit @ v[:, 0]).masked_fill(~free, 0.0)
            anchor = cosine.abs().argmax()
            similarity = (unit @ unit[anchor]).masked_fill(~free, -1.0)
            mask[similarity > threshold * similarity.max()] = mask.max() + 1
        masks.append(mask.view(features.shape[2:]))
    return torch.stack(masks)


def speed(arguments: argparse.Namespace) -> None:
    """Compare CPU time per image over all threads, which depends little on other processes.

    Both versions alternate; the straightforward one computes the first images of the batch, on one
    thread, because it is slower on several.
    """
    threads = torch.get_num_threads()
    print(f"ms of CPU per image, medians of {arguments.repeat}; ours on {threads} threads")
    for pixels, channels in ((322, 384), (560, 384), (560, 768)):
        maps = image_features(pixels, channels, arguments.batch)
        few = maps[: arguments.few]
        propose(maps[:1])  # compiles on the first run
        theirs, ours, walls = [], [], []
        for _ in range(arguments.repeat):
            torch.set_num_threads(1)
            theirs.append(timed(straightforward, few))
            torch.set_num_threads(threads)
            start = time.perf_counter()
            ours.append(timed(propose, maps))
            walls.append(1e3 * (time.perf_counter() - start) / len(maps))
        torch.set_num_threads(1)
        limit = arithmetic(maps)
        torch.set_num_threads(threads)
        a, b, wall = (statistics.median(each) for each in (theirs, ours, walls))
        same = 100 * (straightforward(few) == propose(few)).float().mean()
        masks = propose(maps).flatten(1).amax(1).float()
        print(
            f"{pixels // 14}x{pixels // 14}x{channels}: straightforward {a:.0f}"
            f" ({masks[: len(few)].mean():.1f} masks), ours {b:.2f} ({masks.mean():.1f} masks;"
            f" {wall:.2f} on the clock), ratio {a / b:.0f}; same positions {same:.1f} %; one"
            f" covariance at the rate of a large product {limit:.2f}",
            flush=True,
        )


def image_features(pixels: int, channels: int, batch: int) -> Tensor:
    """Return features of the images of scikit-image and scikit-learn, repeated."""
    import skimage.data
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from primaps.backbones.load import load_backbone
    from primaps.data.transforms import square

    names = ("astronaut", "coffee", "chelsea", "rocket")
    samples = [getattr(skimage.data, name)() for name in names] + load_sample_images().images
    images = torch.stack([square(Image.fromarray(sample), pixels) for sample in samples])
    backbone = load_backbone(device="cpu")
    maps = torch.cat([backbone(image[None].float() / 255) for image in images])
    if channels > maps.shape[1]:  # imitate a larger network
        flipped = [backbone(image[None].flip(-1).float() / 255).flip(-1) for image in images]
        maps = torch.cat([maps, torch.cat(flipped)], 1)[:, :channels]
    return maps.repeat(-(-batch // len(maps)), 1, 1, 1)[:batch].contiguous()


def timed(function: Callable[[Tensor], Tensor], maps: Tensor) -> float:
    """Return milliseconds of CPU time per image, over all threads."""
    start = time.process_time()
    function(maps)
    return 1e3 * (time.process_time() - start) / len(maps)


def arithmetic(maps: Tensor) -> float:
    """Return milliseconds per image for half of the entries of a covariance, on one thread."""
    c, n = maps.shape[1], maps[0, 0].numel()
    a = torch.randn(2048, 2048)
    seconds = min(timed(lambda x: x @ x, a) * len(a) / 1e3 for _ in range(10))
    return 1e3 * n * c * min(n, c) / (2 * len(a) ** 3 / seconds)


def data_sets() -> Iterator[tuple[str, Tensor, Tensor, Tensor, int, int]]:
    """Yield name, images, labels, features, classes and ignore index of each data set at 322 px."""
    from primaps.backbones.load import load_backbone
    from primaps.data import find_images, load_pair

    if not DATA.is_dir():
        sys.exit(
            f"{DATA} is not there: set PRIMAPS_DATA to the folder of camvid, coco200, aerial260"
        )
    backbone = load_backbone()
    for name, (split, classes, ignore) in SETS.items():
        files = find_images(DATA / name / "images" / split)
        folder = DATA / name / "labels" / split
        pairs = [load_pair(file, folder, 322, classes, ignore) for file in files]
        images, labels = (torch.stack(each) for each in zip(*pairs, strict=True))
        features = torch.cat(
            [backbone((each.float() / 255).to(backbone.device)).cpu() for each in images.split(8)]
        )
        yield f"{name} {split}".strip(), images, labels, features, classes, ignore


def quality(name: str, masks: Tensor, labels: Tensor, classes: int, ignore: int) -> None:
    from primaps.evaluation.oracle import count_masks, oracle_confusion, oracle_scores

    confusion = oracle_confusion(masks, labels, classes, ignore)
    found = oracle_scores(confusion, count_masks(masks), len(masks))
    print(
        f"  {name:22} assigned {100 * found.assigned.accuracy:5.1f} /"
        f" {100 * found.assigned.mean_iou:4.1f}   all {100 * found.all_pixels.accuracy:5.1f} /"
        f" {100 * found.all_pixels.mean_iou:4.1f}   masks {found.masks_per_image:4.1f}"
        f"   ignored {100 * found.ignored:4.1f} %",
        flush=True,
    )


def masks_of(features: Tensor, images: Tensor, **options: object) -> Tensor:
    chunks = zip(features.split(8), images.split(8), strict=True)
    return torch.cat([image_masks(f, x, **options) for f, x in chunks])  # type: ignore[arg-type]


def variants(arguments: argparse.Namespace) -> None:
    for name, images, labels, features, classes, ignore in data_sets():
        print(f"{name}, {len(images)} images: accuracy / mIoU with oracle classes, %")
        for variant, options in VARIANTS.items():
            if arguments.crf or options.get("crf", "") is None:
                masks = masks_of(features, images, **options)
                quality(variant, masks, labels, classes, ignore)
            elif variant == "non-iterative":
                masks = masks_of(features, images, iterative=False, crf=None)
                quality("non-iterative, no CRF", masks, labels, classes, ignore)


def sweep(arguments: argparse.Namespace) -> None:
    crf = "dense" if arguments.crf else None
    for name, images, labels, features, classes, ignore in data_sets():
        print(f"{name}, {len(images)} images: accuracy / mIoU with oracle classes, %")
        for threshold in (0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6):
            masks = masks_of(features, images, threshold=threshold, crf=crf)
            quality(f"threshold {threshold}", masks, labels, classes, ignore)


def sign(arguments: argparse.Namespace) -> None:
    """Compare sign rules of the component by hard masks (Eq. 6) without smoothing."""
    rules = {
        "largest |cosine|": lambda p, raw, cos: cos[cos.abs().argmax()],
        "its opposite": lambda p, raw, cos: -cos[cos.abs().argmax()],
        "largest |<f, v>|": lambda p, raw, cos: raw[raw.abs().argmax()],
        "largest |<f - mean, v>|": lambda p, raw, cos: p[p.abs().argmax()],
        "mean projection": lambda p, raw, cos: raw.mean(),
    }
    for name, _, labels, features, classes, ignore in data_sets():
        print(f"{name}: accuracy / mIoU with oracle classes, %")
        for rule, statistic in rules.items():
            masks = torch.stack([with_sign(f, statistic) for f in features])
            masks = F.interpolate(masks[:, None].float(), size=(322, 322))[:, 0].long()
            quality(rule, masks, labels, classes, ignore)


def with_sign(
    f: Tensor, statistic: Callable[[Tensor, Tensor, Tensor], Tensor], threshold: float = 0.4
) -> Tensor:
    """Compute Eq. 2-8 by an eigendecomposition, with a given sign rule."""
    x = f.flatten(1).T
    unit, mask = F.normalize(x, dim=1), torch.zeros(len(x), dtype=torch.int64)
    while (mask > 0).float().mean() < 0.95:
        free = mask == 0
        rest = x[free]
        centered = rest - rest.mean(0)
        v = centered.T @ torch.linalg.eigh(centered @ centered.T)[1][:, -1]
        v = F.normalize(v if len(rest) > 1 else rest[0], dim=0)
        if statistic(centered @ v, rest @ v, unit[free] @ v) < 0:
            v = -v
        anchor = (unit @ v).masked_fill(~free, -2.0).argmax()
        similarity = (unit @ unit[anchor]).masked_fill(~free, -1.0)
        mask[similarity > threshold * similarity.max()] = mask.max() + 1
    return mask.view(f.shape[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["speed", "variants", "sweep", "sign"])
    parser.add_argument("--crf", action="store_true", help="also with the dense CRF (slow)")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each version (speed)")
    parser.add_argument("--batch", type=int, default=32, help="images per batch (speed)")
    parser.add_argument(
        "--few", type=int, default=6, help="images of the straightforward version (speed)"
    )
    arguments = parser.parse_args()
    {"speed": speed, "variants": variants, "sweep": sweep, "sign": sign}[arguments.what](arguments)


if __name__ == "__main__":
    main()
