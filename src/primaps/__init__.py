"""Find and segment the classes of an image collection without a single label.

PriMaPs (principal mask proposals) and PriMaPs-EM, after Hahn et al., "Boosting Unsupervised
Semantic Segmentation with Principal Mask Proposals", TMLR 2024. Everything public is listed here
and imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from primaps.backbones import Backbone, load_backbone
    from primaps.config import Config
    from primaps.crf import DenseCRF, dense_crf
    from primaps.data import ImageError, find_images, load_dataset, load_image
    from primaps.planning import Plan, plan
    from primaps.projections import Projection, load_projection, train_projection
    from primaps.proposals import Proposals, image_masks, propose
    from primaps.protocol import evaluate
    from primaps.runs import predict_files, propose_files
    from primaps.segmenter import ModelError, PriMaPsEM
    from primaps.weights import WeightsError

_HOME = {
    "Backbone": "backbones",
    "load_backbone": "backbones",
    "Config": "config",
    "DenseCRF": "crf",
    "dense_crf": "crf",
    "ImageError": "data",
    "find_images": "data",
    "load_dataset": "data",
    "load_image": "data",
    "Plan": "planning",
    "plan": "planning",
    "Projection": "projections",
    "load_projection": "projections",
    "train_projection": "projections",
    "Proposals": "proposals",
    "image_masks": "proposals",
    "propose": "proposals",
    "evaluate": "protocol",
    "predict_files": "runs",
    "propose_files": "runs",
    "ModelError": "segmenter",
    "PriMaPsEM": "segmenter",
    "WeightsError": "weights",
}

__all__ = [
    "Backbone",
    "Config",
    "DenseCRF",
    "ImageError",
    "ModelError",
    "Plan",
    "PriMaPsEM",
    "Projection",
    "Proposals",
    "WeightsError",
    "dense_crf",
    "evaluate",
    "find_images",
    "image_masks",
    "load_backbone",
    "load_dataset",
    "load_image",
    "load_projection",
    "plan",
    "predict_files",
    "propose",
    "propose_files",
    "train_projection",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"primaps.{_HOME[name]}"), name)
    raise AttributeError(f"module 'primaps' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
