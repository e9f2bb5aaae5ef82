"""A model to and from its folder: prototypes, projection, tree and edits, held against each other.

The files themselves are those of :mod:`primaps.model_folder`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from primaps.backbones.backbone import Backbone
from primaps.backbones.load import load_backbone, resolve_device, resolve_precision
from primaps.classes.classes_json import change_edits, read_edits
from primaps.classes.inventory import NAME as TREE
from primaps.classes.inventory import Inventory
from primaps.classes.legend import EditError
from primaps.classes.tree import TreeError
from primaps.config import Config
from primaps.em.fit import Schedule
from primaps.em.kmeans import Prototypes
from primaps.em.probe import LinearProbe
from primaps.em.training import HistoryLine
from primaps.model_folder import (
    BackboneRecord,
    ModelError,
    ModelRecord,
    ProjectionRecord,
    TrainingRecord,
    check_model_folder,
    read_model,
    write_model,
)
from primaps.projections.projection import Projection
from primaps.utils.files import user_path

logger = logging.getLogger("primaps")


@dataclass(frozen=True)
class Pretrained:
    """A saved model.

    Attributes:
        record: the content of ``config.json``.
        projection: what codes are from; None without one.
        prototypes: or the linear probe.
        history: figures per epoch.
        inventory: tree and trust of the classes; None if the folder has none.
        edits: of the classes.
    """

    record: ModelRecord
    projection: Projection | Callable[[Tensor], Tensor] | None
    prototypes: Prototypes | LinearProbe
    history: list[HistoryLine]
    inventory: Inventory | None
    edits: list[dict[str, Any]]


def read_pretrained(
    folder: str | Path, projection: Callable[[Tensor], Tensor] | None = None
) -> Pretrained:
    """Read a model from a folder, or from the hub by its id.

    Args:
        projection: needed if the model was fitted with a callable.

    Raises:
        ModelError: no model of this package is there, or its files are of two fits.
        TreeError: its tree is damaged, or of another fit.
    """
    path, record, tensors, history = read_model(folder)
    codes: Projection | Callable[[Tensor], Tensor] | None = projection
    if codes is None and record.projection is not None:
        if not (path / "projection.json").is_file():
            raise ModelError(
                f"{folder} was fitted on codes of your {record.projection.name}; "
                "pass it as from_pretrained(..., projection=it)"
            )
        codes = Projection.load(path)
    channels = tensors["direction"].shape[1]
    if isinstance(codes, Projection) and codes.channels not in (None, channels):
        raise ModelError(f"{folder}: projection and weights are not of one fit")
    inventory, edits = Inventory.load(path), []
    if inventory is not None:
        tree = inventory.tree
        if (tree.classes, tree.parts.shape[1]) != (record.config.classes, channels):
            raise TreeError(
                f"{path / TREE} is of another model than {path / 'model.safetensors'}: fit again, "
                "or remove it to go on without a tree"
            )
        edits = list(read_edits(path, tree).edits)
    kind = LinearProbe if record.config.method == "probe" else Prototypes
    prototypes = kind(tensors["direction"])
    prototypes.load_state_dict(tensors)
    return Pretrained(record, codes, prototypes.requires_grad_(False), history, inventory, edits)


def fitted_backbone(
    folder: str | Path,
    record: ModelRecord,
    backbone: str | Path | Callable[[Tensor], Tensor] | Backbone | None,
    device: str | torch.device,
    precision: str | None = None,
    engine: str | None = None,
) -> Backbone:
    """The backbone that a model was fitted with: by its name, unless it is given.

    Args:
        precision: of :func:`primaps.backbones.load.resolve_precision`.
        engine: of :func:`primaps.load_backbone`.

    Raises:
        ModelError: it is a callable and was not given, or features of what was given are others.
    """
    known, name = record.backbone, record.config.backbone
    if backbone is None and name.startswith("callable:"):
        raise ModelError(
            f"{folder} was fitted on features of your {name.removeprefix('callable:')}; "
            "pass it as from_pretrained(..., backbone=it)"
        )
    given = name if backbone is None else backbone
    positions = known.positions if isinstance(given, str | Path) else None
    chosen = resolve_precision(precision, resolve_device(device), record.config.precision)
    found = load_backbone(given, device, known.patch_size, chosen, positions, engine)
    if known.sha256 and known.positions != found.positions:
        raise ModelError(
            f"{folder} was fitted on features of {known.positions} positions, and those of the "
            f"backbone are {found.positions}: load it with positions={known.positions!r}"
        )
    if known.sha256 not in (None, found.digest):
        raise ModelError(
            f"{folder} was fitted on other weights of {known.name} than those found at "
            f"{found.source}; give the original weights as backbone"
        )
    return found


def write_pretrained(
    folder: str | Path,
    config: Config,
    backbone: Backbone,
    projection: Projection | None,
    carried: bool,
    prototypes: Prototypes | LinearProbe,
    history: list[HistoryLine],
    inventory: Inventory | None,
    edits: list[dict[str, Any]],
    images: int,
    plan: Schedule,
) -> None:
    """Write a model, each file atomically.

    Args:
        carried: whether the projection's own network goes with it.
        images: number of images that it was fitted to.
        plan: the steps that it took.

    Raises:
        OutputError: The folder has files with these names that this package did not write.
        EditError: there are edits, and the folder has a ``classes.json`` of another fit.
    """
    path = user_path(folder)
    check_model_folder(path)
    if inventory is not None:
        _look_at_edits(path, inventory, edits)
    if projection is not None and projection.own:
        projection.save(path, backbone=carried)
    (path / TREE).unlink(missing_ok=True)  # a tree of another fit would not fit this one
    write_model(
        path,
        prototypes.state_dict(),
        history,
        config,
        BackboneRecord(backbone.name, backbone.digest, backbone.patch_size, backbone.positions),
        None if projection is None else ProjectionRecord(projection.name, projection.digest),
        TrainingRecord(images, plan.all_init_steps, plan.steps, config.method == "probe"),
    )
    if inventory is not None:
        inventory.save(path)
        if edits:
            change_edits(path, inventory.tree, lambda _: edits)


def _look_at_edits(folder: Path, inventory: Inventory, edits: list[dict[str, Any]]) -> None:
    """Whether a ``classes.json`` that is there is of this model; before anything is written."""
    try:
        read_edits(folder, inventory.tree)
    except EditError as error:
        if edits:
            raise
        logger.warning("the classes.json of an earlier fit stays, but is not of this: %s", error)
