"""Charts and example sheets of evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int, Integer, UInt8
from PIL import Image
from torch import Tensor

from primaps.config import Config
from primaps.data import Dataset, Sample
from primaps.evaluation.metrics import by_class
from primaps.evaluation.protocol import Evaluation, Prediction, predict_samples
from primaps.model import PriMaPsEM
from primaps.pictures.overlays import examples
from primaps.results import GENERATOR, check_file, output_file, write_marked_png
from primaps.utils.colors import palette
from primaps.utils.files import user_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

# Palette of Okabe and Ito (2008), which is safe for all kinds of color blindness.
SERIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")


def confusion_chart(
    confusion: Int[Tensor, "classes clusters"],
    classes: Sequence[str],
    assignment: list[int | None],
    title: str = "",
) -> Figure:
    """Draw a confusion matrix in percent of the pixels of each class.

    Args:
        confusion: pixel counts from :func:`primaps.evaluation.metrics.confusion_matrix`.
        classes: class names.
        assignment: class of each cluster. Clusters with None share the column "none".
        title: title of the chart.

    Examples:
        >>> import torch
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
    axes.set_xticks(range(len(columns)), [_plain(name) for name in columns], rotation=90)
    axes.set_yticks(range(len(classes)), [_plain(name) for name in names])
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
    """Draw the IoU of each class as bars, one bar per method, and the mean IoU as lines.

    Args:
        series: method to class name to IoU in [0, 1]; None for a class that does not occur. All
            methods have the same classes.
        title: title of the chart.

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
        axes.barh(places, lengths, thick, color=shade, label=f"{_plain(method)}: mean {mean:.1f}")
        axes.axvline(float(mean), color=shade, linestyle="--", linewidth=1, zorder=0)
        for at, (place, value, length) in enumerate(zip(places, known, lengths, strict=True)):
            text = "does not occur" if value is None else f"{length:.1f}"
            if value is None and all(other[classes[at]] is None for other in series.values()):
                if i:  # write the text once, not per method
                    continue
                place = at
            size = 7 if len(series) > 1 else 8
            # The box hides the dashed lines behind the text.
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            axes.text(length + 0.8, place, text, va="center", size=size, bbox=box)
    axes.set_yticks(range(len(classes)), [_plain(name) for name in classes])
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlim(0, 105)  # leaves space for the number beside a full bar
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("IoU, %")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    longest = max(len(method) for method in series) + len(": mean 99.9")
    columns = max(1, min(3, len(series), 76 // (longest + 4)))  # 76 characters fit the width
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    return figure


def sweep_chart(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    x_label: str,
    y_label: str,
) -> Figure:
    """Draw a metric over the values of an option, one panel per data set.

    Args:
        panels: panel title to curve name to points (x, mean, standard deviation) in order of x.
        x_label: label of the option.
        y_label: label of the metric.

    Examples:
        >>> figure = sweep_chart({"a": {"EM": [(0.2, 10.0, 1.0), (0.4, 12.0, 0.5)]}}, "psi", "IoU")
        >>> [line.get_label() for line in figure.axes[0].get_lines()][0]
        'EM'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 3.6 * len(panels), 3.9), layout=_layout())
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    for axes, (title, curves) in zip(every, panels.items(), strict=True):
        for name, points in curves.items():
            x, mean, spread = zip(*points, strict=True)
            i = names.index(name)
            shade, style = SERIES[i % len(SERIES)], "-" if i == 0 else "--"
            axes.plot(x, mean, marker="osDv^"[i % 5], color=shade, linestyle=style, label=name)
            if any(spread):
                axes.errorbar(x, mean, spread, fmt="none", capsize=3, color=shade)
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.spines[["top", "right"]].set_visible(False)
    every[0].set_ylabel(y_label)
    lines = {line.get_label(): line for axes in every for line in axes.get_lines()}
    handles = [lines[name] for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def _plain(name: str) -> str:
    """Escape a name for matplotlib, which would read dollar signs as math."""
    return name.replace("$", r"\$")


def _layout() -> ConstrainedLayoutEngine:
    """Return a layout with space for all labels and a margin."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.12)


def save(figure: Figure, path: str | Path) -> None:
    """Write a chart atomically, in the format of the suffix of ``path``."""
    png = Path(path).suffix.lower() == ".png"
    with output_file(path) as temporary:
        figure.savefig(temporary, dpi=150, metadata={"Software" if png else "Creator": GENERATOR})


def class_colors(data: Dataset) -> UInt8[np.ndarray, "k 3"]:
    """Return the colors of a data set, or the default palette if it has none."""
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

    Writes ``confusion.png``, ``iou.png`` and ``examples.png``. The examples are evenly spaced in
    the data set, not selected by their scores.

    Args:
        source: evaluated model or folder of label maps.
        data: evaluated data set.
        result: result of :func:`primaps.evaluate`.
        folder: folder to write to.
        number: number of examples.

    Raises:
        OutputError: a file would be replaced that primaps did not write.
    """
    shown = f"accuracy {100 * result.accuracy:.1f} %, mean IoU {100 * result.mean_iou:.1f} %"
    folder = user_path(folder)
    for name in ("confusion.png", "iou.png", "examples.png"):
        check_file(folder / name)
    save(result_confusion(result, shown), folder / "confusion.png")
    method = _method(source.config) if isinstance(source, PriMaPsEM) else "label maps"
    save(iou_chart({method: result.iou}, shown), folder / "iou.png")
    sheet = example_sheet({"prediction": (source, result)}, data, evenly(data, number))
    write_marked_png(sheet, folder / "examples.png")


def _method(config: Config) -> str:
    if config.unused:
        return f"recipe {config.recipe}"
    return {"em": "PriMaPs-EM", "kmeans": "k-means", "probe": "linear probe"}[config.method]


def result_confusion(result: Evaluation, title: str = "") -> Figure:
    """Draw the confusion matrix of an evaluation, see :func:`confusion_chart`."""
    confusion = torch.tensor(result.confusion)
    return confusion_chart(confusion, list(result.iou), _assignment(result), title)


def evenly(data: Dataset, number: int) -> list[Sample]:
    """Return evenly spaced samples of a data set, including the first and the last."""
    places = np.linspace(0, len(data.samples) - 1, min(number, len(data.samples)))
    return [data.samples[i] for i in places.astype(int)]


def example_sheet(
    columns: Mapping[str, tuple[PriMaPsEM | Path, Evaluation]],
    data: Dataset,
    samples: Sequence[Sample],
) -> Image.Image:
    """Draw images with their labels and predictions, clusters in the colors of their classes.

    Args:
        columns: title to the evaluated model (or folder of label maps) and its evaluation.
        data: evaluated data set.
        samples: samples of ``data`` to draw; those without a usable label are skipped.
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
    """Return the image of a prediction; for label maps, read it."""
    if one.image.numel():
        return Image.fromarray(one.image.permute(1, 2, 0).numpy())
    return one.sample.load()


def class_table(result: Evaluation, ignore: int) -> Integer[np.ndarray, " clusters"]:
    """Return the class that each cluster was matched to, or ``ignore``."""
    return np.array([ignore if c is None else c for c in _assignment(result)])


def _assignment(result: Evaluation) -> list[int | None]:
    """Return the class index of each cluster, or None."""
    classes = list(result.iou)
    return [None if name is None else classes.index(name) for name in result.assignment]
