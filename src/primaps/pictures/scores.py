"""Pictures of an evaluation: confusion matrix, IoU per class, and a sheet of examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from matplotlib.figure import Figure
from PIL import Image

from primaps.config import Config
from primaps.data import Dataset, Sample, load_image
from primaps.evaluation.protocol import Evaluation, Prediction, predict_samples
from primaps.model import PriMaPsEM
from primaps.pictures.charts import confusion_chart, iou_chart, save
from primaps.pictures.overlays import examples
from primaps.results import check_file, write_own_png
from primaps.utils.colors import palette
from primaps.utils.files import user_path


def class_colors(data: Dataset) -> UInt8[np.ndarray, "k 3"]:
    """The data set's own colors, or those of :func:`primaps.pictures.overlays.palette`."""
    if data.colors is None:
        return palette(len(data.classes))
    return np.array(data.colors, np.uint8)


def draw_result(
    source: PriMaPsEM | Path,
    data: Dataset,
    result: Evaluation,
    folder: str | Path,
    number: int = 6,
) -> None:
    """Draw an evaluation: ``primaps evaluate --pictures``.

    Writes ``confusion.png``, ``iou.png`` and ``examples.png`` (images at even distances in the data
    set, not chosen by their scores).
    """
    shown = f"accuracy {100 * result.accuracy:.1f} %, mean IoU {100 * result.mean_iou:.1f} %"
    folder = user_path(folder)
    for name in ("confusion.png", "iou.png", "examples.png"):
        check_file(folder / name)
    save(result_confusion(result, shown), folder / "confusion.png")
    method = _method(source.config) if isinstance(source, PriMaPsEM) else "label maps"
    save(iou_chart({method: result.iou}, shown), folder / "iou.png")
    sheet = example_sheet({"prediction": (source, result)}, data, evenly(data, number))
    write_own_png(sheet, folder / "examples.png")


def _method(config: Config) -> str:
    if config.unused:
        return f"recipe {config.recipe}"
    return {"em": "PriMaPs-EM", "kmeans": "k-means", "probe": "linear probe"}[config.method]


def result_confusion(result: Evaluation, title: str = "") -> Figure:
    """:func:`confusion_chart` of what :func:`primaps.evaluation.protocol.evaluate` found."""
    confusion = torch.tensor(result.confusion)
    return confusion_chart(confusion, list(result.iou), _assignment(result), title)


def evenly(data: Dataset, number: int) -> list[Sample]:
    """Samples at even distances in a data set, the first and the last among them."""
    places = np.linspace(0, len(data.samples) - 1, min(number, len(data.samples)))
    return [data.samples[i] for i in places.astype(int)]


def example_sheet(
    columns: Mapping[str, tuple[PriMaPsEM | Path, Evaluation]],
    data: Dataset,
    samples: Sequence[Sample],
) -> Image.Image:
    """Images with their labels and the predictions of models, in the classes that their clusters
    were matched to.

    Args:
        columns: title to a model and its evaluation, whose options are used again.
        samples: of ``data``; those without a usable label are left out.
    """
    ignore = data.ignore_index
    pictures: dict[str, Image.Image] = {}
    maps: dict[str, list[np.ndarray]] = {}
    for model, result in columns.values():
        table = class_table(result, ignore)
        for one in predict_samples(model, data, samples, result.options, log=lambda sentence: None):
            key = one.sample.key
            if key not in pictures:
                pictures[key] = _shown(one)
                maps[key] = [one.label.numpy()]
            maps[key].append(table[one.clusters.numpy()])
    rows = [(picture, maps[key]) for key, picture in pictures.items()]
    titles = ("image", "label (dark: ignored)", *columns)
    return examples(rows, titles, data.classes, class_colors(data), ignore)


def _shown(one: Prediction) -> Image.Image:
    """Return the image of a prediction; that of its file for label maps."""
    if one.image.numel():
        return Image.fromarray(one.image.permute(1, 2, 0).numpy())
    return load_image(one.sample.source)


def class_table(result: Evaluation, ignore: int) -> Integer[np.ndarray, " clusters"]:
    """Class that each cluster was matched to; ``ignore`` for those without one."""
    return np.array([ignore if c is None else c for c in _assignment(result)])


def _assignment(result: Evaluation) -> list[int | None]:
    """Class of each cluster by its place."""
    classes = list(result.iou)
    return [None if name is None else classes.index(name) for name in result.assignment]
