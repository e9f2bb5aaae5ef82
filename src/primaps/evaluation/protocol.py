"""Evaluation of models and label maps on labeled images, by the protocol of the paper."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int, Integer, UInt8
from PIL import Image
from torch import Tensor

from primaps.classes.legend import HIDDEN, RESERVED, hidden_last
from primaps.config import InferenceOptions, Resize
from primaps.data import (
    Dataset,
    ImageError,
    ImageFile,
    LogCallback,
    Sample,
    as_dataset,
    at_depth,
    chunks,
    content_digest,
    load_pair,
    pair_up,
    read,
)
from primaps.data.collection import IgnoreIndex, find_label
from primaps.data.images import load_label
from primaps.evaluation.metrics import confusion_matrix, majority, match, scores
from primaps.inference import ImageSize
from primaps.model import PriMaPsEM
from primaps.persistence import is_model
from primaps.results import MANIFEST
from primaps.teach.taught import Taught
from primaps.utils.errors import InputError, NotFoundError
from primaps.utils.inputs import read_json
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validate, validated

logger = logging.getLogger("primaps")
Matching = Literal["names", "hungarian", "majority", "none"]
NUMBERED = re.compile(r"(.+) \d+")
"""A name that :func:`primaps.evaluation.naming.naming` made distinct: ``car 2``."""
BATCH_SIZE = 4
"""Number of center crops that are predicted together."""
MAP_SUFFIXES = (".png", ".tif", ".tiff")
Encode = Callable[[UInt8[Tensor, "b 3 H W"]], Float[Tensor, "b c h w"]]


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options of an evaluation, see :func:`evaluate`.

    Options that do not apply are None: for label maps those of inference, and
    ``include_annotated`` for models that were not taught.
    """

    size: int | None = None
    crop: bool
    flip: bool | None = None
    crf: bool | None = None
    precision: Literal["float32", "bfloat16"] | None = None
    resize: Resize | None = None
    reject: bool | None = None
    level: str | None = None
    include_annotated: bool | None = None
    matching: str
    ignore_index: int
    dataset: str
    split: str
    root: str


@dataclass(frozen=True)
class Evaluation:
    """Result of :func:`evaluate`.

    Attributes:
        accuracy: share of labeled pixels with the right class, in [0, 1].
        mean_iou: mean IoU of the classes that occur, in [0, 1].
        iou: class name to IoU, in [0, 1]; None for a class that does not occur.
        assignment: name of the class that each cluster was matched to, or None.
        confusion: pixel counts; one row per class, one column per cluster. Hidden classes share
            the last column.
        by_image: image key to accuracy, for images with a labeled pixel.
        images: number of images scored.
        skipped: one sentence per image that was skipped.
        options: options of the evaluation.
        annotated: keys of the images that the model was taught with. They are not scored, unless
            ``options.include_annotated`` is true.
    """

    accuracy: float
    mean_iou: float
    iou: dict[str, float | None]
    assignment: list[str | None]
    confusion: list[list[int]]
    by_image: dict[str, float]
    images: int
    skipped: list[str]
    options: EvaluationOptions
    annotated: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Prediction:
    """A prediction for one image of a data set.

    Attributes:
        sample: the image and its label file.
        image: center crop at the evaluated size, or the whole image; for label maps, empty.
        label: classes 0..classes-1, or the ignore index.
        clusters: predicted clusters 0..K-1, K for hidden classes; or masks.
    """

    sample: Sample
    image: UInt8[Tensor, "3 ..."]
    label: Integer[Tensor, "h w"]
    clusters: Integer[Tensor, "h w"]


