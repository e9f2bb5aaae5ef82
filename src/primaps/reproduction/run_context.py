"""Resources that the runs of an experiment share: data, backbones, checkpoints, fingerprints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from primaps.backbones.backbone import Backbone
from primaps.backbones.load import load_backbone
from primaps.data import DataError, Dataset, load_dataset
from primaps.data.datasets import find_layout
from primaps.em.orthogonal import CONSENSUS
from primaps.model import PriMaPsEM
from primaps.projections import Projection, load_projection
from primaps.reproduction.registry import FOLDER, TableRow
from primaps.reproduction.settings import Reproduction
from primaps.utils.errors import InputError, PrimapsError
from primaps.version import VERSION

FORMAT = 2
"""Format of results. Increase it when their meaning changes."""


@dataclass(frozen=True)
class Source:
    """The splits of a data set.

    Attributes:
        train: images to fit.
        score: images to score; the same images if the data set has one split.
    """

    train: Dataset
    score: Dataset

    @property
    def counts(self) -> tuple[int, int, int]:
        """Number of images to fit, images to score, and classes."""
        return len(self.train.samples), len(self.score.samples), len(self.score.classes)


def load_source(name: str, root: str | Path) -> Source:
    """Load the splits ``train`` and ``val`` of a data set.

    Raises:
        DataError: the layout of the data set is wrong, or it has no classes.json.
    """
    source = Source(*(load_dataset(name, root, split) for split in ("train", "val")))
    if source.score.layout.unnamed:
        raise DataError(f"{root} has no classes.json with the names of its classes; add it")
    return source


def image_counts(name: str, root: Path | None) -> tuple[int, int, int]:
    """Return :attr:`Source.counts` of a data set, or the published counts without ``root``.

    Raises:
        InputError: a labeled folder needs ``root``.
    """
    if root is not None:
        return load_source(name, root).counts
    if name == FOLDER:
        raise InputError("add --root: a folder with images, labels and classes.json")
    layout = find_layout(name, "")
    return layout.splits["train"] or 0, layout.splits["val"] or 0, len(layout.classes)


def image_ids(data: Dataset) -> bytes:
    """Return the ids of the images of a split, one per line."""
    return _lines(sample.key for sample in data.samples)


def fingerprint(data: Dataset) -> str:
    """Return a digest of ids, classes and file sizes.

    File sizes are quick to read, and a changed file rarely has the same size.
    """
    header = [list(data.classes), sorted(data.layout.values.items()), data.ignore_index]
    lines = [json.dumps(header)]
    for sample in data.samples:
        label = sample.label
        size = label.stat().st_size if label is not None and label.is_file() else -1
        lines.append(f"{sample.key} {Path(str(sample.source)).stat().st_size} {size}")
    return hashlib.sha256(_lines(lines)).hexdigest()


@dataclass
class Outcome:
    """The results of a row.

    Attributes:
        row: the row.
        results: results by seed.
        reason: why results are missing.
        error: the error that is the reason.
    """

    row: TableRow
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    reason: str = ""
    error: PrimapsError | None = None

    @property
    def iou(self) -> dict[str, float | None]:
        """Mean over the seeds of the IoU per class, 0 to 1; None if a class does not occur."""
        each = [self.row.scores(result)["iou"] for result in self.results.values()]
        found = {title: [iou[title] for iou in each if iou[title] is not None] for title in each[0]}
        return {title: mean(values) if values else None for title, values in found.items()}


@dataclass
class RunContext:
    """Data sets, backbones and checkpoints, each loaded once."""

    reproduction: Reproduction
    sources: dict[str, Source] = field(default_factory=dict)
    fingerprints: dict[str, tuple[str, str]] = field(default_factory=dict)
    backbones: dict[str, Backbone | PrimapsError] = field(default_factory=dict)
    checkpoints: dict[Path, Projection] = field(default_factory=dict)

    @property
    def loaded(self) -> dict[str, Backbone]:
        """The backbones that were loaded."""
        return {k: v for k, v in self.backbones.items() if isinstance(v, Backbone)}

    def source(self, name: str) -> Source:
        """Return a data set."""
        if name not in self.sources:
            source = load_source(name, self.reproduction.roots[name])
            self.sources[name] = source
            self.fingerprints[name] = (fingerprint(source.train), fingerprint(source.score))
        return self.sources[name]

    def backbone(self, name: str) -> Backbone | PrimapsError:
        """Return a backbone, or the error if it cannot be loaded."""
        if name not in self.backbones:
            precision = self.reproduction.options.get("precision", "float32")
            try:
                self.backbones[name] = load_backbone(
                    name, self.reproduction.device, precision=precision,
                    positions=self.reproduction.positions,
                )  # fmt: skip
            except PrimapsError as error:
                self.backbones[name] = error
        return self.backbones[name]

    def checkpoint(self, path: Path) -> Projection:
        """Return a checkpoint of STEGO or HP."""
        if path not in self.checkpoints:
            self.checkpoints[path] = load_projection(None, path)
        return self.checkpoints[path]


@dataclass(frozen=True)
class Run:
    """One run of a row, with everything that decides its result.

    Attributes:
        row: the row.
        seed: random seed.
        model: the model before its fit, without a projection that is trained in the run.
        source: the data set.
        data: the split to score.
        images: fingerprint of the features of the training images.
        fit: fingerprint of the fitted model.
        result: fingerprint of the scores.
    """

    row: TableRow
    seed: int
    model: PriMaPsEM
    source: Source
    data: Dataset
    images: str
    fit: str
    result: str

    @classmethod
    def prepare(cls, row: TableRow, seed: int, context: RunContext, network: Backbone) -> Run:
        """Create the model of a run and compute its fingerprints."""
        reproduction = context.reproduction
        source = context.source(row.dataset)
        options = reproduction.config(row, seed)
        options.pop("precision", None)  # the backbone already has it
        path = reproduction.projection(row) if row.projection else None
        if path is not None:
            options["projection"] = context.checkpoint(path)
        device = network.device
        model = PriMaPsEM(len(source.train.classes), backbone=network, device=device, **options)
        if row.kind == "clusters":
            _check_clusters(model, row)
        config = {k: v for k, v in asdict(model.config).items() if k != "backbone"}
        codes = model.projection.digest if model.projection else reproduction.codes(row)
        train, score = context.fingerprints[row.dataset]
        networks = [network.digest, model.network.digest]
        fit = [FORMAT, VERSION, networks, codes, config, row.kind, train]
        fit += [CONSENSUS] if model.config.orthogonal else []
        split, data = (train, source.train) if row.split == "train" else (score, source.score)
        result = [*fit, split, row.crf, reproduction.resize]
        images = _digest([FORMAT, VERSION, train, networks, network.arithmetic, model.size])
        return cls(row, seed, model, source, data, images, _digest(fit), _digest(result))

    @property
    def name(self) -> str:
        """Name of the file of the result: readable, and unique by its fingerprint."""
        backbone = Path(self.row.backbone).name
        return f"{self.row.dataset}-{backbone}-{self.row.kind}-seed{self.seed}-{self.result[:12]}"

    @property
    def projection_name(self) -> str:
        """Name of the projection that is trained for this run, below ``out/models``.

        Rows with the same seed and images share it, and ``--projection`` accepts its folder.
        """
        backbone = Path(self.row.backbone).name
        return f"{self.row.projection}-{backbone}-seed{self.seed}-{self.images[:12]}"


def _check_clusters(model: PriMaPsEM, row: TableRow) -> None:
    """Refuse a checkpoint without one cluster per class.

    STEGO or HP alone is scored with its own clusters. K-means on its codes is
    another method.

    Raises:
        InputError: the checkpoint has no clusters, or a different number.
    """
    clusters = model.projection.clusters if model.projection else None
    classes = model.config.classes
    if clusters is None or len(clusters) != classes:
        found = "no clusters" if clusters is None else f"{len(clusters)} clusters"
        raise InputError(
            f"the checkpoint of {row.projection} has {found}; the row needs one for each of the "
            f"{classes} classes"
        )


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
