"""Time and memory of the dense CRF, compared with pydensecrf2 and the memory bandwidth.

    python benchmarks/crf.py                        # the whole table, many minutes
    python benchmarks/crf.py --quick                # 320x320, 12 and 27 labels
    python benchmarks/crf.py --images FOLDER        # other images
    python benchmarks/crf.py --format json

pydensecrf2 (optional, `pip install pydensecrf2`) runs in a pool of as many processes as torch has
threads. Each process computes its own inputs, which need not be sent. Both sides alternate in one
run and return label maps; the table has medians.

Memory traffic of an iteration, for N pixels, M lattice points of all kernels (C of them in chains
per direction) and rows of R bytes (padded labels, float32):

    splat    N R (marginals) + 9 N 8 (indices, weights) + M R (zeroing) + 9 N 2 R (rows)
    blur     2 C R, summed over 6 + 3 directions, + 4 C (indices)
    update   2 N R (unary, marginals) + 9 N 8 + 9 N R (rows)

Neighboring pixels share lattice points: of the 9 N rows, at least the distinct ones, M R, come from
memory. This lower bound divided by the measured time is compared with the bandwidth of copying an
array on the same threads.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

SUFFIXES = {".jpg", ".jpeg", ".png"}


def sample_images(folder: Path | None, size: int, count: int) -> list[np.ndarray]:
    """Return ``count`` square RGB images, from a folder or from scikit-image."""
    if folder is None:
        from skimage import data

        bundled = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
        images = [Image.fromarray(array) for array in bundled]
    else:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        step = max(1, len(paths) // count)
        images = [Image.open(path).convert("RGB") for path in paths[::step]]
    out = []
    for i in range(count):
        image = images[i % len(images)]
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        out.append(np.array(square.resize((size, size), Image.Resampling.BICUBIC)))
    return out


def soft_labels(image: np.ndarray, labels: int, patch: int = 8) -> np.ndarray:
    """Return probabilities like those of a ViT: soft k-means of patch colors, upsampled."""
    size = len(image)
    colors = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    coarse = F.adaptive_avg_pool2d(colors, size // patch)
    flat = coarse[0].flatten(1).T
    centers = flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))[:labels]]
    for _ in range(5):
        nearest = torch.cdist(flat, centers).argmin(1)
        centers = torch.stack(
            [flat[nearest == k].mean(0) if k in nearest else c for k, c in enumerate(centers)]
        )
    logits = -torch.cdist(flat, centers).T.reshape(1, labels, *coarse.shape[-2:]) / 15
    logits = F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)
    return logits[0].softmax(0).numpy()


@lru_cache(maxsize=2)
def inputs(folder: Path | None, size: int, labels: int, count: int) -> tuple:
    images = sample_images(folder, size, count)
    return images, [soft_labels(image, labels) for image in images]


def run_primaps(device: str, folder: Path | None, size: int, labels: int, count: int) -> float:
    """Return the seconds of a batch of ``count`` images, including label maps."""
    from primaps.crf import dense_crf

    images, probabilities = inputs(folder, size, labels, count)
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device)
    values = torch.from_numpy(np.stack(probabilities)).to(device)
    start = time.perf_counter()
    dense_crf(batch, values).argmax(1).cpu()
    return time.perf_counter() - start


def run_one_pydensecrf(
    index: int, folder: Path | None, size: int, labels: int, count: int
) -> np.ndarray:
    import pydensecrf.densecrf as library
    from pydensecrf.utils import unary_from_softmax

    images, probabilities = inputs(folder, size, labels, count)
    model = library.DenseCRF2D(size, size, labels)
    model.setUnaryEnergy(unary_from_softmax(probabilities[index]))
    model.addPairwiseGaussian(sxy=1, compat=3)
    model.addPairwiseBilateral(sxy=67, srgb=3, rgbim=images[index], compat=4)
    return np.argmax(model.inference(10), axis=0).astype(np.uint8)


def run_pydensecrf(pool, folder: Path | None, size: int, labels: int, count: int) -> float:
    start = time.perf_counter()
    one = partial(run_one_pydensecrf, folder=folder, size=size, labels=labels, count=count)
    pool.map(one, range(count), chunksize=1)
    return time.perf_counter() - start


def resident(field: str) -> float:
    """Return the memory of this process in MiB: VmRSS is current, VmHWM the peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def peak_memory(pipe, library: str, folder: Path | None, size: int, labels: int, count: int):
    """Return the MiB that one call adds to inputs and imports, measured in a separate process."""
    run = partial(run_primaps, "cpu") if library == "primaps" else partial(run_one_pydensecrf, 0)
    run(folder, 64, labels, 1)  # 64 patches are enough for 64 labels
    inputs(folder, size, labels, count)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the maximum so far
    run(folder, size, labels, count)
    pipe.send(resident("VmHWM") - before)


