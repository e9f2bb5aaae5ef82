"""The three data sets in miniature, and everything else that a reproduction of all needs."""

from pathlib import Path

import numpy as np
from scipy.io import savemat

from primaps.backbones.weights import write_folder
from primaps.data import cocostuff
from primaps.reproduction.registry import experiment
from tests.backbones.test_backbones import original_names
from tests.projections.originals import write_hp, write_stego
from tests.trees import write

SIDE = 72
"""Of an image; the models work at 56, which patches of 8 and of 14 divide."""
CLASSES = {"cityscapes": 27, "cocostuff": 27, "potsdam": 3}


def scene(seed: int, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of colors with noise, and their labels, drawn from some values."""
    random = np.random.default_rng(seed)
    block = SIDE // 6
    chosen = random.choice(values, (6, 6))
    shades = np.random.default_rng(0).integers(0, 256, (256, 3))
    label = chosen.repeat(block, 0).repeat(block, 1)
    image = shades[label] + random.integers(-12, 13, (SIDE, SIDE, 3))
    return image.clip(0, 255).astype(np.uint8), label.astype(np.uint8)


def data_sets(root: Path) -> dict[str, Path]:
    """Two images in each split of each data set, in its own layout."""
    city, coco, potsdam = (root / name for name in CLASSES)
    for place, (split, town) in enumerate((("train", "aachen"), ("val", "munster"))):
        for i in range(2):
            name = f"{town}_{i:06}_000019"
            image, label = scene(2 * place + i, np.arange(7, 34, 4))
            write(city / "leftImg8bit" / split / town / f"{name}_leftImg8bit.png", image)
            write(city / "gtFine" / split / town / f"{name}_gtFine_labelIds.png", label)
    for place, split in enumerate(("train", "val")):
        folder, names = cocostuff.FOLDERS[split], [f"{10 * place + i:012}" for i in range(2)]
        for i, name in enumerate(names):
            image, label = scene(10 + 2 * place + i, np.arange(0, 182, 26))
            write(coco / "images" / folder / f"{name}.jpg", image)
            write(coco / "annotations" / folder / f"{name}.png", label)
        path = cocostuff.list_path(coco, split)
        path.parent.mkdir(parents=True)
        path.write_text("".join(f"{name}\n" for name in names))
    for folder in ("imgs", "gt"):
        (potsdam / folder).mkdir(parents=True)
    lists = {"labelled_train": [7, 12], "labelled_test": [3, 90], "unlabelled_train": []}
    for name, patches in lists.items():
        (potsdam / f"{name}.txt").write_text("".join(f"{patch}\n" for patch in patches))
        for patch in patches:
            image, label = scene(100 + patch, np.arange(6))
            infrared = image[..., :1]
            savemat(
                potsdam / "imgs" / f"{patch}.mat", {"img": np.concatenate([image, infrared], 2)}
            )
            savemat(potsdam / "gt" / f"{patch}.mat", {"gt": label.astype(np.int32)})
    return {"cityscapes": city, "cocostuff": coco, "potsdam": potsdam}


def small_vit(backbone: str, depth: int = 1) -> dict:
    """A random ViT in the place of one of the paper's."""
    version2 = backbone.startswith("dinov2")
    return original_names(depth=depth, patch=14 if version2 else 8, dinov2=version2)


def backbones(cache: Path) -> None:
    """The four of the paper, where the package looks for them first."""
    for name in ("dino-vits8", "dino-vitb8", "dinov2-vits14", "dinov2-vitb14"):
        write_folder(cache / "backbones" / name, small_vit(name))


def checkpoints(folder: Path, names: tuple[str, ...]) -> dict[str, Path]:
    """A checkpoint for every row that needs one; those on ViT-S/8 carry another network."""
    found = {}
    folder.mkdir(parents=True)
    for row in (row for name in names for row in experiment(name).rows if row.projection):
        key = f"{row.projection}/{row.dataset}/{row.backbone}"
        path = folder / key.replace("/", "-")
        if not path.exists():
            vit = small_vit(row.backbone, depth=2 if row.backbone == "dino-vits8" else 1)
            writer = write_stego if row.projection == "STEGO" else write_hp
            writer(path, width=64, dim=16, classes=CLASSES[row.dataset], vit=vit)
        found[key] = path
    return found
