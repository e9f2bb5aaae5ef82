"""What the results of an experiment depend on, so that others can tell whether theirs do too."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from primaps.backbones.load import resolve_device
from primaps.data import Dataset
from primaps.reproduction.data_sources import list_digest, write_list
from primaps.reproduction.run_context import Laboratory, Outcome
from primaps.version import VERSION

PACKAGES = ("torch", "transformers", "numpy", "scipy", "numba", "pillow", "kornia")


def environment(outcomes: Sequence[Outcome], laboratory: Laboratory) -> dict[str, Any]:
    """What results depend on: data, weights, options, device, versions."""
    reproduction = laboratory.reproduction
    device = resolve_device(reproduction.device)
    cuda = device.type == "cuda"
    data: dict[str, Any] = {}
    for name, part, split in _splits(laboratory):
        data.setdefault(name, {})[part] = {
            "split": split.split,
            "images": len(split.samples),
            "ids": f"{name}-{part}.txt",
            "sha256": list_digest(split),
        }
    return {
        "seeds": list(reproduction.seeds),
        "protocol": reproduction.protocol,
        "options": {"views": reproduction.views, **reproduction.options},
        "data": data,
        "weights": {Path(name).name: network.weights for name, network in laboratory.used.items()},
        "positions": reproduction.positions,
        "projections": _projections(outcomes),
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "versions": {
            "primaps": VERSION,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def environment_lines(about: dict[str, Any]) -> Iterator[str]:
    """The same for the report."""
    for name, splits in about["data"].items():
        for part, split in splits.items():
            yield (
                f"- {name}, {part}: {split['images']:,} images of split {split['split']}; ids in "
                f"[{split['ids']}]({split['ids']}), SHA-256 `{split['sha256']}`"
            )
    for name, digest in about["weights"].items():
        yield f"- weights of {name}: SHA-256 `{digest}`"
    for each in about["projections"]:
        what = f"{each['name']}, {each['dataset']}, {each['backbone']}"
        what += f" ({each['from']})" if "from" in each else ""  # results of earlier versions
        digests = f"SHA-256 `{each['projection']}`, of the network `{each['network']}`"
        yield f"- codes of {what}: {digests}"
    options = ", ".join(f"{name} {value}" for name, value in about["options"].items())
    yield f"- protocol {about['protocol']}: positions {about['positions']}"
    yield f"- options beside the paper's defaults: {options}; seeds {about['seeds']}"
    yield f"- device: {about['device']}"
    yield "- versions: " + ", ".join(f"{name} {v}" for name, v in about["versions"].items())
    yield "- every run with all of its options and scores: [report.json](report.json)"


def write_lists(laboratory: Laboratory, folder: Path) -> None:
    """Write the ids of the images of each split beside the report."""
    for name, part, split in _splits(laboratory):
        write_list(split, folder / f"{name}-{part}.txt")


def _splits(laboratory: Laboratory) -> Iterator[tuple[str, str, Dataset]]:
    """Data sets, what a split is used for, and the split."""
    for name, source in laboratory.sources.items():
        yield name, "fitted", source.train
        yield name, "scored", source.score


def _projections(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Each projection whose codes a result is of, once."""
    found: list[dict[str, Any]] = []
    for outcome in outcomes:
        row = outcome.row
        backbone = Path(row.backbone).name
        about = {"name": row.projection, "dataset": row.dataset, "backbone": backbone}
        for result in outcome.results.values():
            codes = result.get("codes")
            if codes and (each := {**about, **codes}) not in found:
                found.append(each)
    return found


def _processor() -> str:
    return f"{platform.machine()} processor, {torch.get_num_threads()} of {os.cpu_count()} threads"
