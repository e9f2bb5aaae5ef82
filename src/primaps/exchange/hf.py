"""Hugging Face ``datasets``: a folder of images with the label map as a second image."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from primaps.exchange.classes import Classes, parse_classes
from primaps.exchange.files import InputFiles, get_field, png, safe_name, to_json, write_file
from primaps.exchange.labeled import ImageShapes, LabeledImage, Labels, label_map_image
from primaps.utils.errors import InputError
from primaps.utils.inputs import parse_json

CLASSES, METADATA = "classes.json", "metadata.jsonl"
ALL = "data"
"""Folder of images outside of ``train``, ``val`` and ``test``."""
SPLITS = {"train": "train", "val": "validation", "test": "test", ALL: "all"}


def write(images: Iterable[LabeledImage], classes: Classes, out: Path, per: str) -> None:
    """Write ``images``, ``labels`` (class k is k, 255 is no label) and metadata of each split.

    ``README.md`` declares the splits. Without it, ``datasets`` guesses splits from words in file
    names: ``test 1.png`` would be in a separate split, without its label.
    """
    write_file(out / CLASSES, json.dumps(classes.as_json(), ensure_ascii=False) + "\n")
    with contextlib.ExitStack() as stack:
        tables: dict[str, IO[str]] = {}
        for image in images:
            folder = image.split or ALL
            name, label = f"images/{image.copy_name}", f"labels/{image.key}.png"
            image.copy_to(out / folder / name)
            write_file(out / folder / label, png(image.labels))
            if folder not in tables:
                path = out / folder / METADATA
                file = stack.enter_context(path.open("w", encoding="utf-8", newline="\n"))
                tables[folder] = file
            # The loader makes a column "image" of the first field and "label" of the second.
            tables[folder].write(to_json({"file_name": name, "label_file_name": label}) + "\n")
    rows = ["---", "configs:", "- config_name: default", "  data_files:"]
    for folder, split in SPLITS.items():
        if folder in tables:
            name = "train" if len(tables) == 1 else split  # the default split of training scripts
            rows += [f"  - split: {name}", f'    path: "{folder}/**"']
    rows += ["---", "", "Values of labels (255 is no label):", ""]
    rows += [f"- {k}: {name}" for k, name in enumerate(classes.names)]
    write_file(out / "README.md", "\n".join(rows))


def read(files: InputFiles) -> Labels:
    """Read label maps; 255 is no label."""
    tables = [name for name in files.names if name.split("/")[-1] == METADATA]
    if CLASSES not in files or not tables:
        raise InputError(f"{files.path} must have {CLASSES} and a {METADATA} in its folders")
    classes = parse_classes(files.read(CLASSES), files.where(CLASSES))
    rows = [(name, row) for name in tables for row in files.read(name).splitlines() if row.strip()]

    def images() -> Iterator[ImageShapes]:
        for name, row in rows:
            where = files.where(name)
            content = parse_json(row, Any, where, "is it cut off?")
            image = safe_name(get_field(content, "file_name", str, where), where)
            label = safe_name(get_field(content, "label_file_name", str, where), where)
            path = name[: -len(METADATA)] + label
            labels = classes.normalized(files.label_map(path), files.where(path))
            yield label_map_image(image.removeprefix("images/"), labels)

    return Labels(classes, len(rows), images())
