"""What a fit finds out about its classes beside their prototypes: tree, trust, the curve over K.

It lies in the model's folder as ``tree.safetensors``: the tree's tensors, and the rest as JSON in
the file's metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from primaps.classes.build_tree import SAMPLE, grow
from primaps.classes.choose import Evidence
from primaps.classes.stability import ClassTrust, class_trust
from primaps.classes.tree import Tree, TreeError
from primaps.em.kmeans import mask_classes
from primaps.features.training_data import MaskTable, gather_table
from primaps.utils.errors import InputError
from primaps.utils.files import atomic_path
from primaps.utils.inputs import parse_json, read_tensors
from primaps.utils.validation import validate

NAME = "tree.safetensors"
LARGEST = 64 << 20
"""Bytes that the file may have: 4,096 parts of 4,096 channels have half of it."""


Figures = dict[str, int | float | None]
"""Of a class or of a K by their names; None is what nothing is known of, NaN in Python."""
T = TypeVar("T", ClassTrust, Evidence)


@dataclass(frozen=True)
class InventoryRecord:
    """What the file says beside the tree; see :class:`Inventory`."""

    trust: list[Figures]
    shares: list[float]
    curve: list[Figures]


@dataclass(frozen=True)
class Inventory:
    """Classes of a fitted model.

    Attributes:
        tree: anchored at the model's classes.
        trust: of each class of the model.
        shares: of the area of all masks, per part of the tree.
        curve: evidence for several K, if the fit looked for it.
    """

    tree: Tree
    trust: tuple[ClassTrust, ...]
    shares: tuple[float, ...]
    curve: tuple[Evidence, ...] = ()

    def save(self, folder: str | Path) -> None:
        """Write ``tree.safetensors`` atomically."""
        about = {
            "trust": [_figures(one) for one in self.trust],
            "shares": list(self.shares),
            "curve": [_figures(one) for one in self.curve],
        }
        with atomic_path(Path(folder) / NAME) as temporary:
            temporary.write_bytes(save(self.tree.tensors(), {"about": json.dumps(about)}))

    @classmethod
    def load(cls, folder: str | Path) -> Inventory | None:
        """What :meth:`save` wrote; None if the folder has none, as models of older versions.

        Raises:
            TreeError: the file is damaged.
        """
        path = Path(folder) / NAME
        if not path.is_file():
            return None
        try:
            tensors, note = read_tensors(path, LARGEST)
            tree = Tree.from_tensors(tensors)
            about = parse_json(note.get("about", "null"), InventoryRecord, "about")
            if len(about.trust) != tree.classes or len(about.shares) != len(tree):
                raise InputError("about has figures for other numbers of classes or parts")
            trust = tuple(_with_figures(ClassTrust, one, "trust") for one in about.trust)
            curve = tuple(_with_figures(Evidence, one, "curve") for one in about.curve)
            if any(not -1 <= one.nearest < tree.classes for one in trust):
                raise InputError("about names a nearest class that there is not")
        except (InputError, TreeError, OSError) as error:
            raise TreeError(
                f"{path} is damaged ({error}): fit again, or remove it to go on without a tree"
            ) from error
        return cls(tree, trust, tuple(about.shares), curve)


def _figures(one: ClassTrust | Evidence) -> Figures:
    return {k: None if v != v else v for k, v in asdict(one).items()}


def _with_figures(kind: type[T], found: Figures, name: str) -> T:
    """Back from what :func:`_figures` gave.

    Raises:
        InputError: a figure is missing, surplus, or must be a whole number.
    """
    if found.keys() != {field.name for field in fields(kind)}:
        raise InputError(f"{name} in about must have {', '.join(f.name for f in fields(kind))}")
    for field in fields(kind):
        if field.type == "int":
            validate(found[field.name], int, f"{field.name} of {name}")
    return kind(**{k: math.nan if v is None else v for k, v in found.items()})  # type: ignore[arg-type]


def take_inventory(
    masks: MaskTable,
    direction: Float[Tensor, "k c"],
    scale: Float[Tensor, " k"],
    curve: Sequence[Evidence] = (),
    seed: int = 0,
) -> Inventory | None:
    """Tree and trust of a fitted model from the masks of its collection; the same in all processes.

    Args:
        masks: of this process.
        direction, scale: of the model's prototypes.

    Returns:
        None if there are too few masks to tell anything: fewer than two for each class.
    """
    masks = gather_table(masks, SAMPLE, seed)
    classes = len(direction)
    if len(masks) < 2 * classes:
        return None
    direction = direction.detach()
    assigned = mask_classes(masks.features, direction, scale.detach())
    tree = grow(masks.features, assigned, direction, seed=seed)
    trust = class_trust(masks.features, masks.areas, masks.images, assigned, classes, seed=seed)
    owner = tree.owner.to(assigned.device)
    cosines = masks.features @ tree.parts.to(masks.features).T
    part = cosines.masked_fill(owner != assigned[:, None], -2).argmax(1)
    areas = masks.areas.double()
    shares = torch.zeros(len(tree), dtype=torch.double, device=areas.device)
    shares = shares.index_add_(0, part, areas) / areas.sum()
    return Inventory(tree, tuple(trust), tuple(shares.tolist()), tuple(curve))
