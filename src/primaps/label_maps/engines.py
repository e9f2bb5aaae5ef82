"""Callables for engines that spread work over machines: a dict of arrays in, a dict of arrays out.

Ray Data, Hugging Face ``datasets`` and Spark all have a function that maps batches. These are what
to give it: they travel by pickle, and load their weights where they are first called.
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
from primaps.data import ImageError, load_image
from primaps.data.stored import Stored
from primaps.label_maps.batches import alike
from primaps.label_maps.labeler import Labeler
from primaps.label_maps.predicting import predictor
from primaps.label_maps.proposing import proposer
from primaps.model import PriMaPsEM
from primaps.utils.errors import InputError
from primaps.utils.parallel import lanes, overlapped

PROBLEM = "problem"
"""Column that says why an image has no label map; empty if it has one."""
_TURN = Lock()


class BatchLabeler(ABC):
    """Label maps of batches of images, for engines that map batches.

    Args:
        column: of the images in a batch: arrays (H, W, 3) of 8 bits, encoded files as bytes, paths,
            images of Pillow, or what Hugging Face ``datasets`` keeps of a file.
        output: column of the label maps, each of the size of its image: arrays (H, W), or encoded.
        encoded: label maps become PNG files, as bytes: small, and any engine can store them.
    """

    def __init__(self, column: str, output: str, encoded: bool) -> None:
        self.column, self.output, self.encoded = column, output, encoded

    @abstractmethod
    def labeler(self) -> Labeler:
        """What makes the label maps, loaded once in each process."""

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Label maps of a batch in the column ``output``, and all columns but that of the images.

        An image that cannot be read has an empty label map, and a sentence in the column
        ``problem``; so one bad file does not end the work of many machines.

        Raises:
            InputError: the batch has no such column.
        """
        if self.column not in batch:
            raise InputError(f"the batch has no column {self.column!r}; it has {', '.join(batch)}")
        with _TURN:  # engines may call from several threads; one call takes all cores
            return self._labeled(batch)

    def _labeled(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        labeler = self.labeler()
        count = len(batch[self.column])
        problems = [""] * count
        maps: list[np.ndarray] = [np.zeros((0, 0), np.uint8)] * count
        usable = []
        for number, value in enumerate(batch[self.column]):
            try:
                image = _image(value)
            except ImageError as error:
                problems[number] = str(error)
            else:
                usable.append((number, labeler.scaled(image), (image.height, image.width)))

        with lanes(labeler.device) as own:

            def work(group: list[Any]) -> list[tuple[int, np.ndarray]]:
                numbers, scaled, sizes = zip(*group, strict=True)
                with own.turn:
                    found = labeler(scaled, sizes)
                return [(n, _small(one.numpy())) for n, one in zip(numbers, found, strict=True)]

            groups = alike(usable, lambda one: one[1].shape, labeler.together, count)
            for done in overlapped(groups, work, own):
                for number, labels in done:
                    maps[number] = labels
        others = {name: values for name, values in batch.items() if name != self.column}
        out = [_png(one) for one in maps] if self.encoded else maps
        return {**others, self.output: _array(out), PROBLEM: np.array(problems, np.str_)}


class Predictor(BatchLabeler):
    """Classes of images by a fitted model, for engines that map batches.

    Args:
        model: folder or hub id of a model, which is loaded once in each process; or a fitted model,
            which travels along.
        crf, size: as in :func:`primaps.predict_files`.
        classes: cut the model's tree at another number of classes.
        precision: of the backbone of a folder, as in :meth:`PriMaPsEM.from_pretrained`; ``auto`` is
            bfloat16 on processors with instructions for it.
        engine: of that backbone, as in :func:`primaps.load_backbone`.
        device: ``auto``, ``cpu``, ``cuda``, ...
        column, output, encoded: see :class:`BatchLabeler`.

    Raises:
        ModelError: when it is called, if there is no such model.

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
        crf: bool = True,
        size: int | None = None,
        classes: int | None = None,
        precision: str | None = "auto",
        engine: str | None = None,
        device: str = "auto",
        column: str = "image",
        output: str = "labels",
        encoded: bool = False,
    ) -> None:
        super().__init__(column, output, encoded)
        self.model, self.crf, self.size, self.classes = model, crf, size, classes
        self.precision, self.engine, self.device = precision, engine, device

    def labeler(self) -> Labeler:
        model = self.model
        if not isinstance(model, PriMaPsEM):
            model = _model(str(model), self.device, self.precision, self.engine)
        return predictor(
            model if self.classes is None else model.cut(self.classes), self.crf, self.size
        )


class Proposer(BatchLabeler):
    """Mask proposals of images, for engines that map batches.

    Args:
        backbone: name, hub id or folder, loaded once in each process; or a :class:`Backbone`, which
            travels along.
        threshold, mask_crf, size, engine, device: as in :func:`primaps.propose_files`.
        column, output, encoded: see :class:`BatchLabeler`.

    Raises:
        WeightsError: when it is called, if the backbone has no weights there.
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
    ) -> None:
        super().__init__(column, output, encoded)
        self.backbone, self.threshold, self.mask_crf = backbone, threshold, mask_crf
        self.size, self.engine, self.device = size, engine, device

    def labeler(self) -> Labeler:
        network = self.backbone
        if not isinstance(network, Backbone):
            network = _backbone(str(network), self.device, self.engine)
        return proposer(network, self.threshold, self.mask_crf, self.size)


@lru_cache(maxsize=1)
def _model(folder: str, device: str, precision: str | None, engine: str | None) -> PriMaPsEM:
    return PriMaPsEM.from_pretrained(folder, device=device, precision=precision, engine=engine)


@lru_cache(maxsize=1)
def _backbone(name: str, device: str, engine: str | None) -> Backbone:
    return load_backbone(name, device, engine=engine)


def _image(value: Any) -> Image.Image:
    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():  # Hugging Face datasets
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        content = bytes(value)
        return load_image(Stored("an image in memory", lambda: content))
    return load_image(str(value) if isinstance(value, np.str_) else value)


def _small(labels: np.ndarray) -> np.ndarray:
    return labels.astype(np.uint8 if labels.max() < 256 else np.uint16)


def _png(labels: np.ndarray) -> bytes:
    if not labels.size:
        return b""
    file = io.BytesIO()
    Image.fromarray(labels).save(file, "PNG")
    return file.getvalue()


def _array(values: list[Any]) -> np.ndarray:
    """One array of arrays of one shape and kind; else an array of objects."""
    first = values[0] if values else None
    if isinstance(first, np.ndarray) and all(
        one.shape == first.shape and one.dtype == first.dtype for one in values
    ):
        return np.stack(values)
    out = np.empty(len(values), object)
    for number, value in enumerate(values):  # at once, numpy would look into them
        out[number] = value
    return out
