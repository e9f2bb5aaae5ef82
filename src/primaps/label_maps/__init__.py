"""Label maps of any number of images: propose and predict over files, and in batches of engines."""

from primaps.label_maps.collection import Written
from primaps.label_maps.engines import Predictor, Proposer
from primaps.label_maps.explaining import explain_files
from primaps.label_maps.predicting import predict_files
from primaps.label_maps.proposing import propose_files

__all__ = [
    "Predictor",
    "Proposer",
    "Written",
    "explain_files",
    "predict_files",
    "propose_files",
]
