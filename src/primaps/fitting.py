"""From images to a saved model, for ``primaps fit`` and the studio."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from primaps.classes.class_count import Evidence, curve, parse_range
from primaps.classes.tree import SAMPLE
from primaps.config import CacheContent
from primaps.data import Dataset, ImageFile, LogCallback
from primaps.em.fit import resolve_cache_content
from primaps.em.training import HistoryLine, clear_checkpoints
from primaps.features.extract import extract
from primaps.features.training_data import gather_table
from primaps.model import PriMaPsEM
from primaps.persistence import model_writing, set_aside
from primaps.pictures.overlays import model_preview
from primaps.utils.distributed import rank
from primaps.utils.progress import ProgressCallback, silent

logger = logging.getLogger("primaps")


def class_evidence(
    wanted: str,
    options: dict[str, Any],
    files: Sequence[ImageFile],
    *,
    cache: str | Path | None = "auto",
    cache_content: CacheContent = "auto",
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> list[Evidence]:
    """Measure the stability for several numbers of classes, to choose one.

    Args:
        wanted: ``auto`` for 2 to 48 classes (fewer with few masks), or a range ``LOW-HIGH``.
        options: options of the model without ``classes``.
        cache, cache_content: as in :meth:`primaps.PriMaPsEM.fit`, which reuses the cached features.

    Raises:
        InputError: ``wanted`` is not a valid range.
    """
    candidates = None if wanted == "auto" else parse_range(wanted)
    model = PriMaPsEM(**{**options, "classes": 2})
    content = resolve_cache_content(
        cache_content, model.config, len(files), model.projection is not None
    )
    extracted = extract(
        files, model.network, model.size, masks=model.mask_maker(), depth=model.config.depth,
        cache=cache, cache_content=content, progress=progress, log=log,
    )  # fmt: skip
    table = extracted.mask_table(model.projection)
    assert table is not None
    masks = gather_table(table, SAMPLE)
    return curve(
        masks.features, masks.images, candidates, seed=model.config.seed, progress=progress
    )


def fit_folder(
    model: PriMaPsEM,
    files: Sequence[ImageFile],
    out: Path,
    *,
    labels: Dataset | None = None,
    evidence: Sequence[Evidence] = (),
    replace: bool = False,
    cache: str | Path | None = "auto",
    cache_content: CacheContent = "auto",
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
    on_epoch: Callable[[HistoryLine], None] | None = None,
) -> None:
    """Fit a model, save it, and draw a preview.

    Checkpoints are in the model folder until the model is complete; the same call resumes a stopped
    fit.

    Args:
        out: model folder; if another process writes to it, the call waits.
        labels: labeled images, for the linear probe.
        evidence: stability of several numbers of classes, saved with the class tree.
        replace: if the folder has a model with edits or annotations, keep it as ``out.bak-N`` when
            the new model is complete.
        on_epoch: called with the metrics of each epoch.

    Raises:
        OutputError: the folder contains an image of the collection, files of other programs, or a
            model with edits or annotations and ``replace`` is False.
    """
    with model_writing(out, files, replace):
        model.fit(
            files, labels, cache=cache, cache_content=cache_content, checkpoints=out,
            progress=progress, log=log, on_epoch=on_epoch,
        )  # fmt: skip
        if model.class_summary_ is not None and evidence:
            model.class_summary_ = dataclasses.replace(model.class_summary_, curve=tuple(evidence))
        if rank() == 0:
            if kept := set_aside(out):
                clear_checkpoints(kept)
                logger.info("the earlier model, with its edits and annotations, is now %s", kept)
            model.save_pretrained(out)
            model_preview(model, out / "preview.png")
            clear_checkpoints(out)
