"""Models on disk: safetensors and JSON, whole or not at all."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import primaps
from primaps.backbones import Backbone
from primaps.classes.classes_json import change_edits, read_edits
from primaps.classes.edits import legend
from primaps.classes.inventory import NAME as TREE
from primaps.classes.inventory import Inventory
from primaps.files import atomic_path, write_json
from primaps.fitting import all_steps
from primaps.probe import LinearProbe
from primaps.projections.projection import Projection
from primaps.prototypes import Prototypes
from primaps.segmenter import ModelError, PriMaPsEM

FORMAT = 1


def save(model: PriMaPsEM, folder: str | Path) -> None:
    """Write ``model.safetensors``, ``config.json`` and ``history.json``, each atomically."""
    if model.prototypes_ is None:
        raise ModelError("the model is not fitted: call fit first")
    folder = Path(folder)
    state = {
        name: value.cpu().contiguous() for name, value in model.prototypes_.state_dict().items()
    }
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    write_json(folder / "history.json", model.history_)
    if model.inventory_ is None:  # a tree of another fit would not fit this one
        (folder / TREE).unlink(missing_ok=True)
    else:
        model.inventory_.save(folder)
        if model.edits_:
            change_edits(folder, model.inventory_.tree, lambda _: model.edits_)
    projection = model.projection
    if projection is not None and projection.own:
        projection.save(folder)
    start, steps = all_steps(model.config, model._images)
    content = {
        "format": FORMAT,
        "library": "primaps",
        "config": asdict(model.config),
        "backbone": {
            "name": model.backbone.name,
            "sha256": model.backbone.digest,
            "patch_size": model.backbone.patch_size,
        },
        "projection": projection and {"name": projection.name, "sha256": projection.digest},
        "training": {"images": model._images, "init_steps": start, "steps": steps},
        "versions": {
            "primaps": primaps.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    write_json(folder / "config.json", content)


def load(
    folder: str | Path,
    backbone: str | Path | Callable[[Tensor], Tensor] | Backbone | None = None,
    device: str | torch.device = "auto",
    projection: Callable[[Tensor], Tensor] | None = None,
) -> PriMaPsEM:
    """See :meth:`PriMaPsEM.from_pretrained`."""
    path = _model_folder(folder)
    try:
        content = json.loads((path / "config.json").read_text("utf-8"))
        if content["library"] != "primaps" or content["format"] > FORMAT:
            raise KeyError("library")
        config, trained_on = dict(content["config"]), content["backbone"]
        state = load_file(path / "model.safetensors")
        direction = state["direction"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"{folder} holds no model of primaps ({type(error).__name__}: {error}); "
            "give the folder that `primaps fit --out` wrote"
        ) from error
    given = backbone if backbone is not None else config["backbone"]
    if isinstance(given, str) and given.startswith("callable:"):
        raise ModelError(
            f"{folder} was fitted on features of your {given.removeprefix('callable:')}; "
            "pass it as from_pretrained(..., backbone=it)"
        )
    config.pop("backbone")
    codes: Projection | Callable[[Tensor], Tensor] | None = projection
    if codes is None and content.get("projection"):
        name = content["projection"]["name"]
        if not (path / "projection.json").is_file():
            raise ModelError(
                f"{folder} was fitted on codes of your {name}; "
                "pass it as from_pretrained(..., projection=it)"
            )
        codes = Projection.load(path)
    model = PriMaPsEM(
        **config,
        backbone=given,
        device=device,
        patch_size=trained_on["patch_size"],
        projection=codes,
    )
    if trained_on["sha256"] not in (None, model.backbone.digest):
        raise ModelError(
            f"{folder} was fitted on other weights of {trained_on['name']} than those found at "
            f"{model.backbone.source}; give the original weights as backbone"
        )
    kind = LinearProbe if config["method"] == "probe" else Prototypes
    model.prototypes_ = kind(direction)
    model.prototypes_.load_state_dict(state)
    model.prototypes_.to(model.backbone.device).requires_grad_(False)
    model._images = content["training"]["images"]
    history = path / "history.json"
    model.history_ = json.loads(history.read_text("utf-8")) if history.is_file() else []
    model.inventory_ = Inventory.load(path)
    if model.inventory_ is not None:
        model.edits_ = list(read_edits(path, model.inventory_.tree).edits)
        if model.edits_:
            model.legend_ = legend(model.inventory_.tree, model.edits_)
    return model


def _model_folder(folder: str | Path) -> Path:
    path = Path(folder).expanduser()
    if path.is_dir() or str(folder).count("/") != 1 or path.is_absolute():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{folder} holds no model of primaps (no config.json); give the folder that "
                "`primaps fit --out` wrote"
            )
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(folder), allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"{folder} is no folder here, and the hub has no such model or cannot be reached "
            f"({type(error).__name__})"
        ) from error
