"""Images and labels from disk, and the transforms of the protocol."""

from primaps.data.folder import ImageFile, find_images, find_label, read_classes, read_protocol
from primaps.data.pairs import load_pair, square
from primaps.data.reading import ImageError, load_image, load_label
from primaps.data.stream import Problem, chunks, read
from primaps.data.transforms import centre_crop, fit_to_patches, resize_shorter, to_tensor

__all__ = [
    "ImageError",
    "ImageFile",
    "Problem",
    "centre_crop",
    "chunks",
    "find_images",
    "find_label",
    "fit_to_patches",
    "load_image",
    "load_label",
    "load_pair",
    "read",
    "read_classes",
    "read_protocol",
    "resize_shorter",
    "square",
    "to_tensor",
]
