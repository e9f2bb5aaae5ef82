"""Propose, fit and predict on photos that scikit-image and scikit-learn bring along."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image

from primaps.batch import predict_files, propose_files
from primaps.model import PriMaPsEM
from primaps.pictures.overlays import grid
from primaps.pictures.preview import model_preview
from primaps.results import check_file, write_own_png
from primaps.utils.errors import MissingPackageError
from primaps.utils.files import user_path
from primaps.utils.progress import ProgressCallback, silent

PHOTOS = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/rocket.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
CLASSES = 16


def demo(
    out: str | Path = "primaps-demo",
    device: str | torch.device = "auto",
    progress: ProgressCallback = silent,
) -> Path:
    """Run the three main commands on six photos and write everything below ``out``.

    Returns:
        The picture to look at: photos, mask proposals, classes.

    Raises:
        ImportError: scikit-image or scikit-learn is not installed.
    """
    out = user_path(out)
    check_file(out / "demo.png")
    paths = [_packaged(package, name) for package, name in PHOTOS]
    model = PriMaPsEM(CLASSES, device=device)
    propose_files(paths, out / "proposals", backbone=model.backbone, progress=progress)
    model.fit(paths, progress=progress)
    model.save_pretrained(out / "model")
    model_preview(model, out / "model" / "preview.png")
    predict_files(model, paths, out / "classes", progress=progress)
    return _picture(paths, out)


def _packaged(package: str, name: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingPackageError("the demo needs its photos: pip install 'primaps[demo]'")
    return Path(spec.origin).parent / name


def _picture(paths: list[Path], out: Path) -> Path:
    """Photos, proposals and classes in three rows."""
    rows = []
    for folder in (None, "proposals", "classes"):
        row = []
        for path in paths:
            photo = Image.open(path).convert("RGB")
            if folder is None:
                row.append(photo)
            else:
                shown = Image.open(next((out / folder).rglob(f"{path.stem}.overlay.jpg")))
                # Without the legend below it, which would repeat under every picture.
                row.append(shown.crop((0, 0, *photo.size)))
        rows.append(row)
    target = out / "demo.png"
    write_own_png(grid(rows, height=200), target)
    return target
