"""Features of the images to score, computed once for all models of a backbone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from primaps.backbones.backbone import Backbone, both_features, flip_average, mean_of_both
from primaps.features.feature_cache import ArrayCache
from primaps.projections import Projection

FORMAT = 1
"""Of what is kept; a change of it, be it of last digits, raises it."""


class KeptFeatures:
    """:func:`primaps.backbones.backbone.flip_average` that computes no image twice.

    In single precision, so that scores are those of ``primaps evaluate`` to the last digit.

    Args:
        folder: where features are kept.
        projection: to codes, which are averaged then; the features of both directions are kept.

    Examples:
        >>> import tempfile
        >>> from primaps.backbones.load import load_backbone
        >>> pool = load_backbone(torch.nn.AvgPool2d(8), "cpu", patch_size=8)
        >>> kept = KeptFeatures(pool, tempfile.mkdtemp())
        >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        >>> torch.equal(kept(images), flip_average(pool, images))
        True
    """

    def __init__(
        self, backbone: Backbone, folder: str | Path, projection: Projection | None = None
    ) -> None:
        self.backbone, self.folder = backbone, Path(folder).expanduser()
        self.projection = projection
        self.compute = flip_average if projection is None else both_features
        self.stores: dict[tuple[int, ...], ArrayCache] = {}

    def __call__(self, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        size = tuple(images.shape[-2:])
        if size not in self.stores:
            shape = self.compute(self.backbone, torch.zeros(1, 3, *size).byte()).shape[1:]
            self.stores[size] = ArrayCache(shape, np.float32, self._folder(size))
        store = self.stores[size]
        keys = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]
        if store.missing(keys):
            # All of the batch, because the last bits of features depend on what goes together.
            found = self.compute(self.backbone, images)
            with store.writing():
                lacking = store.missing(keys)
                store.append(lacking, found[[keys.index(key) for key in lacking]].cpu().numpy())
        kept = store.rows(keys).take(torch.arange(len(keys))).to(self.backbone.device)
        if self.projection is None:
            return kept
        return mean_of_both(torch.stack([self.projection(f) for f in kept.unbind(1)], dim=1))

    def _folder(self, size: tuple[int, ...]) -> Path:
        what = self.compute.__name__
        about = json.dumps([FORMAT, self.backbone.digest, self.backbone.arithmetic, size, what])
        short = hashlib.sha256(about.encode()).hexdigest()[:12]
        return self.folder / f"scored-{self.backbone.name.replace('/', '--')}-{short}"
