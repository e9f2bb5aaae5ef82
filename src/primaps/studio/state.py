"""What a studio is doing, in the one dictionary that tabs are told."""

from __future__ import annotations

from typing import Any

from primaps.model_folder import ModelRecord
from primaps.studio.album import Album
from primaps.studio.edited import Edited
from primaps.studio.fitting import Fitting
from primaps.studio.worker import FEW
from primaps.studio.workspace import Workspace


def state(
    workspace: Workspace,
    fitting: Fitting,
    album: Album,
    edited: Edited | None,
    record: ModelRecord | None,
    classes: int | str,
    error: str,
) -> dict[str, Any]:
    """As ``GET state``, see docs/studio.md.

    Args:
        workspace, fitting, album: of the studio.
        edited: the classes, once there is a model.
        record: of that model.
        classes: number of classes that a fit is asked for, or ``auto``.
        error: what went wrong with the model; that of the fit is looked up here.
    """
    error = error or fitting.error
    stage = "fitted" if edited else "fitting" if fitting.running else "ready"
    if stage == "ready" and not workspace.images:
        stage = "empty"
    if error and not fitting.running:
        stage = "failed"
    estimate = None
    if fitting.planned is not None:
        few = FEW if classes == "auto" else classes
        seconds = round(sum(fitting.planned.values()), 1)
        estimate = {"seconds": seconds, "classes": few}
    model = None
    if edited is not None and record is not None:
        model = {
            "classes": record.config.classes,
            "backbone": record.backbone.name,
            "size": record.config.size,
            "grid": record.backbone.patch_size,
            "parts": len(edited.tree),
        }
    return {
        "folder": workspace.photos.joinpath(workspace.chosen).name,
        "collection": workspace.collection,
        "images": len(workspace.images),
        "stage": stage,
        "progress": fitting.progress if fitting.running else album.progress,
        "estimate": estimate,
        "asked": classes,
        "problems": [*dict.fromkeys(
            [*workspace.problems, *fitting.problems, *album.lost.values()]
        )],
        "error": error,
        "model": model,
        "revision": edited.revision if edited else "",
    }  # fmt: skip
