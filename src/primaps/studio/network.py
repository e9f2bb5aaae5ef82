"""The network of a studio: the backbone before a fit, the model after it; for one thread."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from primaps.backbones.backbone import Backbone
from primaps.backbones.load import load_backbone
from primaps.classes.edits import legend
from primaps.classes.inventory import Inventory
from primaps.classes.tree import TreeError
from primaps.model import PriMaPsEM
from primaps.model_folder import is_model


class Network:
    """Loads what it needs when it is first used.

    Args:
        options: of the model.
        folder: where the model is, or will be.
        device: ``auto``, ``cpu``, ``cuda``, ...
    """

    def __init__(self, options: dict[str, Any], folder: Path, device: str) -> None:
        self.options, self.folder, self.device = options, folder, device
        self._backbone: Backbone | None = None
        self._model: PriMaPsEM | None = None
        self._digest = ""

    def backbone(self) -> Backbone:
        """The backbone; that of the model, once there is one."""
        if self._backbone is None:
            if is_model(self.folder):
                return self.model().backbone
            name = self.options.get("backbone") or "dinov2-vits14"
            self._backbone = load_backbone(
                name, self.device, None, self.options.get("precision", "float32")
            )
        return self._backbone

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._model is not None

    @property
    def size(self) -> int:
        """Shorter side at which images are looked at."""
        if self._model is not None:
            return self._model.size
        return self.options.get("size") or self.backbone().default_size

    @property
    def threshold(self) -> float:
        """Of the masks that the model is fitted to."""
        if self._model is not None:
            return self._model.config.threshold
        return float(self.options.get("threshold", 0.4))

    def model(self) -> PriMaPsEM:
        """The model, without the edits of its classes: it predicts parts.

        Raises:
            ModelError: there is none.
            TreeError: it has no tree.
        """
        if self._model is None:
            model = PriMaPsEM.from_pretrained(self.folder, self._backbone, self.device)
            if model.inventory_ is None:
                raise no_tree(self.folder)
            model.edits_ = []
            self._backbone = model.backbone
            self._model = model.cut(len(model.inventory_.tree))
        return self._model

    def digest(self) -> str:
        """Of the model; see :meth:`PriMaPsEM.prediction_digest`."""
        if not self._digest:
            self._digest = self.model().prediction_digest()
        return self._digest

    def with_edits(self, edits: list[dict[str, Any]]) -> PriMaPsEM:
        """The model as :meth:`PriMaPsEM.from_pretrained` gives it with these edits."""
        model = copy.copy(self.model())
        assert model.inventory_ is not None
        model.edits_ = edits
        model.legend_ = legend(model.inventory_.tree, edits) if edits else None
        return model


def inventory(folder: Path) -> Inventory:
    """Tree and trust of a model.

    Raises:
        TreeError: it has no tree, or is damaged.
    """
    found = Inventory.load(folder)
    if found is None:
        raise no_tree(folder)
    return found


def no_tree(folder: Path) -> TreeError:
    """Why a model cannot be opened."""
    return TreeError(
        f"{folder} has no tree of classes, which the studio edits: a model of k-means or a probe "
        "has none, and a fit to very few images; fit PriMaPs-EM to more images"
    )