@dataclass
class Counts:
    """Pixel counts over a data set.

    Attributes:
        confusion: pixels by class and prediction.
        by_image: image key to the same counts of one image.
        skipped: one sentence per image without a usable label.
    """

    confusion: Int[Tensor, "classes columns"]
    by_image: dict[str, Int[Tensor, "classes columns"]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


@validated
def evaluate(
    model: PriMaPsEM | str | Path,
    images: str | Path | Sequence[str | Path] | Dataset | None = None,
    labels: str | Path | None = None,
    *,
    ignore_index: IgnoreIndex | None = None,
    crop: bool = True,
    resize: str = "pillow",
    matching: str | None = None,
    include_annotated: bool = False,
    features: Encode | None = None,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
    **options: Any,
) -> Evaluation:
    """Score a fitted model, or label maps, on labeled images: ``primaps evaluate``.

    The defaults are the protocol of the paper: the shorter side of image and label is scaled to
    the size of the model (bilinear, nearest neighbor), the center square is cropped, features are
    averaged over the image and its flip, the dense CRF refines, and one Hungarian matching is
    computed over the whole set.

    With ``crop=False`` whole images are scored at their own size, as :func:`primaps.predict_files`
    writes them. Scores of the label maps that it wrote with the same ``flip``, ``crf``, ``size``
    and ``precision`` are identical.

    Args:
        model: fitted model, or a folder of label maps under the relative paths of the images:
            8-bit PNG or TIFF at the size of the label, 255 for hidden classes. Label maps are
            scored whole and as they are; only ``ignore_index`` and ``matching`` apply to them.
        images: data set, or files, folders or globs, which need ``labels``. May be omitted for
            label maps; then each label map is scored.
        labels: folder of labels under the relative paths of the images. A ``classes.json`` there,
            or up to two folders above, gives class names and ignore index.
        ignore_index: label value that is not counted; None takes that of ``classes.json``, or 255.
        crop: score center crops; False scores whole images.
        resize: ``pillow`` (antialiased, as in training), or ``tensor`` (as the authors' program
            does at evaluation); for center crops.
        matching: ``names`` (a cluster is the class of its name; upper and lower case are equal,
            and ``car 2`` is also ``car``), ``hungarian`` (each class gets one cluster),
            ``majority`` (each cluster gets its most frequent class; for more clusters than
            classes), or ``none`` (cluster k is class k). None is ``names`` for a model, or its
            label maps, with a named class, ``none`` for a linear probe, and ``hungarian``
            otherwise.
        include_annotated: also score the images that the model was taught with.
        features: function from images to features, in place of the encoder of the model, to
            reuse cached features.
        progress: progress callback.
        log: called with one sentence about each image that is skipped.
        **options: fields of :class:`primaps.config.InferenceOptions`; ``flip`` is True by default.

    Returns:
        Scores, confusion matrix and the options used.

    Raises:
        ImageError: no image has a usable label.
        NotFoundError: no image was found, or a folder does not exist.
        InputError: an option is out of range, or does not apply to label maps; no name of the model
            is a class of the labels; or all images are annotated.
    """
    if matching is not None:
        validate(matching, Matching, "matching")
    validate(resize, Resize, "resize")
    if resize == "tensor" and not crop:
        raise InputError("resize 'tensor' applies to center crops: leave out crop=False")
    source = model if isinstance(model, PriMaPsEM) else Path(model).expanduser()
    if isinstance(source, PriMaPsEM):
        if images is None:
            raise InputError("images is None; it may be omitted for label maps only")
        inference = InferenceOptions(**{"flip": True, **options})
        data = as_dataset(images, labels, ignore_index)
        inference = source.segmenter.resolve(inference, BATCH_SIZE if crop else 1)
        clusters, names = source.classes, _given_names(source)
        if source.config.method == "probe" and source.taught_ is None:
            matching = "none"
        used = {**asdict(inference), "crop": crop, "resize": resize}
    else:
        if given := sorted(options):
            raise InputError(f"{given[0]} applies to models, but {model} is a folder of label maps")
        data = _labels_of_maps(source, images, labels, ignore_index)
        clusters, used, names = _cluster_count(source), {"crop": False}, _written_names(source)
    matching = matching or ("names" if any(names) else "hungarian")
    by_name = _match_names(names, clusters, data) if matching == "names" else None
    annotated: list[str] = []
    if isinstance(source, PriMaPsEM) and source.taught_ is not None:
        data, annotated = _without_annotated(source.taught_, data, include_annotated)
        used["include_annotated"] = include_annotated
    chosen = EvaluationOptions(
        matching=matching,
        ignore_index=data.ignore_index,
        dataset=data.layout.name,
        split=data.split,
        root=str(data.root),
        **used,
    )

    def predict(skip: LogCallback) -> Iterator[Prediction]:
        return predict_samples(source, data, data.samples, chosen, features=features, log=skip)

    counts = count_pixels(data, clusters, predict, "evaluation", progress, log)
    return replace(_score(data, clusters, counts, chosen, by_name), annotated=annotated)


def _given_names(model: PriMaPsEM) -> list[str]:
    """Return the names of the classes of a model; empty text for a class without a name."""
    return [one.name if one.named else "" for one in model.shown_classes]


def _written_names(folder: Path) -> list[str]:
    """Return the names of label maps that primaps wrote; empty text for a class without a name."""
    if not (folder / MANIFEST).is_file():
        return []
    names = read_json(folder / MANIFEST, dict[str, Any]).get("names")
    if not isinstance(names, list):
        return []
    return ["" if RESERVED.fullmatch(str(name)) else str(name) for name in names]


def _match_names(names: Sequence[str], clusters: int, data: Dataset) -> list[int | None]:
    """Return the class with the name of each cluster, or None.

    Raises:
        InputError: no cluster has the name of a class.
    """
    labels = {name.casefold(): k for k, name in reversed(list(enumerate(data.classes)))}

    def find(name: str) -> int | None:
        exact = labels.get(name.casefold())
        numbered = NUMBERED.fullmatch(name)
        if exact is not None or numbered is None:
            return exact
        return labels.get(numbered[1].casefold())

    found = [find(name) for name in names] + [None] * (clusters - len(names))
    if all(k is None for k in found):
        listed = ", ".join(map(repr, filter(None, names))) or "none"
        raise InputError(
            f"no class of the model has the name of a label: the model has {listed}, and the "
            f"labels {', '.join(map(repr, data.classes[:12]))}; rename the classes, or choose "
            "matching 'hungarian'"
        )
    return found


def _without_annotated(taught: Taught, data: Dataset, include: bool) -> tuple[Dataset, list[str]]:
    """Return the data set without the images that a model was taught with, and their keys.

    Images are compared by content. With ``include``, all images stay.

    Raises:
        InputError: all images are annotated.
    """
    known = set(taught.images.values())
    digests = read(data.samples, content_digest, lambda sentence: None)
    annotated = [sample.key for sample, digest in digests if digest in known]
    if include or not annotated:
        return data, annotated
    left = tuple(sample for sample in data.samples if sample.key not in set(annotated))
    if not left:
        raise InputError(
            f"the model was taught with annotations in all {len(annotated)} images; give other "
            "images, or include_annotated (--include-annotated)"
        )
    return replace(data, samples=left), annotated


def _score(
    data: Dataset,
    clusters: int,
    counts: Counts,
    options: EvaluationOptions,
    by_name: Sequence[int | None] | None = None,
) -> Evaluation:
    """Match clusters to classes and compute the scores.

    Args:
        by_name: class of each cluster with matching ``names``.
    """
    confusion = counts.confusion
    if data.layout.unnamed:
        confusion = confusion[: _last_class(confusion) + 1]
    names = data.classes[: len(confusion)]
    assignment: list[int | None]
    if by_name is not None:
        assignment = [None if k is None or k >= len(confusion) else k for k in by_name]
    elif options.matching == "none":
        assignment = [k if k < len(confusion) else None for k in range(clusters)]
    else:
        matched = match if options.matching == "hungarian" else majority
        assignment = matched(confusion[:, :clusters])
    assignment += [None] * (confusion.shape[1] - clusters)
    result = scores(confusion, assignment)
    return Evaluation(
        accuracy=result.accuracy,
        mean_iou=result.mean_iou,
        iou=dict(zip(names, result.iou, strict=True)),
        assignment=[None if c is None else names[c] for c in result.assignment],
        confusion=confusion.tolist(),
        by_image={
            key: scores(own[: len(confusion)], result.assignment).accuracy
            for key, own in counts.by_image.items()
            if own.any()
        },
        images=len(counts.by_image),
        skipped=counts.skipped,
        options=options,
    )


def labels_as_dataset(labels: str | Path, ignore_index: int | None = None) -> Dataset:
    """Return a folder of labels as a data set whose images are the labels themselves.

    Raises:
        NotFoundError: the folder holds no labels.
    """
    data = pair_up(labels, labels, ignore_index)
    own = (s for s in data.samples if Path(str(s.source)).suffix.lower() in MAP_SUFFIXES)
    return replace(data, samples=tuple(own))


def predict_samples(
    source: PriMaPsEM | Path,
    data: Dataset,
    samples: Sequence[Sample],
    options: EvaluationOptions,
    *,
    features: Encode | None = None,
    log: LogCallback = logger.warning,
) -> Iterator[Prediction]:
    """Predict samples of a data set in their order, with the options of an evaluation.

    Args:
        source: fitted model, or folder of label maps.
        samples: samples of ``data``; those without a usable label are skipped.
        features, log: as in :func:`evaluate`.

    Raises:
        InputError: the size of center crops is not a multiple of the patch size.
    """
    if isinstance(source, Path):
        return _read_maps(source, data, samples, log)
    segmenter, samples = source.segmenter, at_depth(samples, source.depth_, of=data.samples)
    inference = segmenter.resolve(
        InferenceOptions(
            bool(options.crf),
            bool(options.flip),
            options.size,
            options.precision,
            bool(options.reject),
        )
    )
    side, patch = cast(int, inference.size), segmenter.encoder.patch_size

    def predict(images: Tensor, sizes: Sequence[ImageSize]) -> list[Tensor]:
        found = segmenter.segment_batch(
            images, sizes, inference, None if features is None else features(images)
        )
        return [hidden_last(one.labels, source.legend_) for one in found]

    if options.crop:
        if side % patch:
            raise InputError(f"size {side} is not a multiple of the patch size {patch}")
        return predict_crops(
            data,
            samples,
            lambda images: predict(images, [(side, side)] * len(images)),
            side,
            BATCH_SIZE,
            log,
            options.resize or "pillow",
        )

    def predict_whole(image: Tensor) -> Tensor:
        scaled = segmenter.scale(Image.fromarray(image.permute(1, 2, 0).numpy()), inference)
        return predict(scaled[None], [(image.shape[1], image.shape[2])])[0]

    return (
        Prediction(sample, image, label, predict_whole(image).cpu())
        for sample, (image, label) in read(samples, lambda file: load_pair(data, file), log)
    )


def predict_crops(
    data: Dataset,
    samples: Sequence[Sample],
    predict: Callable[[UInt8[Tensor, "b 3 H W"]], Iterable[Integer[Tensor, "H W"]]],
    size: int,
    batch_size: int,
    log: LogCallback,
    resize: Resize = "pillow",
) -> Iterator[Prediction]:
    """Predict the center crops of samples in their order; skip those without a usable label.

    Args:
        predict: maps 8-bit images to predictions of their size.
        size: side of the crops in pixels.
        batch_size: number of crops that are predicted together.
        resize: see :func:`primaps.data.load_pair`.
    """

    def load(sample: Sample) -> tuple[Tensor, Tensor]:
        return load_pair(data, sample, size, resize)

    for chunk in chunks(read(samples, load, log), batch_size):
        predicted = predict(torch.stack([image for _, (image, _) in chunk]))
        for (sample, (image, label)), clusters in zip(chunk, predicted, strict=True):
            yield Prediction(sample, image, label, clusters.cpu())


def count_pixels(
    data: Dataset,
    clusters: int,
    predict: Callable[[LogCallback], Iterable[Prediction]],
    stage: str,
    progress: ProgressCallback,
    log: LogCallback,
) -> Counts:
    """Count pixels by class and cluster; hidden pixels, if any, are in an additional last column.

    Args:
        clusters: number of clusters K.
        predict: maps a log callback to predictions.
        stage: name of the progress stage.

    Raises:
        ImageError: no image has a usable label.
    """

    def count(one: Prediction) -> Int[Tensor, "classes columns"]:
        return confusion_matrix(
            one.clusters, one.label, clusters + 1, len(data.classes), data.ignore_index
        )

    counts = accumulate(data, clusters + 1, predict, count, stage, progress, log)
    if not counts.confusion[:, clusters].any():
        counts.confusion = counts.confusion[:, :clusters]
        counts.by_image = {key: own[:, :clusters] for key, own in counts.by_image.items()}
    return counts


def accumulate(
    data: Dataset,
    columns: int,
    predict: Callable[[LogCallback], Iterable[Prediction]],
    count: Callable[[Prediction], Int[Tensor, "classes columns"]],
    stage: str,
    progress: ProgressCallback,
    log: LogCallback,
) -> Counts:
    """Sum the confusion matrices of all images.

    Args:
        columns: number of columns of a confusion matrix.
        predict: maps a log callback to predictions.
        count: computes the confusion matrix of one image.
        stage: name of the progress stage.

    Raises:
        ImageError: no image has a usable label.
    """
    total = len(data.samples)
    counts = Counts(torch.zeros(len(data.classes), columns, dtype=torch.int64))

    def skip(sentence: str) -> None:
        counts.skipped.append(sentence)
        log(sentence)

    if data.incomplete:
        skip(data.incomplete)
    for done, one in enumerate(predict(skip), 1):
        own = counts.by_image[one.sample.key] = count(one)
        counts.confusion += own
        progress(stage, done, total, {})
    if not counts.by_image:
        raise ImageError(
            f"none of the {total} images has a usable label; first: {counts.skipped[0]}"
        )
    progress(stage, total, total, {})
    return counts


def _labels_of_maps(
    folder: Path, images: Any, labels: str | Path | None, ignore_index: int | None
) -> Dataset:
    """Return the data set that a folder of label maps is scored on: by default all labels."""
    if not folder.is_dir():
        raise NotFoundError(f"{folder} is not a folder of label maps")
    if is_model(folder):
        raise InputError(f"{folder} is a model: load it with PriMaPsEM.from_pretrained")
    if images is None and labels is not None:
        return labels_as_dataset(labels, ignore_index)
    return as_dataset(images, labels, ignore_index)


def _cluster_count(folder: Path) -> int:
    """Return the number of classes of label maps: as written by predict, or as they occur."""
    if (folder / MANIFEST).is_file():
        names = read_json(folder / MANIFEST, dict[str, Any]).get("names")
        if isinstance(names, list):
            return len(names)
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in MAP_SUFFIXES)
    files = [ImageFile(path, path.name) for path in paths]
    loaded = read(files, lambda file: load_label(str(file.source)), lambda sentence: None)
    values = (int(labels.max(where=labels < HIDDEN, initial=0)) for _, labels in loaded)
    return 1 + max(values, default=0)


