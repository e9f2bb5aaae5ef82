"""Images and labels from disk, labeled data sets, and the scaling and crops of the protocol."""

from primaps.data.collection import (
    ImageCollection,
    ImageFile,
    find_images,
    find_label,
    image_files,
    read_classes,
)
from primaps.data.dataset import DataError, Dataset, Sample
from primaps.data.datasets import as_dataset, load_dataset, pair_up
from primaps.data.depth import at_depth, pixel_digest
from primaps.data.images import (
    ImageError,
    load_image,
    load_label,
)
from primaps.data.stream import LogCallback, chunks, content_digest, read
from primaps.data.transforms import (
    center_crop,
    fit_to_patches,
    load_label_square,
    load_pair,
    resize_shorter,
    square,
    to_tensor,
)

__all__ = [
    "DataError",
    "Dataset",
    "ImageCollection",
    "ImageError",
    "ImageFile",
    "LogCallback",
    "Sample",
    "as_dataset",
    "at_depth",
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
    "pixel_digest",
    "read",
    "read_classes",
    "resize_shorter",
    "square",
    "to_tensor",
]
