"""The demo: propose, fit and predict on images of scikit-image and scikit-learn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image

from primaps.batch import predict_files, propose_files
from primaps.model import PriMaPsEM
from primaps.pictures.overlays import grid, model_preview
from primaps.results import check_file, write_marked_png
from primaps.utils.errors import MissingPackageError
from primaps.utils.files import user_path
from primaps.utils.progress import ProgressCallback, silent

IMAGES = (
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
    """Run propose, fit and predict on six images and write the results below ``out``.

    Args:
        out: output folder.
        device: ``auto``, ``cpu``, ``cuda``, ...
        progress: progress callback.

    Returns:
        Path of ``demo.png``, which shows the images, their mask proposals and their classes.

    Raises:
        MissingPackageError: scikit-image or scikit-learn is not installed.
    """
    out = user_path(out)
    check_file(out / "demo.png")
    paths = [_packaged(package, name) for package, name in IMAGES]
    model = PriMaPsEM(CLASSES, device=device)
    propose_files(paths, out / "proposals", backbone=model.backbone, progress=progress)
    model.fit(paths, progress=progress)
    model.save_pretrained(out / "model")
    model_preview(model, out / "model" / "preview.png")
    predict_files(model, paths, out / "classes", progress=progress)
    return _draw(paths, out)


def _packaged(package: str, name: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingPackageError(
            "the demo needs the images of scikit-image and scikit-learn: pip install "
            "'primaps[demo]'"
        )
    return Path(spec.origin).parent / name


def _draw(paths: list[Path], out: Path) -> Path:
    """Draw images, overlays of proposals and overlays of classes in three rows."""
    rows = []
    for folder in (None, "proposals", "classes"):
        row = []
        for path in paths:
            image = Image.open(path).convert("RGB")
            if folder is None:
                row.append(image)
            else:
                overlay = Image.open(next((out / folder).rglob(f"{path.stem}.overlay.jpg")))
                row.append(overlay.crop((0, 0, *image.size)))  # without its legend below
        rows.append(row)
    target = out / "demo.png"
    write_marked_png(grid(rows, height=200), target)
    return target