def measure_memory(context, *args) -> float:
    ours, theirs = context.Pipe()
    process = context.Process(target=peak_memory, args=(theirs, *args))
    process.start()
    theirs.close()
    peak = ours.recv()
    process.join()
    return peak


def copy_bandwidth() -> float:
    """Return GB/s, read plus written, of copying arrays larger than all caches."""
    source = torch.zeros(2**26)
    target = torch.empty_like(source)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(times) / 1e9


def bytes_per_iteration(folder: Path | None, size: int, labels: int, count: int) -> float:
    """Return the lower bound of the module docstring, averaged over the images."""
    from primaps.crf import compiled_lattice, compiled_rows
    from primaps.crf.kernels import bilateral_features, spatial_features

    n, row = size * size, 4 * compiled_rows.row_layout(labels)[0]
    totals = []
    for image in inputs(folder, size, labels, count)[0]:
        colors = torch.from_numpy(image).permute(2, 0, 1)
        features = [bilateral_features(colors, 67.0, 3.0), spatial_features(size, size, 1.0)]
        lattices = [compiled_lattice.build(f.numpy()) for f in features]
        points = sum(lattice.size for lattice in lattices)
        chained = sum(int((c < la.size).sum()) for la in lattices for c in la.chains)
        splat = n * row + 72 * n + 3 * points * row
        blur = 2 * chained * row + 4 * chained
        update = 2 * n * row + 72 * n + points * row
        totals.append(splat + blur + update)
    return statistics.mean(totals)


def measure(args: argparse.Namespace) -> list[dict]:
    context = multiprocessing.get_context("spawn")
    threads = torch.get_num_threads()
    has_rival = find_spec("pydensecrf") is not None
    pool = context.Pool(threads) if has_rival else None
    rows = []
    for size in args.sizes:
        for labels in args.labels:
            count = args.count or max(threads, min(8, 8 * 320**2 // size**2))
            config = (args.images, size, labels, count)
            contestants = {"primaps cpu": partial(run_primaps, "cpu", *config)}
            if pool is not None:
                contestants["pydensecrf2"] = partial(run_pydensecrf, pool, *config)
            if torch.cuda.is_available():
                contestants["primaps cuda"] = partial(run_primaps, "cuda", *config)
            times: dict[str, list[float]] = {name: [] for name in contestants}
            for repeat in range(args.repeats + 1):
                for name, run in contestants.items():
                    seconds = run()
                    if repeat:  # the first compiles and makes inputs
                        times[name].append(1e3 * seconds / count)
            row = {"size": size, "labels": labels, "images": count}
            row |= {f"{name} ms": statistics.median(t) for name, t in times.items()}
            if has_rival:
                ratios = [
                    a / b for a, b in zip(times["pydensecrf2"], times["primaps cpu"], strict=True)
                ]
                row["ratio"] = statistics.median(ratios)
            moved = 10 * bytes_per_iteration(args.images, size, labels, min(count, 4))
            row["bound GB"] = moved / 1e9
            row["bound GB/s"] = moved / 1e9 / (row["primaps cpu ms"] / 1e3)
            if not args.no_memory:
                row["primaps MiB"] = measure_memory(context, "primaps", *config[:3], 1)
                if has_rival:
                    row["pydensecrf2 MiB"] = measure_memory(context, "pydensecrf2", *config[:3], 1)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr)
    if pool is not None:
        pool.close()
    return rows


def as_markdown(rows: list[dict]) -> str:
    def cell(value: float) -> str:
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"

    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " ---: |" * len(rows[0])]
    lines += ["| " + " | ".join(cell(v) for v in row.values()) + " |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 320, 512, 1024])
    parser.add_argument("--labels", type=int, nargs="+", default=[3, 12, 27, 64])
    parser.add_argument("--images", type=Path, help="folder of images")
    parser.add_argument("--count", type=int, help="images per batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--no-memory", action="store_true", help="do not measure peak memory (Linux only)"
    )
    parser.add_argument("--quick", action="store_true", help="320x320, 12 and 27 labels")
    parser.add_argument("--format", choices=["markdown", "json"], default="markdown")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.labels, args.repeats = [320], [12, 27], 3
    rows = measure(args)
    print(
        f"{torch.get_num_threads()} threads, copy {copy_bandwidth():.1f} GB/s; "
        "time per image, median; memory one image adds; ratio: pydensecrf2 time / primaps cpu time"
    )
    print(as_markdown(rows) if args.format == "markdown" else json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
