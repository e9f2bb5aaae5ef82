from pathlib import Path

import numpy as np
import pytest

from primaps.exchange.classes import Classes
from tests.exchange.samples import Collection, blocks, collection

NAMES = (
    "road, wet",
    "Straße & 'Weg'",
    "天空",
    "\u062f\u0631\u062e\u062a\u200c\u0647\u0627",
    "class <k>",
    '"quoted"',
    "a b",
    "0",
)


@pytest.fixture
def street(tmp_path: Path) -> Collection:
    """Four images of several sizes, one without labels, and class names with special characters."""
    maps = {
        "train/a b, c.png": blocks(0, 60, 75, len(NAMES)),
        "train/Ä.v1.png": blocks(1, 41, 30, len(NAMES)),
        "val/empty.png": np.full((20, 33), 255, np.uint8),
        "val/ring.png": ring(),
    }
    colors = np.array([[k * 20 + 5, 100, 255 - k] for k in range(len(NAMES))], np.uint8)
    return collection(tmp_path, maps, Classes(NAMES, colors))


@pytest.fixture
def masks(tmp_path: Path) -> Collection:
    """Two images with mask proposals, one of which has more than 255."""
    many = np.arange(30 * 20, dtype=np.uint16).reshape(30, 20) // 2
    few = np.zeros((24, 40), np.uint8)
    few[2:9, 3:20], few[12:, 30:], few[20:, :5] = 1, 2, 1
    return collection(tmp_path, {"many.png": many, "few.png": few}, None)


def ring() -> np.ndarray:
    """Classes within holes of each other."""
    labels = np.zeros((24, 30), np.uint8)
    labels[3:20, 4:25], labels[6:15, 8:20], labels[9:12, 10:13], labels[10, 11] = 1, 2, 255, 3
    return labels
