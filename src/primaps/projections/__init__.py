"""Projections of frozen features to codes: of STEGO, of HP and your own; and their training."""

from primaps.projections.checkpoints import (
    Checkpoint,
    as_projection,
    convert_projection,
    load_projection,
    read_checkpoint,
)
from primaps.projections.hp import HP_PRESETS, HPSettings, train_hp
from primaps.projections.projection import Head, Projection, ProjectionError
from primaps.projections.stego import (
    STEGO_PRESETS,
    Pairs,
    StegoSettings,
    automatic_shifts,
    train_stego,
)
from primaps.projections.training import five_crops, projection_settings, train_projection
from primaps.utils.torch_files import UnsafeFileError

__all__ = [
    "HP_PRESETS",
    "STEGO_PRESETS",
    "Checkpoint",
    "HPSettings",
    "Head",
    "Pairs",
    "Projection",
    "ProjectionError",
    "StegoSettings",
    "UnsafeFileError",
    "as_projection",
    "automatic_shifts",
    "convert_projection",
    "five_crops",
    "load_projection",
    "projection_settings",
    "read_checkpoint",
    "train_hp",
    "train_projection",
    "train_stego",
]
