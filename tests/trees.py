"""Miniature data sets in the exact layouts of the real ones."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from primaps.data import cityscapes, cocostuff


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def cityscapes_tree(root: Path, size=(16, 8), images=2) -> Path:
    """Every city of train and val with a few images; label ids 0..33 all occur."""
    ids = np.resize(np.arange(34, dtype=np.uint8), (size[1], size[0]))
    for split, cities in cityscapes.CITIES.items():
        for city in cities:
            for i in range(images):
                name = f"{city}_{i:06}_000019"
                image = root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
                label = root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png"
                write(image, np.full((size[1], size[0], 3), 90, np.uint8))
                write(label, ids)
                write(label.with_name(f"{name}_gtFine_color.png"), np.dstack([ids] * 3))
    return root


def cocostuff_tree(root: Path, names=("000000000139", "000000000285")) -> Path:
    """Images and label maps of 16x12 pixels in both splits, and the lists of them."""
    values = np.resize(np.array([*range(182), 255], np.uint8), (12, 16))
    for split in ("train", "val"):
        folder = cocostuff.FOLDERS[split]
        for name in names:
            write(root / "images" / folder / f"{name}.jpg", np.full((12, 16, 3), 90, np.uint8))
            write(root / "annotations" / folder / f"{name}.png", values)
        path = cocostuff.list_path(root, split)
        path.parent.mkdir(parents=True)
        path.write_text("".join(f"{name}\n" for name in names))
    return root


def potsdam_tree(root: Path, side=200) -> Path:
    """Two patches in each labeled list and one in the third, named by numbers like IIC's."""
    for folder in ("imgs", "gt"):
        (root / folder).mkdir(parents=True)
    lists = {"labelled_train": [7, 12], "labelled_test": [3, 90], "unlabelled_train": [41]}
    for name, patches in lists.items():
        (root / f"{name}.txt").write_text("".join(f"{patch}\n" for patch in patches))
        for patch in patches:
            image = np.full((side, side, 4), patch, np.uint8)
            savemat(root / "imgs" / f"{patch}.mat", {"img": image})
            if name != "unlabelled_train":
                classes = np.resize(np.arange(6, dtype=np.int32), (side, side))
                savemat(root / "gt" / f"{patch}.mat", {"gt": classes})
    return root


def labeled_tree(root: Path, splits=("train", "val")) -> Path:
    """``images``, ``labels`` and ``classes.json``; splits are sub-folders."""
    for split in splits:
        for name in ("a", "b"):
            label = np.resize(np.array([0, 1, 2, 11], np.uint8), (6, 8))
            write(root / "images" / split / f"{name}.jpg", np.full((6, 8, 3), 90, np.uint8))
            write(root / "labels" / split / f"{name}.png", label)
    (root / "classes.json").write_text('{"classes": ["x", "y", "z"], "ignore_index": 11}')
    return root
