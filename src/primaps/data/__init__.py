"""Images and labels from disk, labeled data sets, and the transforms of the protocol."""

from primaps.data.collection import ImageCollection, image_files
from primaps.data.dataset import DataError, Dataset, Sample
from primaps.data.folder import ImageFile, find_images, find_label, read_classes, read_protocol
from primaps.data.labeled import as_dataset, pair_up
from primaps.data.pairs import load_label_square, load_pair, square
from primaps.data.reading import ImageError, load_image, load_label
from primaps.data.sets import DATASETS, load_dataset
from primaps.data.stream import LogCallback, chunks, content_digest, read
from primaps.data.transforms import center_crop, fit_to_patches, resize_shorter, to_tensor

__all__ = [
    "DATASETS",
    "DataError",
    "Dataset",
    "ImageCollection",
    "ImageError",
    "ImageFile",
    "LogCallback",
    "Sample",
    "as_dataset",
    "center_crop",
    "chunks",
    "content_digest",
    "find_images",
    "find_label",
    "fit_to_patches",
    "image_files",
    "load_dataset",
    "load_image",
    "load_label",
    "load_label_square",
    "load_pair",
    "pair_up",
    "read",
    "read_classes",
    "read_protocol",
    "resize_shorter",
    "square",
    "to_tensor",
]
