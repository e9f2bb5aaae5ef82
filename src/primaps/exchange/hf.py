"""``hf``: a folder of images that ``datasets`` loads, with the label map as a second image."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import UInt8

from primaps.exchange.classes import Classes, parse_classes
from primaps.exchange.documents import png, put, to_json
from primaps.exchange.errors import need, parse_json
from primaps.exchange.labeled import LabeledImage, Read
from primaps.exchange.map_places import copy, subset
from primaps.exchange.source import Source, safe_name
from primaps.utils.errors import InputError

METADATA = "metadata.jsonl"
ALL = "data"
"""Folder of images that lie in none of ``train``, ``val`` and ``test``."""
SPLITS = {"train": "train", "val": "validation", "test": "test", ALL: "all"}


def write(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``images``, ``labels`` (class k is k, 255 is no label) and ``metadata.jsonl`` for each
    split, ``classes.json``, and ``README.md``, which says what the splits are.

    Without the last, ``datasets`` guesses splits from words in the paths of files, and an image
    called ``test 1.png`` would end up in a split of its own, without its label.
    """
    put(out / "classes.json", json.dumps(classes.as_json(), ensure_ascii=False) + "\n")
    with contextlib.ExitStack() as stack:
        files: dict[str, IO[str]] = {}
        for image in images:
            folder = subset(image.key) or ALL
            place, label = f"images/{image.place}", f"labels/{image.key}.png"
            copy(image, out / folder / place)
            put(out / folder / label, png(image.labels))
            if folder not in files:
                path = out / folder / METADATA
                file = stack.enter_context(path.open("w", encoding="utf-8", newline="\n"))
                files[folder] = file
            # The loader makes a column "image" of the first and "label" of the second.
            files[folder].write(to_json({"file_name": place, "label_file_name": label}) + "\n")
    rows = ["---", "configs:", "- config_name: default", "  data_files:"]
    for folder, split in SPLITS.items():
        if folder in files:
            name = "train" if len(files) == 1 else split  # what people ask for first
            rows += [f"  - split: {name}", f'    path: "{folder}/**"']
    listed = "\n".join(f"- {k}: {name}" for k, name in enumerate(classes.names))
    put(
        out / "README.md",
        "\n".join([*rows, "---", "", "Values of labels; 255 is none:", "", listed]),
    )


def read(source: Source) -> Read:
    """Read label maps; 255 is no label."""
    metadata = [name for name in source.names if name.split("/")[-1] == METADATA]
    if "classes.json" not in source or not metadata:
        raise InputError(f"{source.path} must have classes.json, and {METADATA} in its folders")
    classes = parse_classes(source.read("classes.json"), source.where("classes.json"))

    listed = {name: source.read(name).splitlines() for name in metadata}

    def labeled() -> Iterator[tuple[str, UInt8[np.ndarray, "h w"]]]:
        for name, rows in listed.items():
            where, base = source.where(name), name[: -len(METADATA)]
            for row in rows:
                content = parse_json(row, where)
                image = safe_name(need(content, "file_name", str, where), where)
                label = base + safe_name(need(content, "label_file_name", str, where), where)
                labels = source.picture(label)
                if labels.ndim != 2 or labels.dtype != np.uint8:
                    raise InputError(f"{source.where(label)} must have one channel of 8 bits")
                about = source.where(label)
                yield image.removeprefix("images/"), classes.normalized(labels, about)

    return Read(classes, sum(len(rows) for rows in listed.values()), labeled())
