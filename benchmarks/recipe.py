"""Scores and seconds of the default fit, or of the linear probe, on labeled folders.

    python benchmarks/recipe.py --data ROOT [--sets camvid ...] [--seeds 0 1 2 3 4] [--size 448]
    python benchmarks/recipe.py --data ROOT --method probe --size 448

ROOT contains ``camvid``, ``coco200`` and ``aerial260`` as for results.py, whose table1 has the
other methods. Features and masks are computed once per data set and size, and cached. Each seed is
fitted, and scored as by `primaps evaluate` on the split val, or on all images of a single split;
the probe is scored without the CRF. The script prints accuracy and mean IoU in %, mean ± standard
deviation, without and with the CRF, and seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from primaps import PriMaPsEM, evaluate
from primaps.features.extract import extract
from primaps.reproduction.report import spread
from primaps.reproduction.run import CachedFeatures
from primaps.reproduction.run_context import load_source
from primaps.utils.files import cache_dir

SETS = ("coco200", "aerial260", "camvid")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--size", type=int, help="image size in pixels [default: that of the backbone]"
    )
    parser.add_argument("--method", choices=["em", "probe"], default="em")
    parser.add_argument("--engine", default="torch", help="engine of the backbone")
    parser.add_argument("--cache", type=Path, default=cache_dir() / "features")
    arguments = parser.parse_args()
    head = ["", "accuracy", "mean IoU", "accuracy + CRF", "mean IoU + CRF"]
    head += ["features and masks, s an image", "the recipe, s"]
    probe = arguments.method == "probe"
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in arguments.sets:
        source = load_source("folder", arguments.data / name)
        scores, seconds, each = [], [], 0.0
        for seed in arguments.seeds:
            model = PriMaPsEM(
                len(source.train.classes), method=arguments.method, size=arguments.size, seed=seed,
                engine=arguments.engine,
            )  # fmt: skip
            if not scores:
                began = time.monotonic()
                needed = {"labels": source.train} if probe else {"masks": model.mask_maker()}
                extracted = extract(
                    source.train.samples, model.network, model.size, cache=arguments.cache, **needed
                )
                each = (time.monotonic() - began) / len(extracted.keys)
                kept = CachedFeatures(model.network, arguments.cache)
            began = time.monotonic()
            model.fit_extracted(extracted)
            seconds.append(time.monotonic() - began)
            crfs = [False, not probe]  # the paper's probe is without
            both = [evaluate(model, source.score, features=kept, crf=crf) for crf in crfs]
            scores.append(both)
            shown = [f"{one.accuracy:.1%} {one.mean_iou:.1%}" for one in both]
            print(name, seed, *shown, f"{seconds[-1]:.1f} s", flush=True)
        figures = [
            spread([100 * getattr(one[crf], figure) for one in scores])
            for crf in (False, True)
            for figure in ("accuracy", "mean_iou")
        ]
        times = [f"{each:.2f}", f"{statistics.median(seconds):.1f}"]
        rows.append(f"| {' | '.join([name, *figures, *times])} |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
