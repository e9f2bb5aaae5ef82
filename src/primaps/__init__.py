"""Find and segment the classes of an image collection without a single label.

PriMaPs (principal mask proposals) and PriMaPs-EM, after Hahn et al., "Boosting Unsupervised
Semantic Segmentation with Principal Mask Proposals", TMLR 2024. Public names are imported at their
first use, which keeps ``import primaps`` fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from primaps.version import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from primaps.backbones.backbone import Backbone
    from primaps.backbones.load import load_backbone
    from primaps.backbones.weights import WeightsError
    from primaps.batch import predict_files, propose_files
    from primaps.config import Config, InferenceOptions
    from primaps.crf import DenseCRF, dense_crf
    from primaps.data import ImageError, find_images, load_dataset, load_image
    from primaps.engines import Predictor, Proposer
    from primaps.evaluation.protocol import Evaluation, evaluate
    from primaps.exchange.annotations import load_annotations
    from primaps.exchange.transfer import export_labels, import_labels
    from primaps.measure import measure_classes, measure_objects
    from primaps.model import PriMaPsEM
    from primaps.persistence import ModelError, push_to_hub
    from primaps.pictures.report import write_report
    from primaps.planning import Plan, plan
    from primaps.projections import Projection, load_projection, train_projection
    from primaps.proposals.image_size import image_masks
    from primaps.proposals.principal_masks import Proposals, propose
    from primaps.scenes.predict import predict_image, predict_scene
    from primaps.scenes.propose import propose_scene
    from primaps.scenes.sample import scene_tiles
    from primaps.studio.serve import run_studio
    from primaps.utils.errors import PrimapsError

_MODULES = {
    "Backbone": "backbones.backbone",
    "WeightsError": "backbones.weights",
    "load_backbone": "backbones.load",
    "predict_files": "batch",
    "propose_files": "batch",
    "Config": "config",
    "InferenceOptions": "config",
    "DenseCRF": "crf",
    "dense_crf": "crf",
    "ImageError": "data",
    "find_images": "data",
    "load_dataset": "data",
    "load_image": "data",
    "Predictor": "engines",
    "Proposer": "engines",
    "Evaluation": "evaluation.protocol",
    "evaluate": "evaluation.protocol",
    "load_annotations": "exchange.annotations",
    "export_labels": "exchange.transfer",
    "import_labels": "exchange.transfer",
    "measure_classes": "measure",
    "measure_objects": "measure",
    "push_to_hub": "persistence",
    "PriMaPsEM": "model",
    "ModelError": "persistence",
    "write_report": "pictures.report",
    "Plan": "planning",
    "plan": "planning",
    "Projection": "projections",
    "load_projection": "projections",
    "train_projection": "projections",
    "image_masks": "proposals.image_size",
    "Proposals": "proposals.principal_masks",
    "propose": "proposals.principal_masks",
    "run_studio": "studio.serve",
    "predict_image": "scenes.predict",
    "predict_scene": "scenes.predict",
    "propose_scene": "scenes.propose",
    "scene_tiles": "scenes.sample",
    "PrimapsError": "utils.errors",
}

__all__ = [
    "Backbone",
    "Config",
    "DenseCRF",
    "Evaluation",
    "ImageError",
    "InferenceOptions",
    "ModelError",
    "Plan",
    "Predictor",
    "PriMaPsEM",
    "PrimapsError",
    "Projection",
    "Proposals",
    "Proposer",
    "WeightsError",
    "dense_crf",
    "evaluate",
    "export_labels",
    "find_images",
    "image_masks",
    "import_labels",
    "load_annotations",
    "load_backbone",
    "load_dataset",
    "load_image",
    "load_projection",
    "measure_classes",
    "measure_objects",
    "plan",
    "predict_files",
    "predict_image",
    "predict_scene",
    "propose",
    "propose_files",
    "propose_scene",
    "push_to_hub",
    "run_studio",
    "scene_tiles",
    "train_projection",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"primaps.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'primaps' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
