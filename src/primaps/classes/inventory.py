"""What a fit finds out about its classes beside their prototypes: tree, trust, the curve over K.

It lies in the model's folder as ``tree.safetensors``: the tree's tensors, and the rest as JSON in
the file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from primaps.classes.choose import Evidence
from primaps.classes.grow import SAMPLE, grow
from primaps.classes.tree import Tree, TreeError
from primaps.classes.trust import ClassTrust, class_trust
from primaps.em.masks import MaskTable, gathered, mask_classes
from primaps.support.files import atomic_path

NAME = "tree.safetensors"


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
            "trust": [asdict(one) for one in self.trust],
            "shares": list(self.shares),
            "curve": [asdict(one) for one in self.curve],
        }
        with atomic_path(Path(folder) / NAME) as temporary:
            save_file(self.tree.tensors(), temporary, {"about": json.dumps(about)})

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
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["about"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(
                Tree.from_tensors(tensors),
                tuple(ClassTrust(**one) for one in about["trust"]),
                tuple(about["shares"]),
                tuple(Evidence(**one) for one in about["curve"]),
            )
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise TreeError(
                f"{path} is damaged ({type(error).__name__}: {error}): fit again, or remove it to "
                "go on without a tree"
            ) from error


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
    masks = gathered(masks, SAMPLE, seed)
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
