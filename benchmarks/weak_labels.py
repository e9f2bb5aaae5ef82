"""Time saved by dropping negligible labels from the CRF of class maps, and the change of the maps.

    python benchmarks/weak_labels.py --images FOLDER --model MODEL [--count N]

Class maps of images are computed with several values of ``negligible``, one image at a time on one
core, alternating. For each value the script prints the processor time of the CRF per image, the
median of its ratio to keeping all labels, the share of the pixels that get the same class, and the
change of the marginals: the mean over pixels of the sum over classes of the absolute difference.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from primaps import DenseCRF, InferenceOptions, PriMaPsEM
from primaps.crf import CLASS_CRF
from primaps.data import find_images, fit_to_patches, load_image, to_tensor

VALUES = (0.0, 1e-3, 0.1, 0.2, CLASS_CRF.negligible, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, metavar="FOLDER")
    parser.add_argument("--model", required=True)
    parser.add_argument("--count", type=int, default=40)
    arguments = parser.parse_args()
    model = PriMaPsEM.from_pretrained(arguments.model)
    files = find_images(arguments.images)
    times: dict[float, list[float]] = {value: [] for value in VALUES}
    same: dict[float, list[float]] = {value: [] for value in VALUES}
    apart: dict[float, list[float]] = {value: [] for value in VALUES}
    for file in files[:: max(1, len(files) // arguments.count)][: arguments.count]:
        scaled = fit_to_patches(load_image(file.source), model.size, model.backbone.patch_size)
        images = to_tensor(scaled)[None]
        features = model.segmenter.encode(images, InferenceOptions(flip=True))
        logits = model.segmenter.logits(features)
        before = model.segmenter.probabilities(logits, images, InferenceOptions(crf=False))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        full = None
        for value in (0.0, *VALUES):  # the first one is to have kernels and caches warm
            began = time.process_time()
            found = DenseCRF(negligible=value)(images, before)[0]
            took = time.process_time() - began
            if full is None:
                full = found
                continue
            times[value].append(took)
            same[value].append(float((found.argmax(0) == full.argmax(0)).double().mean()))
            apart[value].append(float((found - full).abs().sum(0).mean()))
        torch.set_num_threads(threads)
    print(f"{len(times[0.0])} images, {model.classes} classes")
    print("| negligible | ms | ratio | same class % | minimum % | marginals |")
    print("|---|---|---|---|---|---|")
    for value in VALUES:
        ratio = statistics.median(a / b for a, b in zip(times[0.0], times[value], strict=True))
        print(
            f"| {value} | {1e3 * statistics.mean(times[value]):.0f} | {ratio:.2f}"
            f" | {100 * statistics.mean(same[value]):.4f} | {100 * min(same[value]):.3f}"
            f" | {statistics.mean(apart[value]):.6f} |"
        )


if __name__ == "__main__":
    main()
