"""Projections of frozen features to codes: your own, those of STEGO and HP, and their training."""

from primaps.projections.checkpoints import (
    Checkpoint,
    convert_projection,
    load_projection,
    read_checkpoint,
)
from primaps.projections.foreign import UnsafeFileError
from primaps.projections.projection import Head, Projection, ProjectionError

__all__ = [
    "Checkpoint",
    "Head",
    "Projection",
    "ProjectionError",
    "UnsafeFileError",
    "convert_projection",
    "load_projection",
    "read_checkpoint",
]
