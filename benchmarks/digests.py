"""Digests of small fits on real images, to check that a refactoring changes no number.

Run it before and after a change, on the same machine, and compare:

    python benchmarks/digests.py --data ROOT --out before.json
    python benchmarks/digests.py --data ROOT --compare before.json

Every method, recipe and projection is fitted to the first images of CamVid on the CPU. The digests
are those of ``model.safetensors``, of label maps with and without the CRF, of the scores, and of
mask proposals. They depend on the processor and on the version of PyTorch, so they are compared on
one machine and are not committed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import primaps

SMALL = {"min_init_steps": 12, "init_epochs": 1, "batch_size": 8}
STEPS = {"min_steps": 12, "epochs": 2}
FITS: dict[str, dict[str, Any]] = {
    "orthogonal": {},
    "orthogonal, no CRF on masks": {"mask_crf": False},
    "paper": {"recipe": "paper"},
    "paper, views 2": {"recipe": "paper", "views": 2},
    "paper, fresh views, feature size": {
        "recipe": "paper",
        "views": "fresh",
        "loss_size": "feature",
    },
    "paper, non-iterative, no anchor": {"recipe": "paper", "iterative": False, "anchor": False},
    "kmeans": {"method": "kmeans"},
    "probe": {"method": "probe"},
    "orthogonal, projection": {"projection": True},
    "paper, projection": {"recipe": "paper", "projection": True},
}


def codes(features: torch.Tensor) -> torch.Tensor:
    """Project features to 48 channels by a fixed random matrix."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(48, features.shape[1], generator=generator) / 20
    return torch.einsum("kc,bchw->bkhw", matrix, features).contiguous()


def digest(value: Any) -> str:
    """SHA-256 of an array, a file or JSON, shortened."""
    if isinstance(value, Path):
        data = value.read_bytes()
    elif isinstance(value, np.ndarray):
        data = str(value.shape).encode() + value.astype(np.int64).tobytes()
    else:
        data = json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def digests_of_fit(data: Path, backbone: Any, options: dict[str, Any], count: int) -> dict:
    """Fit once and return the digest of everything that comes out."""
    images = sorted((data / "camvid/images/train").glob("*.jpg"))[: 8 * count : 8]
    scored = sorted((data / "camvid/images/val").glob("*.jpg"))[:24:8]
    options = dict(options)
    projection = codes if options.pop("projection", False) else None
    train = data / "camvid/labels/train" if options.get("method") == "probe" else None
    options |= STEPS if options.get("recipe") == "paper" or "method" in options else {}
    model = primaps.PriMaPsEM(11, backbone=backbone, projection=projection, **SMALL, **options)
    model.fit([str(path) for path in images], train)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        found["model.safetensors"] = digest(Path(folder) / "model.safetensors")
        tree = Path(folder) / "tree.safetensors"
        if tree.exists():
            tensors = load_file(tree)
            found["tree"] = digest([t.double().sum().item().hex() for t in tensors.values()])
    for crf in (True, False):
        maps = [model.predict(str(path), crf=crf).numpy() for path in scored]
        found[f"label maps, crf {crf}"] = digest(np.stack(maps))
        result = primaps.evaluate(
            model, [str(p) for p in scored], data / "camvid/labels/val", crf=crf
        )
        found[f"scores, crf {crf}"] = [result.accuracy, result.mean_iou, digest(result.confusion)]
    if model.class_summary_ is not None and options.get("recipe") != "paper":
        cut = model.cut(5)
        found["label map of a cut"] = digest(cut.predict(str(scored[0])).numpy())
    return found


def digests(data: Path, count: int) -> dict[str, Any]:
    """Digests of all fits, and of mask proposals of four images."""
    backbone = primaps.load_backbone("dinov2-vits14", device="cpu")
    found: dict[str, Any] = {}
    paths = sorted((data / "coco200/images/val").glob("*.jpg"))[:4]
    for crf in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            primaps.propose_files(
                [str(path) for path in paths],
                Path(folder) / "masks",
                backbone=backbone,
                mask_crf=crf,
                device="cpu",
            )
            maps = sorted((Path(folder) / "masks").rglob("*.png"))
            found[f"proposals, crf {crf}"] = [digest(np.asarray(Image.open(p))) for p in maps]
    for name, options in FITS.items():
        found[name] = digests_of_fit(data, backbone, options, count)
        print(name, found[name], flush=True)
    return found


def main() -> int:
    """Write digests, or compare them with those of an earlier run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="Folder with camvid and coco200.")
    parser.add_argument("--images", type=int, default=24, help="Images per fit.")
    parser.add_argument("--out", type=Path, help="Write the digests there.")
    parser.add_argument("--compare", type=Path, help="Compare with the digests in this file.")
    options = parser.parse_args()
    found = digests(options.data, options.images)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    if not options.compare:
        return 0
    before = json.loads(options.compare.read_text())
    changed = [name for name in before if before[name] != found.get(name)]
    print(f"{len(before) - len(changed)} of {len(before)} identical; changed: {changed}")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
