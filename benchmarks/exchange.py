"""Measure time and memory of exports and imports.

    python benchmarks/exchange.py [--images 1000] [--formats coco cvat ...] [--size 640 480]

The label maps have 27 classes and regions of the size of predictions; they are the argmax of smooth
noise. Each format runs in its own process. The table has seconds of export and import, the size of
the files, and the peak memory of the process, in parentheses with a tenth of the images.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from primaps.exchange.formats import FORMATS
from primaps.exchange.transfer import export_labels, import_labels
from primaps.geometry.regions import connected_regions

CLASSES = 27


def label_map(seed: int, width: int, height: int) -> np.ndarray:
    """Return the argmax of 27 channels of smooth noise of two scales, at a quarter of the size."""
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((CLASSES, height // 4, width // 4)).astype(np.float32)
    coarse = np.stack([gaussian_filter(one, 9) * 9 for one in noise])
    fine = np.stack([gaussian_filter(one, 2) * 2 for one in noise])
    labels = (coarse + 0.45 * fine).argmax(0).astype(np.uint8)
    return np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))


def make(root: Path, images: int, width: int, height: int) -> float:
    """Write images and label maps (20 distinct, flipped); return regions per image."""
    maps = [label_map(seed, width, height) for seed in range(min(20, images))]
    (root / "images").mkdir(parents=True)
    (root / "result").mkdir()
    photo = Image.fromarray(np.zeros((height, width, 3), np.uint8))
    for i in range(images):
        labels = maps[i % len(maps)]
        labels = labels[:, :: (1, -1)[i % 2]][:: (1, -1)[i // 2 % 2]]
        Image.fromarray(labels).save(root / "result" / f"{i:05}.png")
        photo.save(root / "images" / f"{i:05}.jpg")
    about = {"command": "predict", "names": [f"class {k}" for k in range(CLASSES)]}
    (root / "result" / "primaps.json").write_text(json.dumps(about))
    return float(np.mean([len(connected_regions(labels).classes) for labels in maps]))


def peak() -> float:
    """Return the peak memory of this process in MB; getrusage would include the parent process."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) / 1024


def measure(root: Path, name: str) -> dict[str, float]:
    """Export and import a collection in this process, and return the measurements."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        began = time.monotonic()
        export_labels(root / "result", root / "images", name, Path(folder) / "out")
        exported = time.monotonic()
        memory = peak()
        size = sum(p.stat().st_size for p in (Path(folder) / "out").rglob("*") if p.is_file())
        result = {"export": exported - began, "memory": memory, "size": size / 2**20}
        if FORMATS[name].read:
            import_labels(Path(folder) / "out", name, Path(folder) / "back")
            result["import"] = time.monotonic() - exported
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480))
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--one", nargs=2, metavar=("ROOT", "FORMAT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(Path(arguments.one[0]), arguments.one[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder) / "few", Path(folder) / "many"
        make(few, max(1, arguments.images // 10), *arguments.size)
        regions = make(many, arguments.images, *arguments.size)
        width, height = arguments.size
        print(f"{arguments.images} images of {width}x{height}, {regions:.0f} regions each")
        print(
            "| format | export, s | import, s | written, MB | memory, MB (a tenth of the images) |"
        )
        print("|---|---|---|---|---|")
        for name in arguments.formats:
            small, large = (
                json.loads(
                    subprocess.run(
                        [sys.executable, __file__, "--one", str(root), name],
                        check=True, capture_output=True, text=True,
                    ).stdout
                )
                for root in (few, many)
            )  # fmt: skip
            back = f"{large['import']:.1f}" if "import" in large else "-"
            memory = f"{large['memory']:.0f} ({small['memory']:.0f})"
            print(f"| {name} | {large['export']:.1f} | {back} | {large['size']:.0f} | {memory} |")


if __name__ == "__main__":
    main()
