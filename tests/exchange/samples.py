"""Folders as ``predict`` and ``propose`` write them, with their images."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from primaps.exchange.classes import Classes


@dataclass
class Collection:
    """Images with label maps and classes."""

    root: Path
    maps: dict[str, np.ndarray]
    classes: Classes

    @property
    def result(self) -> Path:
        return self.root / "result"

    @property
    def images(self) -> Path:
        return self.root / "images"


def collection(root: Path, maps: dict[str, np.ndarray], classes: Classes | None) -> Collection:
    """Write label maps by file names of images; without classes they are mask proposals."""
    for name, labels in maps.items():
        image = root / "images" / name
        image.parent.mkdir(parents=True, exist_ok=True)
        gray = (np.arange(labels.size) % 200).astype(np.uint8).reshape(labels.shape)
        Image.fromarray(gray).convert("RGB").save(image)
        path = root / "result" / f"{key_of(name, maps)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(path)
    record: dict = {"command": "propose"}
    if classes is not None:
        record = {"command": "predict", "names": list(classes.names)}
        content = json.dumps(classes.as_json())
        (root / "result" / "classes.json").write_text(content, "utf-8")
    (root / "result" / "primaps.json").write_text(json.dumps(record), "utf-8")
    return Collection(root, maps, classes or Classes(("proposal",)))


def key_of(name: str, maps: dict[str, np.ndarray]) -> str:
    bare = str(Path(name).with_suffix(""))
    equal = [one for one in maps if str(Path(one).with_suffix("")).casefold() == bare.casefold()]
    return bare if len(equal) == 1 else name


def read_maps(folder: Path) -> dict[str, np.ndarray]:
    """Return the label maps of a folder by their keys."""
    return {
        path.relative_to(folder).as_posix()[: -len(".png")]: np.asarray(Image.open(path))
        for path in sorted(folder.rglob("*.png"))
    }


def blocks(seed: int, height: int, width: int, classes: int, block: int = 9) -> np.ndarray:
    """Return a label map of regions with holes, specks and pixels without a label."""
    generator = np.random.default_rng(seed)
    rows, columns = -(-height // block), -(-width // block)
    coarse = generator.integers(0, classes, (rows, columns))
    labels = coarse.repeat(block, 0).repeat(block, 1)[:height, :width].astype(np.uint8)
    specks = generator.random(labels.shape) < 0.02
    labels[specks] = generator.integers(0, classes, specks.sum())
    labels[generator.random(labels.shape) < 0.01] = 255
    return labels
