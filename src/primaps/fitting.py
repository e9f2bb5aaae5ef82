"""A fit from images to a model's folder: what ``primaps fit`` and the studio both do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
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
from primaps.persistence import model_writing
from primaps.pictures.preview import model_preview
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
    """How far images speak for each of several numbers of classes; for
    :func:`primaps.classes.class_count.propose`.

    Args:
        wanted: ``auto``, 2 to 48 or what masks of few images allow, or a range ``LOW-HIGH``.
        options: of the model, without ``classes``.
        cache, cache_content: as in :meth:`primaps.PriMaPsEM.fit`, which then finds what it needs.

    Raises:
        InputError: ``wanted`` is neither.
    """
    candidates = None if wanted == "auto" else parse_range(wanted)
    model = PriMaPsEM(**{**options, "classes": 2})
    kept = resolve_cache_content(
        cache_content, model.config, len(files), model.projection is not None
    )
    extracted = extract(
        files, model.network, model.size, masks=model.mask_maker(), cache=cache, cache_content=kept,
        progress=progress, log=log,
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
    cache: str | Path | None = "auto",
    cache_content: CacheContent = "auto",
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
    on_epoch: Callable[[HistoryLine], None] | None = None,
) -> None:
    """Fit, save and draw; the state of training lies beside the model until it is complete, so that
    the same call goes on where it was stopped.

    Args:
        out: folder of the model; another process that writes there is waited for.
        labels: for the linear probe.
        evidence: kept with the tree.
        on_epoch: called with a line of figures per epoch.

    Raises:
        OutputError: The folder has files that this package did not write, or contains an image.
    """
    with model_writing(out, files):
        model.fit(
            files, labels, cache=cache, cache_content=cache_content, checkpoints=out,
            progress=progress, log=log, on_epoch=on_epoch,
        )  # fmt: skip
        if model.class_summary_ is not None and evidence:
            model.class_summary_ = replace(model.class_summary_, curve=tuple(evidence))
        if rank() == 0:
            model.save_pretrained(out)
            model_preview(model, out / "preview.png")
            clear_checkpoints(out)
