"""Charts of scores: confusion matrix and IoU per class, and the sheet of examples beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from primaps.data import Dataset, Sample
from primaps.evaluation import by_class
from primaps.files import atomic_path
from primaps.plotting import examples, palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from primaps.segmenter import PriMaPsEM

# Okabe and Ito's colours (2008), which can be told apart with all kinds of colour blindness.
SERIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")


def confusion_chart(
    confusion: Int[Tensor, "classes clusters"],
    classes: Sequence[str],
    assignment: list[int | None],
    title: str = "",
) -> Figure:
    """Where the pixels of each class go, in % of the class; the diagonal is right.

    Args:
        confusion: counts, of :func:`primaps.evaluation.confusion_matrix`.
        assignment: class of each cluster. Clusters without one share the column "none".

    Examples:
        >>> figure = confusion_chart(torch.tensor([[3, 1], [0, 4]]), ["a", "b"], [0, 1])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['75', '25', '0', '100']
    """
    from matplotlib.figure import Figure

    counts = by_class(confusion, assignment).cpu().numpy()
    columns = [*classes, "none"] if None in assignment else list(classes)
    counts = counts[:, : len(columns)]
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4.2, 2.2 + 0.36 * len(classes))
    figure = Figure(figsize=(side + 1.2, side), layout=_layout())
    axes = figure.add_subplot()
    drawn = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    names = [
        name if row.any() else f"{name} (no pixel)"
        for name, row in zip(classes, counts, strict=True)
    ]
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(len(classes)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    axes.set_title(title)
    few = len(classes) <= 5
    for (row, column), value in np.ndenumerate(share):
        if (few or value >= 0.5) and counts[row].sum():
            shade = "white" if value > 55 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=shade, size=8)
    figure.colorbar(drawn, label="% of the pixels of the class", shrink=0.7)
    return figure


def iou_chart(
    series: Mapping[str, Mapping[str, float | None]],
    title: str = "",
) -> Figure:
    """IoU per class as bars, one group per class with one bar per method, and the means.

    Args:
        series: method to IoU by class, in [0, 1]; None for a class that does not occur. Classes
            are those of the first method.

    Examples:
        >>> figure = iou_chart({"EM": {"road": 0.9, "car": 0.45, "train": None}})
        >>> [float(bar.get_width()) for bar in figure.axes[0].patches]
        [90.0, 45.0, 0.0]
    """
    from matplotlib.figure import Figure

    classes = list(next(iter(series.values())))
    height = 1.4 + len(classes) * (0.16 + 0.14 * len(series))
    figure = Figure(figsize=(7.2, height), layout=_layout())
    axes = figure.add_subplot()
    thick = 0.8 / len(series)
    for i, (method, values) in enumerate(series.items()):
        places = np.arange(len(classes)) + (i - (len(series) - 1) / 2) * thick
        known = [values[name] for name in classes]
        lengths = [100 * (value or 0) for value in known]
        mean = np.mean([100 * value for value in known if value is not None])
        shade = SERIES[i % len(SERIES)]
        axes.barh(places, lengths, thick, color=shade, label=f"{method}: mean {mean:.1f}")
        axes.axvline(float(mean), color=shade, linestyle="--", linewidth=1, zorder=0)
        for place, value, length in zip(places, known, lengths, strict=True):
            text = "does not occur" if value is None else f"{length:.1f}"
            size = 7 if len(series) > 1 else 8
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # on the dashed lines
            axes.text(length + 0.8, place, text, va="center", size=size, bbox=box)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlim(0, 105)  # leaves room for the figure beside a full bar
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("IoU, %")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    longest = max(len(method) for method in series) + len(": mean 99.9")
    columns = max(1, min(3, len(series), 76 // (longest + 4)))  # of letters that fit the width
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _layout() -> ConstrainedLayoutEngine:
    """Room for all labels, and a margin."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.12)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure, in the format of the suffix of ``path``, atomically."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def class_colours(data: Dataset) -> UInt8[np.ndarray, "k 3"]:
    """The data set's own colours, or those of :func:`primaps.plotting.palette`."""
    if data.colours is None:
        return palette(len(data.classes))
    return np.array(data.colours, np.uint8)


def draw_result(
    model: PriMaPsEM, data: Dataset, result: dict[str, Any], folder: str | Path, number: int = 6
) -> None:
    """Draw what :func:`primaps.protocol.evaluate` found: ``primaps evaluate --pictures``.

    Writes ``confusion.png``, ``iou.png`` and ``examples.png`` (images at even distances in the data
    set, not chosen by their scores).
    """
    shown = f"accuracy {100 * result['accuracy']:.1f} %, mean IoU {100 * result['mean_iou']:.1f} %"
    folder = Path(folder)
    save(result_confusion(result, shown), folder / "confusion.png")
    method = {"em": "PriMaPs-EM", "kmeans": "k-means", "probe": "linear probe"}
    save(iou_chart({method[model.config.method]: result["iou"]}, shown), folder / "iou.png")
    sheet = example_sheet({"prediction": (model, result)}, data, evenly(data, number))
    with atomic_path(folder / "examples.png") as temporary:
        sheet.save(temporary)


def result_confusion(result: dict[str, Any], title: str = "") -> Figure:
    """:func:`confusion_chart` of what :func:`primaps.protocol.evaluate` found."""
    confusion = torch.tensor(result["confusion"])
    return confusion_chart(confusion, list(result["iou"]), _assignment(result), title)


def evenly(data: Dataset, number: int) -> list[Sample]:
    """Samples at even distances in a data set, the first and the last among them."""
    places = np.linspace(0, len(data.samples) - 1, min(number, len(data.samples)))
    return [data.samples[i] for i in places.astype(int)]


def example_sheet(
    columns: Mapping[str, tuple[PriMaPsEM, dict[str, Any]]],
    data: Dataset,
    samples: Sequence[Sample],
) -> Image.Image:
    """Images with their labels and the predictions of models, in the classes that their clusters
    were matched to.

    Args:
        columns: title to a model and what :func:`primaps.protocol.evaluate` found for it, whose
            options are used again.
        samples: of ``data``; those without a usable label are left out.
    """
    from primaps.protocol import predictions

    ignore = data.ignore_index
    pictures: dict[str, Image.Image] = {}
    maps: dict[str, list[np.ndarray]] = {}
    for model, result in columns.values():
        options = {name: result["options"][name] for name in ("size", "crop", "mirror", "crf")}
        known = _assignment(result)
        table = np.array([ignore if c is None else c for c in known])
        for one in predictions(model, data, samples, problem=lambda sentence: None, **options):
            key = one.sample.key
            if key not in pictures:
                pictures[key] = Image.fromarray(one.image.permute(1, 2, 0).numpy())
                maps[key] = [one.label.numpy()]
            maps[key].append(table[one.clusters.numpy()])
    rows = [(picture, maps[key]) for key, picture in pictures.items()]
    titles = ("image", "label (dark: ignored)", *columns)
    return examples(rows, titles, data.classes, class_colours(data), ignore)


def _assignment(result: dict[str, Any]) -> list[int | None]:
    """Class of each cluster by its place."""
    classes = list(result["iou"])
    return [None if name is None else classes.index(name) for name in result["assignment"]]
