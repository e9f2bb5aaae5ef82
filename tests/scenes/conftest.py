"""Small scenes of several tiles, with gaps."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from primaps import PriMaPsEM
from tests.conftest import Colors, painted


@pytest.fixture(scope="session")
def model():
    """Three classes of colors, fitted at 64 pixels, with a tree."""
    quick = {"min_init_steps": 30, "batch_size": 4, "mask_crf": False}
    found = PriMaPsEM(3, backbone=Colors(), patch_size=8, size=64, device="cpu", **quick)
    return found.fit([painted(seed)[0] for seed in range(8)])


@pytest.fixture(scope="session")
def picture():
    """Larger than four tiles, and not a multiple of the patch size."""
    return painted(3, 256, 192)[0].crop((0, 0, 250, 187))


def geotiff(path: Path, values: np.ndarray, **options) -> Path:
    """Write bands (B, H, W) half a meter per pixel in UTM 33."""
    rasterio = pytest.importorskip("rasterio")
    settings = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 4e5, 0, -0.5, 5.8e6)}
    settings |= {"tiled": True, "blockxsize": 64, "blockysize": 64} | options
    size = {"count": len(values), "height": values.shape[1], "width": values.shape[2]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a scene without a georeference is intended
        with rasterio.open(
            path, "w", driver="GTiff", dtype=values.dtype, **size, **settings
        ) as new:
            new.write(values)
    return path


def bands(image) -> np.ndarray:
    """An image as (3, H, W)."""
    return np.asarray(image).transpose(2, 0, 1).copy()