def _read_maps(
    folder: Path, data: Dataset, samples: Sequence[Sample], log: LogCallback
) -> Iterator[Prediction]:
    """Read the label maps of samples; skip those without one that fits the label."""
    clusters = _cluster_count(folder)

    def load(sample: Sample) -> tuple[Tensor, Tensor]:
        label = data.label(sample)
        path = find_label(sample, folder)
        if path is None:
            raise ImageError(f"{folder} has no label map {sample.key}.png")
        labels = load_label(path)
        if labels.shape != label.shape:
            raise ImageError(
                f"{path} has {labels.shape[1]}x{labels.shape[0]} pixels and its label "
                f"{label.shape[1]}x{label.shape[0]}; they must be equal"
            )
        odd = labels[(labels >= clusters) & (labels != HIDDEN)]
        if len(odd):
            raise ImageError(
                f"{path}: value {odd[0]} is not a class (0 to {clusters - 1}) or {HIDDEN} for "
                "hidden classes"
            )
        labels = np.where(labels < clusters, labels, clusters)
        return torch.from_numpy(labels), torch.from_numpy(label).long()

    for sample, (labels, label) in read(samples, load, log):
        yield Prediction(sample, torch.empty(3, 0, 0, dtype=torch.uint8), label, labels)


def _last_class(confusion: Int[Tensor, "classes clusters"]) -> int:
    """Return the index of the last class with a labeled pixel, or 0."""
    present = confusion.sum(1).nonzero()
    return int(present[-1]) if len(present) else 0
