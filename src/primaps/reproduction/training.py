"""STEGO and HP on a folder for which there is no checkpoint: trained on its images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from primaps.data import LogCallback
from primaps.features.extract import extract
from primaps.model import PriMaPsEM
from primaps.projections import Projection, train_projection
from primaps.reproduction.reproduction import Reproduction
from primaps.reproduction.run_context import Run
from primaps.utils.progress import ProgressCallback


def projection_name(run: Run) -> str:
    """The folder in ``out/models`` of a projection that is trained here: ``--projection`` takes it.

    Rows of one seed on the same images share it.
    """
    row = run.row
    return f"{row.projection}-{Path(row.backbone).name}-seed{run.seed}-{run.images[:12]}"


def trained_projection(
    run: Run, reproduction: Reproduction, progress: ProgressCallback, log: LogCallback
) -> PriMaPsEM:
    """The model of a run on codes of a projection of its own seed, which is trained now if no other
    row did; it is kept beside the models, as :func:`projection_name` says."""
    row, model, train = run.row, run.model, run.source.train
    folder = reproduction.out / "models" / projection_name(run)
    if not (folder / "projection.safetensors").is_file():
        extracted = extract(
            train.samples, model.backbone, model.size, cache=reproduction.cache,
            progress=progress, log=log,
        )  # fmt: skip
        found = train_projection(
            extracted.views.clean, row.projection.lower(), classes=len(train.classes),
            seed=run.seed, progress=progress,
        )  # fmt: skip
        found.about["backbone"] = model.backbone.weights
        found.save(folder)
    options = {k: v for k, v in asdict(model.config).items() if k not in ("backbone", "precision")}
    return PriMaPsEM(**options, backbone=model.backbone, projection=Projection.load(folder))
