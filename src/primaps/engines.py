"""Picklable callables that label batches, for Ray Data, Hugging Face ``datasets`` and Spark.

They map a dict of arrays to a dict of arrays. A model or backbone given by its name is loaded once
per process, at the first call.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from primaps.backbones.backbone import Backbone
from primaps.backbones.load import load_backbone
from primaps.batch import Labeler, group_by_key, narrow, predict_labeler, propose_labeler
from primaps.config import Depth, InferenceOptions
from primaps.data import ImageError, load_image
from primaps.data.images import Stored
from primaps.model import PriMaPsEM
from primaps.utils.errors import InputError
from primaps.utils.parallel import lanes, overlapped
from primaps.utils.validation import validate

PROBLEM = "problem"
"""Output column: why an image has no label map; empty if it has one."""
_CALL_LOCK = Lock()


class BatchLabeler(ABC):
    """Map batches of images to batches of label maps.

    Args:
        column: input column with the images: 8-bit arrays (H, W, 3), encoded files as bytes, paths,
            Pillow images, or undecoded images of Hugging Face ``datasets``.
        output: output column with the label maps at the size of their images: arrays (H, W), or
            PNG files.
        encoded: output PNG files as bytes, which are small and which every engine can store.
        depth: bits of the values of images of more than 8 bits; None takes that of the model. A
            batch does not show the whole collection: without a depth such images are refused.
    """

    def __init__(self, column: str, output: str, encoded: bool, depth: int | None = None) -> None:
        self.column, self.output, self.encoded = column, output, encoded
        self.depth = validate(depth, Depth | None, "depth")

    @abstractmethod
    def labeler(self) -> Labeler:
        """Return the labeler; models are loaded once per process."""

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Compute the label maps of a batch.

        The result has the column ``output`` and all input columns except ``column``. For an image
        that cannot be read, the label map is empty and the column ``problem`` holds the reason.

        Raises:
            InputError: the batch does not have the column.
        """
        if self.column not in batch:
            raise InputError(f"the batch has no column {self.column!r}; it has {', '.join(batch)}")
        with _CALL_LOCK:  # engines may call from several threads; one call uses all cores
            return self._labeled(batch)

    def _labeled(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        labeler = self.labeler()
        count = len(batch[self.column])
        problems = [""] * count
        maps: list[np.ndarray] = [np.zeros((0, 0), np.uint8)] * count
        usable = []
        for number, value in enumerate(batch[self.column]):
            try:
                image = _image(value, self.depth or labeler.depth or 8)
            except ImageError as error:
                problems[number] = str(error)
            else:
                usable.append((number, labeler.scale(image), (image.height, image.width)))

        with lanes(labeler.device) as own:

            def work(group: list[Any]) -> list[tuple[int, np.ndarray]]:
                numbers, scaled, sizes = zip(*group, strict=True)
                with own.turn:
                    found = labeler(scaled, sizes)
                return [(n, narrow(one.numpy())) for n, one in zip(numbers, found, strict=True)]

            groups = group_by_key(usable, lambda one: one[1].shape, labeler.batch_size, count)
            for done in overlapped(groups, work, own):
                for number, labels in done:
                    maps[number] = labels
        others = {name: values for name, values in batch.items() if name != self.column}
        out = [_png(one) for one in maps] if self.encoded else maps
        return {**others, self.output: _array(out), PROBLEM: np.array(problems, np.str_)}


class Predictor(BatchLabeler):
    """Predict the classes of batches of images by a fitted model.

    Args:
        model: folder or hub id of a model, or a fitted model, which is pickled.
        classes: number of classes to cut the class tree at; None keeps the classes of the model.
        engine: see :func:`primaps.load_backbone`; only for a folder or hub id.
        device: ``auto``, ``cpu``, ``cuda``, ...; only for a folder or hub id.
        column, output, encoded, depth: see :class:`BatchLabeler`.
        **options: fields of :class:`primaps.config.InferenceOptions`; the default ``precision`` is
            ``auto`` for a folder or hub id.

    Raises:
        ModelError: at the first call, if the model does not exist.

    Examples:
        >>> import torch
        >>> from primaps import Predictor
        >>> images = np.random.default_rng(0).integers(0, 256, (4, 48, 40, 3), np.uint8)
        >>> pool = torch.nn.AvgPool2d(8)
        >>> model = PriMaPsEM(2, backbone=pool, patch_size=8, size=32, min_init_steps=2,
        ...                   mask_crf=False, device="cpu")
        >>> model = model.fit([Image.fromarray(image) for image in images])
        >>> rows = Predictor(model)({"image": images, "id": np.arange(4)})
        >>> sorted(rows), rows["labels"].shape
        (['id', 'labels', 'problem'], (4, 48, 40))
    """

    def __init__(
        self,
        model: PriMaPsEM | str | Path,
        *,
        classes: int | None = None,
        engine: str | None = None,
        device: str = "auto",
        column: str = "image",
        output: str = "labels",
        encoded: bool = False,
        depth: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(column, output, encoded, depth)
        self.model, self.classes, self.engine, self.device = model, classes, engine, device
        precision = None if isinstance(model, PriMaPsEM) else "auto"
        self.options = InferenceOptions(**{"precision": precision, **options})

    def labeler(self) -> Labeler:
        model = self.model
        if not isinstance(model, PriMaPsEM):
            model = _model(str(model), self.device, self.engine)
        model = model if self.classes is None else model.cut(self.classes)
        return predict_labeler(model, self.options)


class Proposer(BatchLabeler):
    """Compute the mask proposals of batches of images.

    Args:
        backbone: name, hub id or folder of a backbone, or a :class:`Backbone`, which is pickled.
        threshold, mask_crf, size, engine, device: as in :func:`primaps.propose_files`.
        column, output, encoded, depth: see :class:`BatchLabeler`.

    Raises:
        WeightsError: at the first call, if the backbone has no weights on this machine.
    """

    def __init__(
        self,
        backbone: Backbone | str | Path = "dinov2-vits14",
        *,
        threshold: float = 0.4,
        mask_crf: bool = True,
        size: int | None = None,
        engine: str | None = None,
        device: str = "auto",
        column: str = "image",
        output: str = "masks",
        encoded: bool = False,
        depth: int | None = None,
    ) -> None:
        super().__init__(column, output, encoded, depth)
        self.backbone, self.threshold, self.mask_crf = backbone, threshold, mask_crf
        self.size, self.engine, self.device = size, engine, device

    def labeler(self) -> Labeler:
        network = self.backbone
        if not isinstance(network, Backbone):
            network = _backbone(str(network), self.device, self.engine)
        return propose_labeler(network, self.threshold, self.mask_crf, self.size)


@lru_cache(maxsize=1)
def _model(folder: str, device: str, engine: str | None) -> PriMaPsEM:
    return PriMaPsEM.from_pretrained(folder, device=device, engine=engine)


@lru_cache(maxsize=1)
def _backbone(name: str, device: str, engine: str | None) -> Backbone:
    return load_backbone(name, device, engine=engine)


def _image(value: Any, depth: int) -> Image.Image:
    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():  # Hugging Face datasets
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        content = bytes(value)
        return load_image(Stored("image in the batch", lambda: content), depth)
    return load_image(str(value) if isinstance(value, np.str_) else value, depth)


def _png(labels: np.ndarray) -> bytes:
    if not labels.size:
        return b""
    file = io.BytesIO()
    Image.fromarray(labels).save(file, "PNG")
    return file.getvalue()


def _array(values: list[Any]) -> np.ndarray:
    """Stack arrays of one shape and type; otherwise return an array of objects."""
    first = values[0] if values else None
    if isinstance(first, np.ndarray) and all(
        one.shape == first.shape and one.dtype == first.dtype for one in values
    ):
        return np.stack(values)
    out = np.empty(len(values), object)
    for number, value in enumerate(values):  # np.array(values, object) would split the arrays
        out[number] = value
    return out
